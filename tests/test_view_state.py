"""The state of the page in its address: whatever it is, it comes back; what makes no sense is left out and said."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mnet_search.dashboards.view_state import MOST_QUERY, OPTIONS, THEMES, Brush, ViewState, from_query, to_query

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
ranges = st.tuples(numbers, numbers).map(lambda pair: (min(pair), max(pair)))
brushes = st.builds(Brush, st.lists(ranges, max_size=3).map(tuple), st.lists(words, max_size=3).map(tuple)).filter(
    lambda brush: brush.ranges or brush.values
)
states = st.builds(
    ViewState,
    study=st.just("") | words,
    view=st.just("") | words,
    trials=st.lists(st.integers(0, 99_999), unique=True, max_size=5).map(tuple),
    options=st.dictionaries(st.sampled_from(OPTIONS), words, max_size=4),
    maxima=st.dictionaries(words, numbers, max_size=3),
    brush=st.dictionaries(words, brushes, max_size=3),
    theme=st.sampled_from(("", *THEMES)),
)


@given(states)
def test_a_state_comes_back_from_its_address(state):
    assert from_query(to_query(state)) == (state, ())


@given(st.text(max_size=60))
def test_no_address_is_an_error(query):
    state, problems = from_query(query)
    assert from_query(to_query(state))[0] == state
    assert all(isinstance(problem, str) for problem in problems)


def test_an_address_as_people_read_it():
    state = ViewState(
        "cifar 10", "pareto", (3, 7), {"y": "accuracy", "x": "params"}, {"params": 50_000.0},
        {"param.width": Brush(((0.25, 0.5),)), "param.block": Brush((), ("separable", "a.b,c"))}, "dark",
    )  # fmt: skip
    assert to_query(state) == (
        "?study=cifar%2010&view=pareto&x=params&y=accuracy&max.params=50000&brush.param.width=0.25..0.5"
        "&brush.param.block=separable,a%252Eb%252Cc&trials=3,7&theme=dark"
    )
    assert from_query("max.params=50k")[0].maxima == {"params": 50_000.0}


def test_what_is_broken_is_left_out_and_said():
    state, problems = from_query(
        "?view=pareto&foo=1&max.params=abc&brush.width=3..1&trials=1,x,2,3,4,5,6&theme=pink&x="
    )
    assert state == ViewState(view="pareto", trials=(1, 2, 3, 4, 5))
    assert problems == (
        "foo=1 means nothing here: left out",
        "max.params=abc is no number, such as 50k: left out",
        "brush.width=3..1 is no range, such as 0.25..0.5: left out",
        "trials=1,x,2,3,4,5,6: trials are whole numbers with commas between",
        "6 trials asked for: the first 5 are shown",
        "theme=pink means nothing here: left out",
    )
    assert from_query("x" * (MOST_QUERY + 1))[1] == ("the address has 8,001 characters, more than 8,000: left out",)


def test_another_view_keeps_the_filters_and_not_the_options():
    state = ViewState("s", "pareto", (1,), {"x": "params"}, {"params": 5.0}, {"a": Brush(values=("b",))}, "dark")
    assert state.to("trial", 4) == ViewState(
        "s", "trial", (4,), {}, {"params": 5.0}, {"a": Brush(values=("b",))}, "dark"
    )
    assert state.having(x="", y="accuracy").options == {"y": "accuracy"}
