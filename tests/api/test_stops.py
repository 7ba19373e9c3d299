"""Stop strings found in pieces, against looking at the whole text character by character."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from penstock.api.stops import StopScanner

LETTERS = st.text("ab<", max_size=30)
STOPS = st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=4)


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The first end at which a stop string is complete; of those the longest."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            stop = max(done, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(LETTERS, STOPS, st.lists(st.integers(0, 30)), st.booleans())
def test_same_as_naive_however_the_text_is_cut(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    scanner = StopScanner(stops, include)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    shown = "".join(scanner.push(text[start:end]) for start, end in pairwise(edges))
    if scanner.found is None:
        shown += scanner.end()
    assert (shown, scanner.found) == naive(text, stops, include)


@given(LETTERS, STOPS)
def test_nothing_that_may_be_a_stop_is_shown_and_nothing_else_is_held(text: str, stops: list[str]) -> None:
    scanner = StopScanner(stops)
    shown = "".join(map(scanner.push, text))
    if scanner.found is None:
        held = text[len(shown) :]
        possible = [k for stop in stops for k in range(len(stop)) if text.endswith(stop[:k])]
        assert len(held) == max(possible)
