"""Draws a trace: arrivals over time, and the distributions of gaps and lengths. Needs matplotlib (extra `plot`)."""

from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.workload.request import Request

_PROMPT, _OUTPUT, _LINE = "#2a7f62", "#e08e1b", "#444444"
#: A curve over time has at most so many points, a cloud at most so many dots.
_POINTS, _DOTS = 240, 20_000
_STEPS_S = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 21_600, 86_400)


def plot(requests: list[Request], path: str, *, title: str) -> None:
    """Write a PNG of four panels. The caller has made sure that there is matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    (rate, gaps), (lengths, cloud) = figure.subplots(2, 2)
    times = np.array([r.arrival_s for r in requests])
    prompts = np.array([r.prompt_tokens for r in requests])
    outputs = np.array([r.output_tokens for r in requests])
    _rate(rate, times - times[0])
    _gaps(gaps, np.diff(times))
    for values, colour, name in ((prompts, _PROMPT, "prompt"), (outputs, _OUTPUT, "output")):
        _cumulative(lengths, values, colour, name)
    lengths.set(xscale="log", xlabel="tokens, at most", ylabel="% of requests", ylim=(0, 101), title="Lengths")
    lengths.legend(loc="upper left")
    few = slice(None, None, -(-len(times) // _DOTS))
    cloud.plot(prompts[few], outputs[few], ".", color=_LINE, markersize=2, alpha=0.3)
    cloud.set(xscale="log", yscale="log", xlabel="prompt tokens", ylabel="output tokens", title="Answer by prompt")
    for axis in (rate, gaps, lengths, cloud):
        axis.grid(alpha=0.3)
    figure.suptitle(title, x=0.02, ha="left")
    figure.savefig(path, dpi=110)


def _rate(axis: Any, times: npt.NDArray[np.float64]) -> None:
    step_s = next((s for s in _STEPS_S if times[-1] / s <= _POINTS), _STEPS_S[-1])
    counts = np.bincount((times // step_s).astype(int))
    axis.stairs(counts / step_s, np.arange(len(counts) + 1) * step_s / 60, color=_PROMPT, fill=True, alpha=0.6)
    axis.set(xlabel="minutes after the first arrival", ylabel="requests/s", title=f"Arrivals, {step_s} s a step")


def _gaps(axis: Any, gaps: npt.NDArray[np.float64]) -> None:
    """On a scale where a Poisson process is a straight line."""
    if len(gaps) and (mean_s := float(gaps.mean())):
        some = np.sort(gaps)
        above = 1 - np.arange(len(some)) / len(some)
        axis.plot(some, above, color=_PROMPT, drawstyle="steps-post", label="trace")
        line = np.linspace(0, min(some[-1], mean_s * np.log(2 * len(some))), 50)
        axis.plot(line, np.exp(-line / mean_s), color=_LINE, linestyle="--", linewidth=1, label="Poisson of its rate")
        axis.legend(loc="upper right")
    axis.set(yscale="log", xlabel="gap in s, at least", ylabel="share of gaps", title="Gaps between arrivals")


def _cumulative(axis: Any, values: npt.NDArray[np.int64], colour: str, name: str) -> None:
    some = np.sort(values)
    share = 100 * np.arange(1, len(some) + 1) / len(some)
    axis.plot(some, share, color=colour, drawstyle="steps-post", label=f"{name}, mean {values.mean():,.0f}")
