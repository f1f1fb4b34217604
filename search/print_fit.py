"""Scaling laws in words: tables for people, and the same as JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from mnet_search.search.printing import echo, params_text, print_whole
from mnet_search.studies.fit_checks import doubts
from mnet_search.studies.next_runs import Forecast, Suggestion
from mnet_search.studies.scaling import Coefficient, Fit, Refused

NOISE = {
    "repeats": "the spread between runs",
    "sampling": "the sampling error of the validation images alone, a lower bound",
    "unknown": "unknown, taken as 0",
}


def show(
    study: str,
    fits: Sequence[Fit],
    refused: Sequence[Refused],
    forecasts: Sequence[Forecast],
    suggestion: Suggestion | None,
    *,
    in_full: bool,
) -> None:
    """Laws to stdout, doubts about the best of them to stderr."""
    best = fits[0]
    if len(fits) > 1:
        _ranking(study, fits)
    if len(fits) == 1 or in_full:
        _in_full(study, best)
    if len(fits) > 1:
        echo(f"\nBest: {best.equation}")
    _summary(best)
    for doubt in doubts(best):
        typer.echo(f"warning: {doubt}", err=True)
    if refused:
        echo("\nNot supported by these networks:")
        for one in refused:
            echo(f"  {one.form} of {', '.join(one.variables)}: {one.reason.partition(';')[0]}")
    for forecast in forecasts:
        _forecast(forecast, best)
    if suggestion is not None:
        _suggestion(suggestion)


def _table(title: str | None = None) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _ranking(study: str, fits: Sequence[Fit]) -> None:
    table = _table(
        f"Study {escape(study)}: laws fitted to {len(fits[0].observations)} networks, the likeliest first (AICc)"
    )
    table.add_column("law", no_wrap=True)
    table.add_column("95 % intervals", no_wrap=True)
    for name in ("R2", "left out: ln(error)", "points", "AICc", "n", "warnings"):
        table.add_column(name, justify="right", no_wrap=True)
    least, blocks = fits[0].aicc, []
    for fit in fits:
        intervals = [f"{c.name} {interval(c)}" for c in fit.coefficients]
        r2, aicc = f"{fit.r2:.3f}", f"+{fit.aicc - least:.1f}" if math.isfinite(fit.aicc) else "-"
        left, points = f"{fit.left_out.log_error:.3f}", f"{fit.left_out.points:.2f}"
        n, warnings = str(len(fit.observations)), str(len(doubts(fit)) or "")
        table.add_row(fit.equation, "  ".join(intervals), r2, left, points, aicc, n, warnings)
        figures = [f"left out {left} in ln(error)", f"{points} points", f"R2 {r2}", f"AICc {aicc}", f"n {n}"]
        doubted = [f"warnings {warnings}"] if warnings else []
        terms = re.split(r" (?=[+-] )", fit.equation)
        blocks.append([terms, ["95 %:", *_comma(intervals)], _comma([*figures, *doubted])])
    print_whole(table, blocks)


def _comma(parts: Sequence[str]) -> list[str]:
    """Parts of a line, a comma after each but the last."""
    return [f"{part.rstrip(',')}," for part in parts[:-1]] + list(parts[-1:])


def interval(c: Coefficient) -> str:
    return f"{c.low:.3g} to {c.high:.3g}"


def _in_full(study: str, fit: Fit) -> None:
    echo(f"\nStudy {study}: {fit.equation}")
    table = _table()
    for name in ("coefficient", "of", "value", "95 % interval"):
        table.add_column(name, justify="left" if name in ("coefficient", "of") else "right", no_wrap=True)
    blocks = []
    for c in fit.coefficients:
        table.add_row(c.name, c.size or "", f"{c.value:.4g}", interval(c))
        name = f"{c.name} of {c.size}" if c.size else c.name
        blocks.append([_comma([f"{name} {c.value:.4g}", f"95 % {interval(c)}"])])
    print_whole(table, blocks)
    echo("")
    _residuals(fit)


def _residuals(fit: Fit) -> None:
    """Every network, the worst first."""
    table, blocks = _table(), []
    for name in ("network", "n", "accuracy", "fitted", "residual, points", "ln(error)"):
        table.add_column(name, justify="left" if name == "network" else "right", no_wrap=True)
    observed, fitted = fit.observations.accuracy, 1 - np.exp(fit.fitted)
    for i in np.argsort(-np.abs(fit.residuals), kind="stable"):
        label, n = fit.observations.labels[i], str(int(fit.observations.n_runs[i]))
        shown = [f"{100 * observed[i]:.2f}%", f"{100 * fitted[i]:.2f}%"]
        shown += [f"{100 * (observed[i] - fitted[i]):+.2f}", f"{fit.residuals[i]:+.4f}"]
        table.add_row(escape(label), n, *shown)
        accuracy, law, points, log_error = shown
        figures = [f"n {n}", f"accuracy {accuracy}", f"fitted {law}", f"residual {points} points"]
        blocks.append([label.split(), _comma([*figures, f"{log_error} in ln(error)"])])
    print_whole(table, blocks)


def _summary(fit: Fit) -> None:
    """How far the best law can be trusted, in three lines."""
    left, n = fit.left_out, len(fit.observations)
    echo(
        f"\nR2 {fit.r2:.3f} of ln(error), n {n}. Networks left out are predicted within {left.points:.2f} points of "
        f"accuracy (root mean square; {left.mean_points:.2f} by the mean of the others)."
    )
    noise = float(np.sqrt((fit.observations.noise**2).mean()))
    echo(f"Lack of fit {fit.tau:.3g} in ln(error), noise {noise:.3g}: {NOISE[fit.observations.noise_source]}.")
    worst = int(np.argmax(np.abs(fit.residuals)))
    points = 100 * (fit.observations.accuracy[worst] - 1 + math.exp(fit.fitted[worst]))
    echo(f"Largest residual: {fit.observations.labels[worst]}, {points:+.2f} points.")


def _forecast(forecast: Forecast, fit: Fit) -> None:
    shown = len(forecast.networks)
    more = f" (the best {shown} of {forecast.total})" if forecast.total > shown else ""
    echo(f"\nPredicted{more} by {fit.equation}")
    table = _table()
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column("95 % of the mean", no_wrap=True)
    table.add_column("95 % of one run", no_wrap=True)
    table.add_column("network", no_wrap=True)
    p, blocks = forecast.predicted, []
    for i, network in enumerate(forecast.networks):
        mean = f"{100 * p.low[i]:.2f} to {100 * p.high[i]:.2f}"
        run = f"{100 * p.run_low[i]:.2f} to {100 * p.run_high[i]:.2f}"
        accuracy, name = f"{100 * p.accuracy[i]:.2f}%", params_text(network.params)
        beyond = "; ".join(forecast.outside[i])
        note = f"({beyond}: an extrapolation)" if beyond else ""
        table.add_row(accuracy, mean, run, escape(f"{name}  {note}".rstrip()))
        figures = [f"accuracy {accuracy}", f"95 % of the mean {mean}", f"95 % of one run {run}"]
        blocks.append([name.split(), _comma(figures), *([note.split()] if note else [])])
    print_whole(table, blocks)


def _suggestion(suggestion: Suggestion) -> None:
    echo("\nTrain next:")
    for network in suggestion.networks:
        echo(f"  {params_text(network.params)}")
    n = len(suggestion.networks)
    echo(
        f"mean half-width of the predicted accuracy over the space's {suggestion.n_space} networks: "
        f"{suggestion.points_before:.2f} points now, {suggestion.points_after:.2f} expected with "
        f"{'it' if n == 1 else f'these {n}'}"
    )


# ---------------------------------------------------------------- JSON


def content(
    study: str,
    fits: Sequence[Fit],
    refused: Sequence[Refused],
    forecasts: Sequence[Forecast],
    suggestion: Suggestion | None,
) -> dict[str, Any]:
    """All of it for programs: fits best first; accuracies are fractions."""
    found: dict[str, Any] = {"study": study, "fits": [_fit(fit) for fit in fits]}
    found["refused"] = [{"form": r.form, "variables": r.variables, "reason": r.reason} for r in refused]
    if forecasts:
        found["predictions"] = [row for forecast in forecasts for row in _predictions(forecast)]
    if suggestion is not None:
        found["suggestion"] = {
            "networks": [dict(network.params) for network in suggestion.networks],
            "half_width_points_before": suggestion.points_before,
            "half_width_points_after": suggestion.points_after,
        }
    return found


def _fit(fit: Fit) -> dict[str, Any]:
    o = fit.observations
    return {
        "form": fit.form_name,
        "variables": fit.variables,
        "references": fit.references,
        "equation": fit.equation,
        "coefficients": [vars(c) for c in fit.coefficients],
        "n": len(o),
        "r2": fit.r2,
        "aicc": fit.aicc,
        "lack_of_fit": fit.tau,
        "noise_source": o.noise_source,
        "left_out": vars(fit.left_out),
        "warnings": doubts(fit),
        "residuals": [
            {"network": label, "accuracy": a, "fitted": 1 - math.exp(f), "ln_error": r, "noise": s, "runs": int(n)}
            for label, a, f, r, s, n in zip(
                o.labels, o.accuracy, fit.fitted, fit.residuals, o.noise, o.n_runs, strict=True
            )
        ],
    }


def _predictions(forecast: Forecast) -> list[dict[str, Any]]:
    p = forecast.predicted
    return [
        {
            "params": dict(network.params),
            "arch_id": network.arch_id,
            "accuracy": p.accuracy[i],
            "mean_low": p.low[i],
            "mean_high": p.high[i],
            "run_low": p.run_low[i],
            "run_high": p.run_high[i],
            "outside": forecast.outside[i],
        }
        for i, network in enumerate(forecast.networks)
    ]
