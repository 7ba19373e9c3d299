"""What the duration of a step depends on, worked out."""

from collections.abc import Iterable, Iterator

import msgspec

from penstock.core.step import Features, Slice

NO_FEATURES = Features(0, 0, 0, 0)


def features(slices: Iterable[Slice]) -> Features:
    """The features of a step, in one pass."""
    new = area = decodes = context = prompts = 0
    for piece in slices:
        count, start = piece.count, piece.start
        if count == 1:
            decodes += 1
            context += start + 1
        else:
            prompts += 1
            new += count
            area += count * start + (count * (count + 1) >> 1)
    return Features(new + decodes, area + context, decodes, context, prompts)


def repeated(first: Features, growth: int, count: int) -> Iterator[Features]:
    """Features of `count` steps that repeat one plan, each slice of it moving on by its own length.

    `growth` is how much `new_context` grows from one to the next: the sum of count x count over the slices.
    """
    new, area, decodes, context, prompts = msgspec.structs.astuple(first)
    for _ in range(count):
        yield Features(new, area, decodes, context, prompts)
        area += growth
        context += decodes
