"""What a law says of networks that are not trained, and which of them are worth training next."""

from __future__ import annotations

import numpy as np
import pytest

from mnet_search.models.arch import MnetError
from mnet_search.spaces.space import make_space
from mnet_search.spaces.yamlfile import Source
from mnet_search.studies.next_runs import Network, assignment, columns, outside, space_networks, suggest
from mnet_search.studies.observations import observe
from mnet_search.studies.scaling import fit

SPACE = {
    "family": "mobilenet_v1",
    "parameters": {
        "width": [0.25, 0.5, 0.75, 1.0],
        "resolution": {"min": 20, "max": 32, "step": 4},
        "block": ["separable", "inverted_residual"],
        "expand": {"values": [2, 4], "when": {"block": "inverted_residual"}},
        "stem_stride": 2,
    },
    "objectives": {"accuracy": "maximize", "params": "minimize"},
}


def space_of(**changes):
    return make_space("small", SPACE | changes, Source("small.yaml")).for_data(classes=10, in_channels=1)


def law(widths=(0.25, 0.3, 0.35, 0.4, 0.5), seed=0):
    width = np.array(widths)
    noise = 0.02 * np.random.default_rng(seed).standard_normal(len(width))
    return fit(observe(1 - np.exp(-1 - 0.3 * np.log(width) + noise), {"width": width}), "log_log", "width")


def networks_of(widths):
    return [Network({"width": w}, f"arch{w}", f"arch{w}", {"width": w}) for w in widths]


def test_the_first_suggestion_is_the_best_of_all_single_ones():
    found, everywhere = law(), networks_of([0.25, 0.4, 0.6, 0.8, 1.0, 1.2])
    chosen = suggest(found, everywhere, (), 1)
    error = found.error(columns(everywhere, ["width"]))
    slope = np.column_stack([np.ones(6), np.log([n.sizes["width"] for n in everywhere])])
    information = np.linalg.inv(found.covariance())

    def mean_variance(row):
        with_it = np.linalg.inv(information + np.outer(row, row) / found.tau**2)
        return np.mean(error**2 * np.einsum("ni,ij,nj->n", slope, with_it, slope))

    best = int(np.argmin([mean_variance(row) for row in slope]))
    assert chosen.networks == (everywhere[best],)
    assert chosen.networks[0].sizes["width"] == 1.2, "far from what is trained"
    assert chosen.points_after < chosen.points_before


def test_more_suggestions_shrink_it_further_and_taken_ones_are_left_out():
    found, everywhere = law(), networks_of([0.25, 0.4, 0.6, 0.8, 1.0, 1.2])
    widths = [[n.sizes["width"] for n in suggest(found, everywhere, (), n).networks] for n in (1, 2, 6, 9)]
    assert widths[1][0] == widths[0][0]
    assert (len(widths[2]), widths[3]) == (6, widths[2])
    after = [suggest(found, everywhere, (), n).points_after for n in (1, 2, 3)]
    assert after == sorted(after, reverse=True)
    free = suggest(found, everywhere, {"arch1.2", "arch1.0"}, 1)
    assert free.networks[0].sizes["width"] == 0.8
    with pytest.raises(MnetError, match="every network of the space within its budgets is trained or being trained"):
        suggest(found, everywhere, {n.key for n in everywhere}, 1)
    with pytest.raises(MnetError, match="--suggest 0: ask for 1 network or more"):
        suggest(found, everywhere, (), 0)


def test_what_is_expected_is_what_comes():
    """The half-width after training what was suggested, at the mean over many worlds, is about what was said."""
    everywhere = networks_of([0.25, 0.5, 0.75, 1.0])
    said, came = [], []
    for seed in range(40):
        before = law(tuple(np.linspace(0.25, 0.6, 12)), seed)
        plan = suggest(before, everywhere, (), 3)
        widths = (*np.linspace(0.25, 0.6, 12), *(n.sizes["width"] for n in plan.networks))
        said.append(plan.points_after)
        came.append(suggest(law(widths, seed), everywhere, (), 1).points_before)
    assert np.mean(came) == pytest.approx(np.mean(said), rel=0.15)


def test_networks_of_a_space():
    every = space_networks(space_of(), ["width", "mult_adds"], {})
    assert len(every) == 4 * 4 * 3
    assert {n.sizes["width"] for n in every} == {0.25, 0.5, 0.75, 1.0}
    assert len(space_networks(space_of(), ["width"], {"block": "separable", "width": 0.5})) == 4
    assert len(space_networks(space_of(), ["width"], {"family": "mobilenet_v1", "expand": 2})) == 16
    few = space_networks(space_of(constraints={"params": {"max": "250k"}}), ["params"], {"block": "separable"})
    assert {n.params["width"] for n in few} == {0.25}
    assert all(n.sizes["params"] <= 250_000 for n in few)


def test_a_number_may_lie_outside_the_lists():
    space = space_of()
    found = assignment(space, {"width": 0.4, "resolution": 40, "block": "separable"}, {})
    assert found == {"width": 0.4, "resolution": 40, "block": "separable", "stem_stride": 2}
    assert space.arch(found).input.height == 40
    given = assignment(space, {"width": 1}, {"block": "inverted_residual", "resolution": 20, "expand": 4})
    assert given == {"width": 1.0, "resolution": 20, "block": "inverted_residual", "expand": 4, "stem_stride": 2}
    assert outside(law(), {"width": 0.4}) == ()
    assert outside(law(), {"width": 0.75}) == ("width 0.75 is outside the trained range (0.25 to 0.5)",)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"widht": 1}, r"the space has no parameter 'widht'; did you mean width\? \(it has: width, resolution, block"),
        ({"width": 1}, "resolution is missing; give resolution=VALUE too, one of 20, 24, 28, 32"),
        (
            {"width": 1, "resolution": 20, "block": "conv"},
            "block=conv is not possible; its values are sep",
        ),
        ({"width": 1, "resolution": 20, "block": 3}, "block=3 is not possible"),
        ({"width": "wide"}, r"width=wide is not possible; its values are 0\.25, 0\.5"),
        (
            {"width": 1, "resolution": 20, "block": "separable", "expand": 2},
            "expand=2: it exists only where block=inverted_residual",
        ),
    ],
)
def test_assignments_that_are_none(given, text):
    with pytest.raises(MnetError, match=text):
        assignment(space_of(), given, {})
