"""What `count` and `validate` print: costs of networks, of spaces, and of the paper's tables."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table

from mnet_search.models.arch import Arch, MnetError
from mnet_search.models.complexity import costs, shares
from mnet_search.models.complexity import layers as layers_of
from mnet_search.models.costs import Costs, LayerCosts
from mnet_search.search.printing import echo, params_text, print_json, print_table
from mnet_search.search.show import find_arch
from mnet_search.spaces.schema import COST_NAMES
from mnet_search.spaces.space import Space, si
from mnet_search.spaces.survey import Survey, survey

# What fits a line of a terminal.
SHOWN = ("params", "mult_adds", "activations")


def survey_of(space: Space, found: Survey, *, as_json: bool) -> None:
    """What a space holds."""
    ranges = {name: found.cost_range(name) for name in COST_NAMES}
    within = {name: found.cost_range(name, feasible=True) for name in COST_NAMES}
    ends = {"smallest": found.smallest, "largest": found.largest}
    networks = found.distinct()
    if as_json:
        content: dict[str, Any] = {
            "space": space.name,
            "hash": space.hash,
            "codes": found.n_codes,
            "exact": found.exact,
            "seen": found.n_seen,
            "networks": len(networks),
            "candidates": len(found.networks),
            "feasible": len(found.distinct(feasible=True)),
            "feasible_candidates": len(found.feasible),
            "ranges": ranges,
            "feasible_ranges": within,
        }
        print_json(content | {name: arch.to_json() | asdict(costs(arch)) for name, arch in ends.items()})
        return
    codes = "infinitely many" if found.n_codes is None else f"{found.n_codes:,}"
    seen = "all looked at" if found.exact else f"{found.n_seen:,} sampled"
    echo(f"{space.source.name}: a valid space of {codes} codes ({seen}), {len(networks):,} distinct networks")
    if space.settings.names:
        varied = ", ".join(space.settings.names)
        echo(f"with what else is searched over ({varied}): {len(found.networks):,} candidates, each trained once")
    within_budgets = len(found.distinct(feasible=True))
    budgets = ", ".join(_bound_text(name, bound) for name, bound in space.file.constraints.items()) or "none set"
    candidates = f" ({len(found.feasible):,} candidates)" if space.settings.names else ""
    share = within_budgets / len(networks)
    echo(f"within the budgets ({budgets}): {within_budgets:,} networks{candidates}, {share:.0%}")
    shown = list(dict.fromkeys([*SHOWN, *space.file.constraints]))
    table = Table("", *shown, "network", box=None, pad_edge=False)
    for name, arch in zip(("fewest mult-adds", "most mult-adds"), ends.values(), strict=True):
        chosen = space.settings.network(networks[arch.id])
        varying = {key: value for key, value in chosen.items() if len(space.parameters[key].grid() or [0, 1]) > 1}
        table.add_row(name, *(si(getattr(costs(arch), c)) for c in shown), params_text(varying))
    table.add_row("range", *(f"{si(ranges[c][0])} to {si(ranges[c][1])}" for c in shown), "")
    table.add_row("in budget", *(f"{si(within[c][0])} to {si(within[c][1])}" for c in shown), "")
    print_table(table)


def counts(target: str, overrides: list[str], *, layers: bool, as_json: bool) -> None:
    """Costs of a family's network, an exported config's, or the ends of a space."""
    arch = find_arch(target, overrides)
    if arch is None and layers:
        raise MnetError(f"--layers: {target} is a space; name one network, a family (with -s) or an exported config")
    if arch is None:
        from mnet_search.search.run import open_space

        space = open_space(Path(target), overrides)
        survey_of(space, survey(space), as_json=as_json)
        return
    total, rows = costs(arch), list(layers_of(arch))
    if as_json:
        print_json(_as_json(arch, total, rows))
        return
    if layers:
        print_table(_layer_table(arch, rows))
    options = params_text(arch.options)
    parts = shares(rows)
    held = ", ".join(f"{kind} {a:.1%} / {w:.1%}" for kind, (a, w) in parts.items() if w)
    field = f"{total.receptive_field} px" if total.receptive_field else "not defined"
    echo(f"{arch.family} {arch.id}  ({options})")
    echo(f"params       {total.params:>15,}  trainable; {total.weight_bytes:,} bytes in float32 with statistics")
    echo(f"mult-adds    {total.mult_adds:>15,}  of convolutions and linear layers, batch 1, input {arch.input}")
    echo(f"activations  {total.activations:>15,}  output elements of convolutions and linear layers")
    echo(f"peak         {total.peak_activations:>15,}  elements of feature maps alive at once")
    echo(f"sees         {field:>15}  receptive field of a pixel of the last feature map")
    echo(f"shares       {held}  (of mult-adds / of weights)")


def _as_json(arch: Arch, total: Costs, rows: list[LayerCosts]) -> dict[str, Any]:
    return {
        "arch_id": arch.id,
        "family": arch.family,
        "options": dict(arch.options),
        **asdict(total),
        "shares": {k: {"mult_adds": a, "weights": w} for k, (a, w) in shares(rows).items()},
        "layers": [
            {
                "name": r.name,
                "stage": r.stage,
                "kind": r.kind,
                "input": list(r.input),
                "output": list(r.output),
                "weights": r.weights,
                **{name: getattr(r.costs, name) for name in ("params", "mult_adds", "activations")},
            }
            for r in rows
        ],
    }


def _layer_table(arch: Arch, rows: list[LayerCosts]) -> Table:
    """Every layer, and a sum for each stage."""
    table = Table(title=f"{arch.family} {arch.id}", title_justify="left", box=None, pad_edge=False)
    table.add_column("layer")
    table.add_column("kind")
    for name in ("input", "output", *SHOWN):
        table.add_column(name, justify="right")
    outputs = {label: node.output for label, node in getattr(arch.root, "children", ())}
    for stage, group in groupby(rows, key=lambda r: r.stage):
        members = list(group)
        for r in members:
            figures = [_count_or_blank(getattr(r.costs, c)) for c in SHOWN]
            table.add_row(r.name, r.kind, str(r.input), str(r.output), *figures)
        if len(members) > 1:
            sums = [_count_or_blank(sum(getattr(r.costs, c) for r in members)) for c in SHOWN]
            table.add_row(
                f"= {stage}",
                "",
                str(members[0].input),
                str(outputs.get(stage, members[-1].output)),
                *sums,
                style="bold",
            )
    return table


def paper(*, as_json: bool) -> None:
    """Tables 2 to 9 of the MobileNetV1 paper beside the exact figures."""
    from mnet_search.models.published import compare

    rows = list(compare())
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    echo("MobileNetV1 (arXiv 1704.04861): as printed, and as the layers add up. Top-1 is the paper's, on ImageNet.")
    table = Table(box=None, pad_edge=False)
    for name in ("table", "network", "top-1 %", "mult-adds", "exact", "params", "exact ", "note"):
        table.add_column(name, justify="left" if name in ("network", "note") else "right", no_wrap=name != "note")
    last = None
    for row in rows:
        if last not in (None, row.table):
            table.add_row()
        number = str(row.table) if row.table != last else ""
        last = row.table
        top1 = f"{row.top1_percent:.1f}" if row.top1_percent is not None else ""
        if row.table == 2:
            pair = [f"{row.printed_mult_adds:.2f} %", f"{row.exact_mult_adds:.2f} %"]
            pair += [f"{row.printed_params:.2f} %", f"{row.exact_params:.2f} %"]
        else:
            pair = [_million(row.printed_mult_adds), f"{row.exact_mult_adds:,.0f}"]
            pair += [_million(row.printed_params), f"{row.exact_params:,.0f}"]
        table.add_row(number, row.model, top1, *pair, row.note)
    print_table(table)


def _bound_text(name: str, bound: Any) -> str:
    limits = (("at most", bound.max), ("at least", bound.min))
    parts = [f"{word} {si(limit)}" for word, limit in limits if limit is not None]
    return f"{name} {' and '.join(parts)}"


def _million(value: float) -> str:
    return f"{value / 1e6:g} M"


def _count_or_blank(value: int) -> str:
    return f"{value:,}" if value else ""
