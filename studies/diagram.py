"""A network as its stages: rows for a table of plain text, and a Mermaid flowchart of the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from mnet_search.models.arch import Arch, Shape
from mnet_search.models.complexity import layers


@dataclass(frozen=True)
class Stage:
    """One stage: how many layers with weights it has, what goes in and comes out, and its costs."""

    name: str
    layers: int
    input: Shape
    output: Shape
    params: int
    mult_adds: int


def stages(arch: Arch) -> list[Stage]:
    """The stages in the order in which data meets them; their params and mult-adds add up to the network's."""
    groups = [(name, list(rows)) for name, rows in groupby(layers(arch), key=lambda layer: layer.stage)]
    # What the next stage takes is what leaves one, also where several branches end it (torchvision's networks).
    leaves = [rows[0].input for _, rows in groups[1:]] + [groups[-1][1][-1].output]
    found = []
    for (name, rows), output in zip(groups, leaves, strict=True):
        found.append(
            Stage(
                name,
                sum(1 for row in rows if row.costs.mult_adds),
                rows[0].input,
                output,
                sum(row.costs.params for row in rows),
                sum(row.costs.mult_adds for row in rows),
            )
        )
    return found


def flowchart(arch: Arch, rows: Sequence[Stage], classes: int) -> str:
    """Mermaid source: the input, a box for each stage with the shape that leaves it, the classes."""
    lines = ["flowchart TD", f'    input(["images {arch.input}"])']
    names = ["input"]
    for index, stage in enumerate(rows):
        label = stage.name.replace('"', "'")
        names.append(f"s{index}")
        weighted = f"{stage.layers} layer{'s' * (stage.layers != 1)}, " if stage.layers else ""
        lines.append(f'    s{index}["{label}<br/>{weighted}to {stage.output}"]')
    lines.append(f'    output(["{classes} scores"])')
    return "\n".join([*lines, f"    {' --> '.join([*names, 'output'])}"])


def table(rows: Sequence[Stage]) -> str:
    """The same as aligned text, which needs no renderer."""
    head = ("stage", "layers", "in", "out", "params", "mult-adds")
    total = ("total", f"{sum(row.layers for row in rows)}", "", "")
    costs = (f"{sum(row.params for row in rows):,}", f"{sum(row.mult_adds for row in rows):,}")
    cells = [
        (row.name, f"{row.layers}", str(row.input), str(row.output), f"{row.params:,}", f"{row.mult_adds:,}")
        for row in rows
    ]
    lines = [head, *cells, (*total, *costs)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
