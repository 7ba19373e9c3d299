"""Joint lengths of prompts and outputs, kept as small tables of quantiles: fitted to a trace, drawn from again.

The prompt length's distribution is cut into bands, and each band has its own quantiles of the output length, since
the two depend on each other: templates with fixed prompts have their own answers. Between quantiles, lengths are
spread evenly.
"""

from itertools import pairwise

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]

#: Where the prompt length's distribution is cut into bands.
BANDS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.25, 0.35, 0.45, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1.0)
#: Quantiles of the output length that are kept for each band.
LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


class Joint(msgspec.Struct, frozen=True):
    """A table: prompt length in tokens at each of `bands`, and for each band output length at each of `levels`."""

    prompts: tuple[float, ...]
    outputs: tuple[tuple[float, ...], ...]
    bands: tuple[float, ...] = BANDS
    levels: tuple[float, ...] = LEVELS
    #: Pairs that are longer in all are drawn anew; None: there is no such bound.
    total_max: int | None = None

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """`count` prompt and output lengths in tokens."""
        prompts, outputs = self._at(rng.random(count), rng.random(count))
        while self.total_max and (again := np.flatnonzero(prompts + outputs > self.total_max)).size:
            prompts[again], outputs[again] = self._at(rng.random(again.size), rng.random(again.size))
        return prompts, outputs

    def _at(self, place: Array, level: Array) -> tuple[Tokens, Tokens]:
        band = np.searchsorted(self.bands, place, side="right") - 1
        outputs = np.empty(len(place))
        for row, table in enumerate(self.outputs):
            inside = band == row
            outputs[inside] = np.interp(level[inside], self.levels, table)
        return whole(np.interp(place, self.bands, self.prompts)), whole(outputs)


def fit(prompts: Array, outputs: Array, bands: tuple[float, ...] = BANDS, levels: tuple[float, ...] = LEVELS) -> Joint:
    """The table of the lengths in a trace."""
    edges = np.quantile(prompts, bands)
    return Joint(
        prompts=tuple(edges.tolist()),
        outputs=tuple(_band(prompts, outputs, low, high, levels) for low, high in pairwise(edges)),
        bands=bands,
        levels=levels,
    )


def whole(lengths: Array) -> Tokens:
    """Lengths as whole tokens, at least 1."""
    return np.maximum(1, np.rint(lengths)).astype(np.int64)


def _band(prompts: Array, outputs: Array, low: float, high: float, levels: tuple[float, ...]) -> tuple[float, ...]:
    inside = outputs[(prompts >= low) & (prompts <= high)]
    return tuple(np.round(np.quantile(inside, levels)).tolist())
