"""The command `fit` on studies without training: a study of networks whose errors follow a known law."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

from mnet_search.models.complexity import costs
from mnet_search.search.distributions import distribution
from mnet_search.spaces.space import make_space
from mnet_search.spaces.yamlfile import Source, read
from mnet_search.studies.store import Store
from mnet_search.studies.writer import open_study

from processes import call

PARAMETERS = {"width": [0.25, 0.5, 0.75, 1.0], "resolution": [20, 24, 32], "depth": ["shallow", "full"]}
IMAGES = 2000


def space_of(**parameters):
    values = {"family": "mobilenet_v1", "data": {"name": "digits"}, "parameters": PARAMETERS | parameters}
    values |= {"objectives": {"accuracy": "maximize", "params": "minimize"}}
    return make_space("law", values, Source("law.yaml")).for_data(classes=10, in_channels=1)


def write(store, name, space, networks, *, accuracy=True):
    """A study of (params, seed, accuracy or the state in which the trial ended)."""
    provenance = {"validation_images": IMAGES}
    study = open_study(store, space, name, n_trials=99, runs_dir=Path("runs"), provenance=provenance)
    for params, seed, result in networks:
        arch = space.arch(params)
        chosen = {n: distribution(space.parameters[n]) for n in params}
        record = study.begin(chosen=params, distributions=chosen, arch=arch, costs=costs(arch), seed=seed)
        if result == "failed":
            study.fail(record.trial_id, "the loss became nan")
        elif result == "stopped":
            store.optuna.set_trial_state_values(record.trial_id, TrialState.PRUNED)
        elif result != "running":
            study.finish(
                record.trial_id,
                [result, float(costs(arch).params)],
                metrics={"accuracy": result} if accuracy else {},
                environment={},
                measurement=None,
                checkpoint="",
                checkpoint_sha256="",
            )


def accuracy_of(params, noise=0.0):
    log_error = -1 - 0.4 * math.log(params["width"]) - 0.3 * math.log(params["resolution"] / 32)
    return 1 - math.exp(log_error + 0.2 * (params["depth"] == "full") + noise)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Studies `law` (two seeds of 18 networks, 6 left), `ended` (with trials that did not finish), `few`, `fixed`."""
    path = tmp_path_factory.mktemp("fit")
    rng, space = np.random.default_rng(0), space_of()
    codes = [code for code in space.codes() if code["width"] < 1]
    runs = [(code, seed, accuracy_of(code, 0.02 * rng.standard_normal())) for code in codes for seed in (0, 1)]
    with Store(f"sqlite:///{path / 'study.db'}", create=True) as store:
        write(store, "law", space, runs)
        largest = {"width": 1.0, "resolution": 32, "depth": "full"}
        smaller = {"width": 1.0, "resolution": 24, "depth": "full"}
        write(
            store, "ended", space, [*runs[::2], (largest, 0, "stopped"), (smaller, 0, "failed"), (smaller, 1, "failed")]
        )
        write(store, "few", space, runs[:4:2])
        write(store, "silent", space, runs[:2], accuracy=False)
        write(store, "empty", space, [(largest, 0, "running")])
        one_width = space_of(width=0.5)
        write(store, "fixed", one_width, [(c, 0, accuracy_of(c)) for c in one_width.codes()])
        write(store, "flat", one_width, [(c, 0, 0.9) for c in one_width.codes()])
        write(store, "perfect", one_width, [(c, 0, 1.0) for c in one_width.codes()])
    return path


@pytest.fixture(autouse=True)
def _storage(monkeypatch):
    monkeypatch.setenv("MNET_STORAGE", "sqlite:///study.db")


