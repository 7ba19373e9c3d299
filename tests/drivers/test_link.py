"""The shared link: bytes are conserved, equal shares, order, and a plain reference that moves a ns at a time."""

import random

import pytest

from penstock.core.slo import SECOND
from penstock.drivers.link import Link


def play(begins: list[tuple[int, int]], bytes_per_s: float) -> dict[int, int]:
    """Transfers of (begin ns, bytes), by number; when each ended."""
    link, ends, todo = Link(bytes_per_s), {}, sorted((at, number) for number, (at, _) in enumerate(begins))
    while todo or link.due() is not None:
        due = link.due()
        now = todo[0][0] if todo and (due is None or todo[0][0] <= due) else due
        assert now is not None
        ends |= dict.fromkeys(link.ended(now), now)
        while todo and todo[0][0] == now:
            number = todo.pop(0)[1]
            link.begin(number, begins[number][1], now)
    return ends


def reference(begins: list[tuple[int, int]], bytes_per_ns: int) -> dict[int, float]:
    """Between two events each transfer gets an equal part; exact for whole numbers of bytes a ns."""
    left: dict[int, float] = {}
    ends: dict[int, float] = {}
    todo = sorted((at, number) for number, (at, _) in enumerate(begins))
    now = 0.0
    while left or todo:
        least = min(left.values(), default=0.0) * len(left) / bytes_per_ns
        until = min([now + least] * bool(left) + [float(at) for at, _ in todo[:1]])
        left = {n: size - (until - now) * bytes_per_ns / len(left) for n, size in left.items()}
        now = until
        ends |= {n: now for n, size in left.items() if size < 1e-6}
        left = {n: size for n, size in left.items() if size >= 1e-6}
        while todo and todo[0][0] == now:
            number = todo.pop(0)[1]
            left[number] = begins[number][1]
    return ends


def test_alone_it_takes_size_over_bandwidth() -> None:
    assert play([(5, 10**9)], 2e9) == {0: 5 + SECOND // 2}


def test_two_at_once_take_twice_as_long_and_the_smaller_leaves_first() -> None:
    assert play([(0, 10**9), (0, 10**9)], 1e9) == {0: 2 * SECOND, 1: 2 * SECOND}
    assert play([(0, 10**9), (0, 3 * 10**9)], 1e9) == {0: 2 * SECOND, 1: 4 * SECOND}


def test_who_comes_later_takes_half_from_then_on() -> None:
    assert play([(0, 10**9), (SECOND // 2, 10**9)], 1e9) == {0: SECOND * 3 // 2, 1: 2 * SECOND}


@pytest.mark.parametrize("seed", range(20))
def test_as_the_reference_and_never_more_than_the_bandwidth(seed: int) -> None:
    draw = random.Random(seed)
    begins = [(draw.randrange(10**6), draw.randrange(1, 10**7)) for _ in range(draw.randrange(1, 15))]
    ends, expected = play(begins, 8e9), reference(begins, 8)
    assert ends.keys() == expected.keys()
    assert all(abs(ends[n] - expected[n]) <= 2 * len(begins) for n in ends)
    for number, (begin, size) in enumerate(begins):
        through = [n for n, end in ends.items() if end <= ends[number] and begins[n][0] >= begin]
        assert sum(begins[n][1] for n in through) <= (ends[number] - begin + 2 * len(begins)) * 8
        assert ends[number] - begin >= size // 8


def test_of_two_that_begin_together_the_larger_never_ends_first() -> None:
    draw = random.Random(0)
    sizes = [draw.randrange(1, 10**6) for _ in range(50)]
    ends = play([(0, size) for size in sizes], 3e9)
    by_size = sorted(range(50), key=lambda n: sizes[n])
    assert [ends[n] for n in by_size] == sorted(ends.values())


def test_a_link_of_no_bandwidth_takes_no_time() -> None:
    assert play([(7, 10**12), (7, 1), (9, 5)], 0) == {0: 7, 1: 7, 2: 9}


@pytest.mark.parametrize("bytes_per_s", [7.0, 1e3, 123.4e9])
def test_what_is_due_has_ended(bytes_per_s: float) -> None:
    """However slow the link and large the transfer: else nobody would ask again."""
    ends = play([(n, 10**11 + n) for n in range(5)], bytes_per_s)
    assert len(ends) == 5


def test_negative_bandwidth_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Link(-1.0)
