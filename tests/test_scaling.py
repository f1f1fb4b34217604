"""Scaling laws: published networks, laws that are known, intervals that cover, doubts that are justified."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.stats import t as student

from mnet_search.models.arch import MnetError
from mnet_search.models.complexity import costs
from mnet_search.models.families import create
from mnet_search.studies.fit_checks import doubts, explanations
from mnet_search.studies.laws import FORMS
from mnet_search.studies.least_squares import solve
from mnet_search.studies.observations import VARIABLES, observe
from mnet_search.studies.scaling import fit, fit_all

from published_mobilenets import ACCURACY, IMAGES, RESOLUTION, ROWS, WIDTH

WIDTHS = np.array([0.25, 0.35, 0.5, 0.6, 0.75, 0.9, 1.0, 1.25])


def published(**changes):
    found = [costs(create("mobilenet_v1", width=w, resolution=r)) for w, r, _ in ROWS]
    sizes = {"mult_adds": [c.mult_adds for c in found], "params": [c.params for c in found]}
    return observe(ACCURACY, {"width": WIDTH, "resolution": RESOLUTION, **sizes, **changes}, images=IMAGES)


def by_width(log_error, widths=WIDTHS, images=None, **more):
    return observe(1 - np.exp(log_error), {"width": widths, **more}, images=images)


def values(found):
    return [c.value for c in found.coefficients]


# ---------------------------------------------------------------- published networks


def test_the_papers_law_of_the_sixteen_released_mobilenets():
    found = fit(published(), "paper")
    assert found.r2 >= 0.99
    a, b, c = values(found)
    assert (a, b, c) == pytest.approx((-1.258, -0.393, -0.309), abs=0.005)
    assert found.equation == "ln(error) = -1.26 - 0.393 ln(width) - 0.309 ln(resolution / 224)"
    assert all(x.low < x.value < x.high for x in found.coefficients)
    assert found.coefficients[1].high < -0.3
    assert found.left_out.points < 1 < 9 < found.left_out.mean_points
    assert found.tau > 2 * found.observations.noise.max(), "50,000 images: what is left over is the law's own"
    span, jump = doubts(found)
    assert span == "resolution spans a factor of 1.75 (128 to 224), less than 2: its law is a local one"
    assert jump.startswith("the residuals differ by width (mean in ln(error): width=1 +0.018, width=0.25 +0.011, ")
    assert "the form does not follow width over its whole range (F = " in jump, "the authors' jump at width 0.25"


def test_the_same_networks_by_mult_adds_and_which_law_is_likeliest():
    fits, refused = fit_all(published())
    assert refused == []
    assert len(fits) == 13
    assert (fits[0].form_name, fits[0].variables) == ("paper", ("width", "resolution"))
    assert fits[0].aicc < fits[1].aicc - 10
    found = fit(published(), "log_log", "mult_adds")
    assert values(found) == pytest.approx([-1.274, -0.200], abs=0.005)
    assert found.r2 > 0.98
    assert found.equation == "ln(error) = -1.27 - 0.2 ln(mult_adds / 569 M)"
    power = fit(published(), "power", "mult_adds")
    assert power.equation == "error = 0.129 + 0.157 (mult_adds / 569 M)^-0.296"
    assert "the offset c, 0 to" in " ".join(doubts(power))


def test_networks_of_a_family_have_their_sizes():
    arch = create("mobilenet_v1", width=0.5, resolution=160)
    assert {name: variable.of(arch) for name, variable in VARIABLES.items()} == {
        "width": 0.5,
        "resolution": 160.0,
        "depth": 28.0,  # the paper's count: convolutions and the linear layer
        "mult_adds": float(costs(arch).mult_adds),
        "params": float(costs(arch).params),
    }


# ---------------------------------------------------------------- laws that are known


@settings(max_examples=20, deadline=None)
@given(a=st.floats(-2, -0.9), b=st.floats(-0.6, 0.3).filter(lambda v: abs(v) > 0.01))
def test_noiseless_logarithmic_laws_give_back_their_coefficients(a, b):
    assert values(fit(by_width(a + b * np.log(WIDTHS)), "log_log", "width", draws=100)) == pytest.approx([a, b])
    error = 0.4 + 0.3 * b * np.log(WIDTHS)
    assert values(fit(by_width(np.log(error)), "log_linear", "width", draws=100)) == pytest.approx([0.4, 0.3 * b])


@settings(max_examples=10, deadline=None)
@given(c=st.floats(0.02, 0.2), a=st.floats(0.02, 0.15), b=st.floats(0.2, 0.7))
def test_a_noiseless_power_law_gives_back_its_coefficients(c, a, b):
    sizes = np.geomspace(0.1, 1, 10)
    found = fit(by_width(np.log(c + a * sizes**-b), sizes), "power", "width", draws=100)
    assert values(found) == pytest.approx([c, a, b], rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(a=st.floats(-2, -1), b=st.floats(-0.5, 0.5), c=st.floats(-0.5, 0.5))
def test_a_noiseless_paper_law_gives_back_its_coefficients(a, b, c):
    width, resolution = np.array(WIDTH), np.array(RESOLUTION, dtype=float)
    log_error = a + b * np.log(width) + c * np.log(resolution / 224)
    assume(np.ptp(log_error) > 1e-6)
    observations = observe(1 - np.exp(log_error), {"width": width, "resolution": resolution})
    found = fit(observations, "paper", draws=100)
    assert values(found) == pytest.approx([a, b, c], abs=1e-6)
    assert found.references == (1.0, 224.0)


def test_depth_is_in_the_papers_law_where_it_varies():
    width, depth = np.tile([0.25, 0.5, 1.0], 4), np.repeat([18.0, 28.0], 6)
    resolution = np.tile(np.repeat([18.0, 32.0], 3), 2)
    log_error = -1 - 0.3 * np.log(width) - 0.2 * np.log(resolution / 32) + 0.1 * np.log(depth / 28)
    sizes = {"width": width, "resolution": resolution, "depth": depth}
    found = fit(observe(1 - np.exp(log_error), sizes), "paper")
    assert found.equation == "ln(error) = -1 - 0.3 ln(width) - 0.2 ln(resolution / 32) + 0.1 ln(depth / 28)"


def test_many_fits_at_once_are_those_of_scipy():
    rng = np.random.default_rng(0)
    logs = np.log(WIDTHS)[:, np.newaxis]
    y = np.log(0.05 + 0.25 * WIDTHS**-0.4) + rng.normal(0, 0.02, (6, len(WIDTHS)))
    weights = rng.uniform(1, 9, y.shape)
    model, lower = FORMS["power"].model(logs), np.array([0.0, -np.inf, -np.inf])
    start = np.tile([0.1, -1.5, 0.5], (6, 1))
    theta, loss = solve(model, y, weights, start, lower)
    assert (theta[:, 0] == 0).any(), "some of them lie on the bound"
    assert (theta[:, 0] > 0).any()
    for i in range(6):
        root = np.sqrt(weights[i])
        theirs = least_squares(
            lambda c, i=i, root=root: root * (y[i] - model(c[np.newaxis])[0][0]),
            start[i],
            bounds=(lower, np.inf),
            xtol=1e-14,
            ftol=1e-14,
            gtol=1e-14,
        )
        assert loss[i] == pytest.approx(2 * theirs.cost, rel=1e-6)


def test_leave_one_out_refits_without_each():
    log_error = -1.2 - 0.3 * np.log(WIDTHS) + 0.05 * np.random.default_rng(1).standard_normal(len(WIDTHS))
    found = fit(by_width(log_error), "log_log", "width")
    missed = []
    for i in range(len(WIDTHS)):
        kept = np.arange(len(WIDTHS)) != i
        slope, level = np.polyfit(np.log(WIDTHS[kept]), log_error[kept], 1)
        missed.append(level + slope * np.log(WIDTHS[i]) - log_error[i])
    assert found.left_out.log_error == pytest.approx(math.sqrt(np.mean(np.square(missed))))
    means = [np.delete(log_error, i).mean() - log_error[i] for i in range(len(WIDTHS))]
    assert found.left_out.mean_log_error == pytest.approx(math.sqrt(np.mean(np.square(means))))


def test_likelihood_and_spread_are_those_of_ordinary_least_squares_without_known_noise():
    log_error = -1.2 - 0.3 * np.log(WIDTHS) + 0.05 * np.random.default_rng(1).standard_normal(len(WIDTHS))
    found = fit(by_width(log_error), "log_log", "width", draws=20_000)
    n, rss = len(WIDTHS), float((found.residuals**2).sum())
    assert found.tau == pytest.approx(math.sqrt(rss / (n - 2)), rel=1e-3), "restricted: by degrees of freedom"
    aic = n * (math.log(2 * math.pi * rss / n) + 1) + 2 * 3
    assert found.aicc == pytest.approx(aic + 2 * 3 * 4 / (n - 4), rel=1e-4)
    x = np.log(WIDTHS)
    half = student.ppf(0.975, n - 2) * math.sqrt(rss / (n - 2) / ((x - x.mean()) ** 2).sum())
    b = found.coefficients[1]
    assert (b.value - b.low, b.high - b.value) == pytest.approx((half, half), rel=0.05), "Student's interval"


@pytest.mark.parametrize(("images", "spread"), [(None, 0.05), (2000, 0.02)])
def test_a_95_percent_interval_covers_the_truth(images, spread):
    rng = np.random.default_rng(7)
    truth = -1.0 - 0.3 * np.log(WIDTHS)
    covered, n = np.zeros(2), 200
    for seed in range(n):
        error = np.exp(truth + spread * rng.standard_normal(len(WIDTHS)))
        if images:
            error = rng.binomial(images, error) / images
        found = fit(by_width(np.log(error), images=images), "log_log", "width", draws=200, seed=seed)
        slope = found.coefficients[1]
        band = found.predict({"width": np.array([0.3])})
        inside = band.low[0] <= 1 - math.exp(-1.0 - 0.3 * math.log(0.3)) <= band.high[0]
        covered += [slope.low <= -0.3 <= slope.high, inside]
    assert (covered / n >= 0.90).all(), covered / n
    assert (covered / n <= 0.99).all(), covered / n


# ---------------------------------------------------------------- predictions


def test_one_run_varies_more_than_the_mean_and_far_away_is_less_sure():
    found = fit(published(), "paper")
    sizes = {"width": np.array([0.6, 3.0]), "resolution": np.array([200.0, 200.0])}
    band = found.predict(sizes)
    assert (band.run_low < band.low).all()
    assert (band.low < band.accuracy).all()
    assert (band.accuracy < band.high).all()
    assert (band.high < band.run_high).all()
    wide = (band.high - band.low) / (1 - band.accuracy)
    assert wide[1] > 2 * wide[0]
    assert band.accuracy == pytest.approx(1 - found.error(sizes))
    again = fit(published(), "paper").predict(sizes)
    assert (again.low == band.low).all(), "the same seed, the same interval"
    assert (fit(published(), "paper", seed=1).predict(sizes).low != band.low).all()
    with pytest.raises(MnetError, match="the law has width, resolution: give resolution too"):
        found.predict({"width": np.array([1.0])})


def test_a_line_that_falls_below_no_error_says_no_error():
    found = fit(by_width(np.log(0.3 - 0.1 * np.log(WIDTHS) + 0.01 * np.cos(WIDTHS * 9))), "log_linear", "width")
    band = found.predict({"width": np.array([100.0])})
    assert band.accuracy[0] == band.high[0] == pytest.approx(1.0)
    assert found.error({"width": np.array([100.0])})[0] < 1e-9


@settings(max_examples=6, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.sampled_from([None, 2, 1000]))
def test_whatever_the_accuracies_every_law_can_say_something(accuracies, images):
    sizes = {"width": WIDTHS, "resolution": np.tile([18, 32], 4), "mult_adds": WIDTHS**2 * 1e6}
    observations = observe(accuracies, sizes, images=images)
    if np.ptp(observations.log_error) < 1e-9:
        with pytest.raises(MnetError, match="the errors do not vary: all 8 finished networks have the accuracy "):
            fit_all(observations, draws=100)
        return
    for found in fit_all(observations, draws=100)[0]:
        band = found.predict({name: 3 * found.observations.variables[name] for name in found.variables})
        assert all(np.isfinite(v).all() for v in (band.accuracy, band.low, band.high, band.run_low, band.run_high))
        assert all(isinstance(doubt, str) for doubt in doubts(found))


def test_no_error_counts_as_half_an_image():
    found = observe([0.9, 1.0], {"width": [0.5, 1]}, images=100)
    assert np.exp(found.log_error) == pytest.approx([0.1, 0.005])
    assert found.noise == pytest.approx([0.3, math.sqrt(0.99)])
    assert observe([1.0], {"width": [1]}).noise.tolist() == [0.0]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("form", "x", "text"),
    [
        ("pover", None, r"unknown form 'pover'; did you mean power\? \(known: power, log_linear, log_log, paper"),
        ("power", "widht", r"unknown variable 'widht'; did you mean width\? \(known: width, resolution, depth, mult"),
        ("power", None, r"fit power: which variable\? give --x, one of width, resolution"),
        ("paper", "params", "fit paper: it has width, resolution, depth and no params; fit params by another form"),
        ("log_log", "depth", "fit log_log: not every network has a depth"),
    ],
)
def test_bad_names(form, x, text):
    with pytest.raises(MnetError, match=text):
        fit(published(), form, x)


def test_too_few_networks_and_values():
    three = observe([0.5, 0.6, 0.7], {"width": [0.25, 0.5, 1], "resolution": [32, 32, 32]})
    with pytest.raises(MnetError, match="fit power: 3 finished networks and 3 coefficients; at least 2 more are neede"):
        fit(three, "power", "width")
    with pytest.raises(
        MnetError,
        match="fit paper: resolution has one value, 32, in the 3 finished networks, and 2 different values or more are "
        "needed; train networks of another resolution, or fit what varies: --form log_log --x width",
    ):
        fit(three, "paper")
    with pytest.raises(MnetError, match="fit log_log: resolution has one value, 32"):
        fit(three, "log_log", "resolution")
    with pytest.raises(MnetError, match="--draws 50: the ends of a 95 % interval need 100 draws or more; try 500"):
        fit(published(), "paper", draws=50)
    two = observe([0.5, 0.6] * 3, {"width": [0.25, 0.5] * 3})
    with pytest.raises(MnetError, match=r"width has 2 different values, 0\.25, 0\.5, .* and 3 different values or mor"):
        fit(two, "power", "width")
    fits, refused = fit_all(three)
    assert fits == []
    assert [(r.form, r.variables) for r in refused][:2] == [("power", ("width",)), ("power", ("resolution",))]
    assert "width alone varies: see log_log" in [r.reason for r in refused]
    lacking = {(r.form, r.variables): r.lacking for r in refused}
    assert lacking["log_log", ("width",)] == 1, "a network"
    assert lacking["log_log", ("resolution",)] == 2, "and a value"
    assert lacking["power", ("width",)] == 2
    assert lacking["power", ("resolution",)] == 4


@pytest.mark.parametrize(
    ("accuracies", "images"), [([0.9] * 8, None), ([1.0] * 8, 100), ([0.999] * 4 + [1.0] * 4, 100)]
)
def test_errors_that_do_not_vary_are_refused(accuracies, images):
    same = observe(accuracies, {"width": WIDTHS}, images=images)
    with pytest.raises(
        MnetError, match=r"the errors do not vary: all 8 finished networks have the accuracy \d+\.\d+%, and"
    ):
        fit(same, "log_log", "width")
    with pytest.raises(
        MnetError, match="there is nothing to fit; train networks further apart in size, or on data that"
    ):
        fit_all(same)


def test_sizes_that_vary_together():
    width = np.array([0.25, 0.5, 0.75, 1.0, 1.25, 1.5])
    together = observe(np.linspace(0.5, 0.7, 6), {"width": width, "resolution": 32 * width})
    with pytest.raises(MnetError, match="fit paper: width and resolution vary together in these networks, so that"):
        fit(together, "paper")
    nearly = observe([0.5, 0.54, 0.6, 0.61, 0.68, 0.7], {"width": width, "resolution": [8, 17, 24, 33, 41, 47]})
    assert "width and resolution nearly vary together (correlation 1.00)" in " ".join(doubts(fit(nearly, "paper")))


@pytest.mark.parametrize("numbers", [[0.5, 1.2], [[0.5]], [0.5, math.nan]])
def test_accuracies_are_fractions(numbers):
    with pytest.raises(MnetError, match="accuracies are a list of fractions from 0 to 1"):
        observe(numbers, {"width": [1.0, 2.0]})
    with pytest.raises(MnetError, match=r"width: a scaling law needs one number above 0 for each of the 2 accuracies"):
        observe([0.5, 0.6], {"width": [1.0, 0.0]})


# ---------------------------------------------------------------- doubts


def said(found):
    return " | ".join(doubts(found))


def test_a_law_of_nothing_is_doubted():
    rng = np.random.default_rng(1)
    found = fit(by_width(-1 + 0.1 * rng.standard_normal(len(WIDTHS))), "log_log", "width")
    assert "holds 0: the networks show no effect of width" in said(found)
    assert "are predicted no better than by the mean of the others" in said(found)
    narrow = fit(by_width(-1 - 0.3 * np.log(WIDTHS / 2 + 1), WIDTHS / 2 + 1), "log_log", "width")
    assert "width spans a factor of 1.44 (1.125 to 1.625), less than 2" in said(narrow)


def test_an_offset_at_its_bound_is_doubted():
    rng = np.random.default_rng(0)
    bent_down = -1 - 0.3 * np.log(WIDTHS) - 0.2 * np.log(WIDTHS) ** 2 + 0.01 * rng.standard_normal(len(WIDTHS))
    assert "the offset c runs to its bound of 0" in said(fit(by_width(bent_down), "power", "width"))


def test_a_network_that_decides_alone_is_named():
    widths = np.array([0.5] * 5 + [1.0])
    found = fit(by_width(np.log([0.5, 0.51, 0.5, 0.49, 0.5, 0.4]), widths), "log_log", "width")
    assert found.left_out.n == 5
    assert "width=1 alone decides a coefficient" in said(found)
    assert "6 networks for 4 coefficients" not in said(found)


def test_few_networks_left_over_are_said():
    found = fit(by_width([-1, -1.1, -1.25, -1.27], np.array([0.25, 0.5, 0.75, 1.0])), "log_log", "width")
    assert "4 networks for 2 coefficients: 2 left over" in said(found)


def two_blocks(apart):
    """Eight widths of two blocks whose errors are `apart` in ln(error)."""
    rng = np.random.default_rng(3)
    width, block = np.tile(WIDTHS, 2), ["conv"] * 8 + ["separable"] * 8
    log_error = -1 - 0.3 * np.log(width) + apart * np.repeat([-0.5, 0.5], 8) + 0.01 * rng.standard_normal(16)
    parameters = {"width": width, "block": block}
    return fit(observe(1 - np.exp(log_error), {"width": width}, parameters=parameters), "log_log", "width")


def test_a_space_that_mixes_laws_is_told_by_which_parameter():
    found = two_blocks(0.2)
    assert "the residuals differ by block (mean in ln(error): block=separable +0." in said(found)
    assert "one law for all mixes several; fit each, as with --where block=conv (F = " in said(found)
    assert "differ by" not in said(two_blocks(0.0))


def test_structure_that_is_chance_is_seldom_called_structure():
    rng = np.random.default_rng(5)
    called = 0
    for seed in range(100):
        log_error = -1 - 0.3 * np.log(WIDTHS) + 0.05 * rng.standard_normal(len(WIDTHS))
        found = fit(by_width(log_error), "log_log", "width", draws=100, seed=seed)
        called += "the residuals" in said(found)
    assert called <= 5


def test_curvature_and_missing_variables_are_structure():
    rng = np.random.default_rng(0)
    bent = -1 - 0.3 * np.log(WIDTHS) + 0.3 * np.log(WIDTHS) ** 2 + 0.005 * rng.standard_normal(len(WIDTHS))
    assert "the residuals bend with width" in said(fit(by_width(bent), "log_log", "width"))
    found = fit(published(), "log_log", "width")
    assert {e.what: e.parameter for e in explanations(found)}["resolution"] is True
    assert "the residuals differ by resolution" in said(found) or "fall with resolution" in said(found)