def fit_json(folder, *arguments):
    done = call(folder, "fit", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_law_is_ranked_and_the_true_one_is_first(folder):
    found = fit_json(folder, "law")
    best = found["fits"][0]
    assert (best["form"], best["variables"]) == ("paper", ["width", "resolution", "depth"])
    a, b, c, d = best["coefficients"]
    assert (b["value"], c["value"]) == pytest.approx((-0.4, -0.3), abs=0.05)
    assert d["value"] == pytest.approx(0.2 / math.log(28 / 18), abs=0.05)
    assert b["low"] < -0.4 < b["high"]
    assert a["value"] == pytest.approx(-0.8, abs=0.05), "of the largest network, which is full"
    assert (best["n"], best["noise_source"]) == (18, "repeats")
    assert {f["form"] for f in found["fits"]} == {"power", "log_linear", "log_log", "paper"}
    assert [f["aicc"] for f in found["fits"]] == sorted(f["aicc"] for f in found["fits"])
    assert {"form": "power", "variables": ["depth"]}.items() <= found["refused"][0].items()
    mixed = next(f for f in found["fits"] if (f["form"], f["variables"]) == ("log_log", ["mult_adds"]))
    assert "the residuals differ by depth" in " ".join(mixed["warnings"])
    assert "fit each, as with --where depth=shallow" in " ".join(mixed["warnings"])


def test_on_screen_data_go_to_stdout_and_doubts_to_stderr(folder):
    done = call(folder, "fit", "law")
    assert done.returncode == 0, done.stderr
    assert "Study law: laws fitted to 18 networks, the likeliest first (AICc)" in done.stdout
    assert "Best: ln(error) = -0.8" in done.stdout
    assert "ln(width)" in done.stdout
    assert "power of depth: depth has 2 different values, 18, 28, in the 18 finished networks" in done.stdout
    assert "warning: resolution spans a factor of 1.6 (20 to 32), less than 2: its law is a local one" in done.stderr
    one = call(folder, "fit", "law", "--form", "paper")
    assert "residual, points" in one.stdout
    assert one.stdout.partition("\nR2")[0].count("depth=full") == 9
    assert "laws fitted to" not in one.stdout


@pytest.fixture
def narrow(monkeypatch):
    """A terminal of 80 columns."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def words(text):
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def test_a_narrow_terminal_has_a_block_a_law_and_nothing_is_lost(folder, narrow):
    done = call(folder, "fit", "law")
    assert done.returncode == 0, done.stderr
    laws, _, _ = done.stdout.partition("\nBest:")
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", laws).splitlines())) <= 80
    found = fit_json(folder, "law")["fits"]
    assert len(found) > 10
    for fit in found:
        intervals = ", ".join(f"{c['name']} {c['low']:.3g} to {c['high']:.3g}" for c in fit["coefficients"])
        left = fit["left_out"]
        text = (
            f"{fit['equation']} 95 %: {intervals} left out {left['log_error']:.3f} in ln(error), {left['points']:.2f} "
            f"points, R2 {fit['r2']:.3f}, AICc +{fit['aicc'] - found[0]['aicc']:.1f}, n 18"
        )
        text += f", warnings {len(fit['warnings'])}" if fit["warnings"] else ""
        assert text in words(laws)
    assert "Study law: laws fitted to 18 networks, the likeliest first (AICc)" in words(laws)
    starts = [line for line in laws.splitlines() if not line.startswith((" ", "\x1b", "Study"))]
    assert [line.split(" = ")[0] for line in starts] == [fit["equation"].split(" = ")[0] for fit in found]


def test_a_narrow_terminal_loses_no_residual_and_no_prediction(folder, narrow, monkeypatch):
    asked = ("--form", "paper", "--predict", "width=2 resolution=32 depth=full")
    wide = fit_json(folder, "law", *asked)
    for columns in ("80", "50"):
        monkeypatch.setenv("COLUMNS", columns)
        text = words(call(folder, "fit", "law", *asked).stdout)
        assert "…" not in text
        for row in wide["fits"][0]["residuals"]:
            assert row["network"] in text
            assert f"{row['ln_error']:+.4f}" in text
            assert f"{100 * (row['accuracy'] - row['fitted']):+.2f}" in text
        (one,) = wide["predictions"]
        for low, high in (("mean_low", "mean_high"), ("run_low", "run_high")):
            assert f"{100 * one[low]:.2f} to {100 * one[high]:.2f}" in text
        assert "width=2 resolution=32 depth=full" in text
        assert "(width 2 is outside the trained range (0.25 to 0.75): an extrapolation)" in text


def test_in_a_pipe_no_law_is_cut(folder):
    laws = call(folder, "fit", "law").stdout.partition("\nBest:")[0]
    for fit in fit_json(folder, "law")["fits"]:
        (line,) = (line for line in laws.splitlines() if line.startswith(f"{fit['equation']} "))
        assert all(f"{c['name']} {c['low']:.3g} to {c['high']:.3g}" in line for c in fit["coefficients"])
        assert f" {fit['r2']:.3f} " in line


def test_where_chooses_networks(folder):
    found = fit_json(folder, "law", "--form", "paper", "--where", "depth=full")["fits"]
    assert [(f["variables"], f["n"]) for f in found] == [(["width", "resolution"], 9)]
    by_x = fit_json(folder, "law", "--x", "width", "--where", "depth=full")
    assert {tuple(f["variables"]) for f in by_x["fits"]} == {("width",)}
    few = call(folder, "fit", "law", "--x", "width", "--where", "depth=full", "--where", "resolution=24")
    assert "fit log_log: 3 finished networks and 2 coefficients; at least 1 more is needed" in few.stderr


def test_predictions(folder):
    asked = ("width=0.4 resolution=28 depth=full", "width=2 resolution=32 depth=full")
    inside, beyond = fit_json(folder, "law", "--form", "paper", "--predict", asked[0], "--predict", asked[1])[
        "predictions"
    ]
    truth = accuracy_of({"width": 0.4, "resolution": 28, "depth": "full"})
    assert inside["accuracy"] == pytest.approx(truth, abs=0.02)
    assert inside["run_low"] < inside["mean_low"] < truth < inside["mean_high"] < inside["run_high"]
    assert (inside["outside"], inside["params"]) == ([], {"width": 0.4, "resolution": 28, "depth": "full"})
    assert beyond["outside"] == ["width 2 is outside the trained range (0.25 to 0.75)"]
    left = call(folder, "fit", "law", "--form", "paper", "--predict", "untrained").stdout.split("Predicted")[1]
    rows = [line for line in left.splitlines() if "width=" in line]
    assert len(rows) == 6
    assert all("(width 1 is outside the trained range (0.25 to 0.75): an extrapolation)" in row for row in rows)
    assert "width=1.0 resolution=32 depth=shallow" in rows[0]
    fixed = fit_json(folder, "law", "--where", "depth=full", "--form", "paper", "--predict", "width=1 resolution=32")
    assert fixed["predictions"][0]["params"]["depth"] == "full"


def test_suggestions_are_a_plan_that_run_reads(folder, tmp_path):
    plan = tmp_path / "next.yaml"
    done = call(folder, "fit", "law", "--form", "paper", "--suggest", 2, "-o", plan)
    assert done.returncode == 0, done.stderr
    assert "mean half-width of the predicted accuracy over the space's 24 networks" in done.stdout
    assert plan.read_text() == (
        "study: law\nform: paper\nnetworks:\n"
        "  - {width: 1.0, resolution: 20, depth: full}\n"
        "  - {width: 1.0, resolution: 32, depth: shallow}\n"
    )
    values, _ = read(plan)
    assert values["networks"][0] == {"width": 1.0, "resolution": 20, "depth": "full"}
    again = call(folder, "fit", "law", "--form", "paper", "--suggest", 1, "-o", plan)
    assert again.returncode == 2
    assert "next.yaml: exists already; replace it with --force, or name another with -o" in again.stderr
    assert call(folder, "fit", "law", "--form", "paper", "--suggest", 1, "-o", plan, "--force").returncode == 0
    assert plan.read_text().count("width") == 1
    found = fit_json(folder, "law", "--suggest", 3)["suggestion"]
    assert len(found["networks"]) == 3
    assert found["half_width_points_after"] < found["half_width_points_before"]


def test_a_page_is_one_file(folder, tmp_path):
    done = call(folder, "fit", "law", "--form", "power", "--x", "mult_adds", "--plot", tmp_path / "fit.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "fit.html").read_text()
    assert "error = " in text
    assert "Content-Security-Policy" in text
    assert f"written to {tmp_path / 'fit.html'}" in done.stderr


def test_what_did_not_finish_makes_a_selected_sample(folder):
    done = call(folder, "fit", "ended", "--form", "paper")
    text = "1 stopped early and 2 failed of 21 trials, so the 18 networks that are left are a selected sample"
    assert text in done.stderr
    assert "run with search.scheduler: none for a fit" in done.stderr
    assert "the sampling error of the validation images alone, a lower bound" in done.stdout
    suggested = fit_json(folder, "ended", "--form", "paper", "--suggest", 24)["suggestion"]["networks"]
    assert {"width": 1.0, "resolution": 32, "depth": "full"} in suggested, "a stopped trial goes on"
    assert {"width": 1.0, "resolution": 24, "depth": "full"} not in suggested, "it failed"
    assert len(suggested) == 5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["few", "--form", "power", "--x", "width"],
            "fit power: width has one value, 0.25, in the 2 finished networks",
        ),
        (
            ["few"],
            "no law can be fitted to the 2 finished networks; log_log of depth comes nearest: 2 finished networks and "
            "2 coefficients; at least 2 more are needed, since a fit to fewer than 4 says nothing of its error; "
            "train more; 15 other laws are refused too\n",
        ),
        (["flat"], "the errors do not vary: all 6 finished networks have the accuracy 90.00%, and there is nothing"),
        (["perfect", "--form", "paper"], "the errors do not vary: all 6 finished networks have the accuracy 100.00%"),
        (["few", "--form", "log_log", "--x", "params"], "at least 2 more are needed"),
        (
            ["fixed", "--form", "paper"],
            "fit paper: width has one value, 0.5, in the 6 finished networks, and 2 ",
        ),
        (["fixed", "--x", "width"], "fit log_log: width has one value, 0.5"),
        (["silent"], "study 'silent' has no accuracy in any of its 2 finished trials"),
        (["empty"], "study 'empty' has no finished trial to fit; train some: mnet-search resume empty"),
        (["law", "--form", "papre"], "unknown form 'papre'; did you mean paper? (known: power, log_linear, log_log"),
        (["law", "--x", "mult-adds"], "unknown variable 'mult-adds'; did you mean mult_adds?"),
        (
            ["law", "--where", "dept=full"],
            "--where dept=full: study 'law' has no parameter 'dept'; did you mean dep",
        ),
        (["law", "--where", "depth=deep"], "--where depth=deep: no trial has that value; trials have: shallow, full"),
        (["law", "--where", "depth"], "--where depth: write PARAMETER=VALUE, for example width=0.4"),
        (
            ["law", "--form", "paper", "--predict", "width=1"],
            "--predict 'width=1': resolution is missing; give resolution=VALUE too, one",
        ),
        (["law", "--predict", "width"], "--predict width: write PARAMETER=VALUE"),
        (["law", "--suggest", "0"], "--suggest 0: ask for 1 network or more"),
        (["law", "-o", "x.yaml"], "-o x.yaml: it takes suggestions; say how many by --suggest N"),
        (
            ["law", "--plot", "none/x.html"],
            "none/x.html: there is no folder 'none'; make it, or name another with --plot",
        ),
        (["law", "--plot", "x.png"], "--plot x.png: its ending says the form, and is .png; write .html"),
        (["law", "--suggest", "1", "-o", "x.html", "--plot", "./x.html"], "-o and --plot are one file, x.html; give"),
        (["lwa"], "no study 'lwa' in"),
    ],
)
def test_mistakes_are_answered_in_one_line(folder, arguments, text):
    done = call(folder, "fit", *arguments)
    assert done.returncode in (2, 3), done.stdout
    assert done.stderr.count("\n") == 1
    assert text in done.stderr
    assert done.stdout == ""


def test_one_width_is_no_trouble_where_nobody_asked_for_it(folder):
    found = fit_json(folder, "fixed")
    assert ("paper", ["resolution", "depth"]) in [(f["form"], f["variables"]) for f in found["fits"]]
    assert "width has one value, 0.5" in " ".join(r["reason"] for r in found["refused"])
