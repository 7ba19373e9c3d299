"""Which steps are worth measuring: prompts, decoding, and both at once, over the sizes that serving meets.

A step is groups (jobs, start, count): so many jobs that each execute positions [start, start + count). The order is
such that the first few are spread over the whole: whoever stops early can still fit something.
"""

from collections.abc import Iterable, Sequence

from penstock.core.step import Features

#: Jobs, positions before the step, positions in it; of one position is decoding.
Group = tuple[int, int, int]
Step = tuple[Group, ...]

#: name -> (prompt lengths, positions before them, prompts in a step; batches, contexts; batches of mixed steps, chunks)
GRIDS: dict[str, tuple[Sequence[int], ...]] = {
    "coarse": (
        (8, 32, 64, 128, 256, 512), (512,), (4,),
        (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128), (128, 768),
        (4, 16, 48), (32, 128, 384),
    ),
    "default": (
        (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048), (512, 2048), (2, 4, 16),
        (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256), (64, 512, 2048),
        (1, 4, 16, 48, 128), (16, 64, 128, 256, 512, 1024),
    ),
    "fine": (
        (*range(2, 33, 2), *range(36, 65, 4), *range(72, 129, 8), *range(144, 257, 16), *range(320, 1025, 64),
         *range(1280, 2049, 256)), (256, 1024, 2048), (2, 3, 4, 8, 16, 32),
        (*range(1, 33), *range(36, 65, 4), *range(72, 129, 8), *range(160, 257, 32)), (64, 256, 1024, 2048, 3584),
        (1, 2, 4, 8, 16, 32, 64, 128), (8, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536),
    ),
}  # fmt: skip
NAMES = (*GRIDS, "decode", "prefill")


def steps(name: str, tokens_max: int) -> list[Step]:
    """The steps of a grid, of at most so many positions each. `decode` and `prefill` are parts of the default one."""
    lengths, starts, prompts, batches, contexts, mixed, chunks = GRIDS.get(name, GRIDS["default"])
    alone: list[Step] = [((1, 0, n),) for n in lengths]
    alone += [((1, start, n),) for start in starts for n in lengths]
    alone += [((many, 0, n),) for many in prompts for n in lengths if many * n <= max(lengths)]
    alone += [((1, 0, 2 * max(lengths)),)]
    decoding: list[Step] = [((batch, context, 1),) for context in contexts for batch in batches]
    both: list[Step] = [
        ((batch, contexts[(i + j) % len(contexts)], 1), (1, 0 if (i + j) % 3 else starts[0], n))
        for i, batch in enumerate(mixed)
        for j, n in enumerate(chunks)
    ]
    families = {"prefill": (alone,), "decode": (decoding,)}.get(name, (alone, decoding, both))
    return _interleaved([[step for step in family if size(step) <= tokens_max] for family in families])


def size(step: Step) -> int:
    """Positions that the step executes."""
    return sum(jobs * count for jobs, _, count in step)


def features(step: Step) -> Features:
    """What `core.step.features` says of the plan."""
    area = sum(jobs * (count * start + count * (count + 1) // 2) for jobs, start, count in step)
    decodes = sum(jobs for jobs, _, count in step if count == 1)
    context = sum(jobs * (start + 1) for jobs, start, count in step if count == 1)
    return Features(size(step), area, decodes, context, sum(jobs for jobs, _, count in step if count > 1))


def said(step: Step) -> str:
    """A step for people: `16 x 1 after 128, 1 x 384`."""
    return ", ".join(f"{jobs} x {count}" + (f" after {start}" if start else "") for jobs, start, count in step)


def _interleaved(families: Iterable[list[Step]]) -> list[Step]:
    """Each family in an order that spreads, and all of them side by side."""
    placed = [
        ((at + 0.5) / len(family), i, step)
        for i, family in enumerate(families)
        for at, step in enumerate(_spread(sorted(family, key=lambda s: (size(s), s))))
    ]
    return list(dict.fromkeys(step for _, _, step in sorted(placed)))


def _spread(family: list[Step]) -> list[Step]:
    """The last, then the rest as the bits of their places read backwards: first, middle, quarters, ..."""
    bits = max(1, (len(family) - 1).bit_length())
    order = sorted(range(len(family) - 1), key=lambda at: int(f"{at:0{bits}b}"[::-1], 2))
    return family[-1:] + [family[at] for at in order]
