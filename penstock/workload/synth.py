"""Requests with the statistics of a real trace whose file is not at hand: `fit` a `Shape`, `draw` from it.

A shape is a rate per window, the burstiness within, and a table of lengths (`quantiles`). It knows nothing of
sessions and of which prompts are alike. `draw` against the trace it was fitted to (Azure 2023 conversation,
19,366 requests; drawn with seed 0):

                               mean    P10    P50    P90    P99
    prompt tokens, trace       1155    207   1020   2734   4142
    prompt tokens, drawn       1170    209   1016   2679   4139
    output tokens, trace        211     54    129    424    601
    output tokens, drawn        212     53    133    426    607
    gap in ms, trace            181     16    118    421    890
    gap in ms, drawn            179     15    118    421    897
"""

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.workload import quantiles
from penstock.workload.arrivals import unit_gaps
from penstock.workload.quantiles import Joint
from penstock.workload.request import Request

Array = npt.NDArray[np.float64]

WINDOW_S = 300.0


class Shape(msgspec.Struct, frozen=True):
    """Fitted parameters. `rates`: requests/s in one window of `WINDOW_S` after another, then again from
    the first."""

    rates: tuple[float, ...]
    #: Coefficient of variation of the gaps once the rate is made even.
    cv: float
    #: Prompt length in tokens at each of `quantiles.BANDS`.
    prompts: tuple[float, ...]
    #: For each band, output length in tokens at each of `quantiles.LEVELS`.
    outputs: tuple[tuple[float, ...], ...]

    @property
    def lengths(self) -> Joint:
        return Joint(self.prompts, self.outputs)


#: Fitted by `fit` to the Azure LLM inference trace of 2023, conversation (19,366 requests of one hour;
#: Azure/ AzurePublicDataset, CC-BY 4.0), described in Patel et al., Splitwise, ISCA 2024.
AZURE_CONV_2023 = Shape(
    rates=(4.817, 4.74, 5.19, 5.203, 6.28, 7.463, 7.43, 6.13, 5.67, 4.747, 4.323),
    cv=1.043,
    prompts=(
        2,
        91,
        181,
        207,
        372,
        396,
        414,
        984,
        1020,
        1071,
        1130,
        1315,
        1876.25,
        2734.5,
        4083,
        4098,
        4142,
        14050,
    ),
    outputs=(
        (16, 16, 98, 136, 164, 201, 237, 265),
        (11, 12, 91, 133, 192, 256, 383, 1000),
        (47, 74, 122, 164, 202, 223, 333, 1000),
        (14, 14, 44, 78, 138, 217, 217, 436),
        (7, 52, 71, 86, 98, 128, 157, 199),
        (25, 80, 90, 100, 115, 149, 179, 200),
        (10, 54, 88, 103, 348, 432, 562, 921),
        (29, 118, 393, 403, 424, 536, 619, 722),
        (33, 372, 394, 406, 428, 544, 667, 1000),
        (28, 363, 393, 407, 429, 569, 661, 1000),
        (26, 60, 181, 396, 417, 523, 643, 992),
        (24, 48, 78, 115, 173, 346, 477, 918),
        (15, 41, 66, 88, 115, 164, 201, 458),
        (17, 29, 42, 58, 93, 162, 299, 535),
        (17, 29, 41, 53, 73, 136, 228, 757),
        (25, 36, 47, 58, 75, 144, 230, 755),
        (26, 40, 62, 80, 112, 154, 191, 466),
    ),
)


def fit(requests: list[Request]) -> Shape:
    """The shape of a trace. Raises ValueError where it is shorter than one window."""
    times = np.array([r.arrival_s for r in requests])
    windows = int(times[-1] // WINDOW_S)
    if not windows:
        raise ValueError(f"a trace of {times[-1]:.0f} s cannot be fitted: it needs at least {WINDOW_S:.0f} s")
    counts = np.bincount((times // WINDOW_S).astype(int))[:windows]
    rates = counts / WINDOW_S
    gaps = np.diff(_warp(times[times < windows * WINDOW_S], rates))
    prompt = np.array([r.prompt_tokens for r in requests], float)
    output = np.array([r.output_tokens for r in requests], float)
    lengths = quantiles.fit(prompt, output)
    return Shape(
        rates=tuple(np.round(rates, 3).tolist()),
        cv=round(float(gaps.std() / gaps.mean()), 3),
        prompts=lengths.prompts,
        outputs=lengths.outputs,
    )


def draw(shape: Shape = AZURE_CONV_2023, count: int = 1000, seed: int = 0) -> list[Request]:
    """`count` requests of that shape, the first at 0 s."""
    even = np.cumsum(unit_gaps(count, shape.cv, seed))
    times = _unwarp(even - even[0], np.array(shape.rates))
    lengths = shape.lengths.draw(count, np.random.default_rng([seed, 2]))
    columns = (column.tolist() for column in (times, *lengths))
    return [Request(arrival_s=t, prompt_tokens=p, output_tokens=o) for t, p, o in zip(*columns, strict=True)]


def _warp(times: Array, rates: Array) -> Array:
    """Times on a clock that ticks once a request: the integral of the rate."""
    edges = np.arange(len(rates) + 1) * WINDOW_S
    return np.interp(times, edges, _integral(rates))


def _unwarp(even: Array, rates: Array) -> Array:
    """The inverse of `_warp`, over as many rounds of `rates` as it takes."""
    integral = _integral(rates)
    rounds, rest = np.divmod(even, integral[-1])
    edges = np.arange(len(rates) + 1) * WINDOW_S
    return np.asarray(rounds * edges[-1] + np.interp(rest, integral, edges))


def _integral(rates: Array) -> Array:
    return np.concatenate([[0.0], np.cumsum(rates * WINDOW_S)])
