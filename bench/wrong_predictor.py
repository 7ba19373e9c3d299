"""What a wrong predictor does to a policy that reckons with it, and what the running correction makes good.

    python bench/wrong_predictor.py [--figure docs/figures/wrong_predictor.png] [--requests 600] [--repeat 4]

Simulated: Llama-3.1-8B on one H200 (composed step times, each step off by 10 % or so), lengths of the Azure
conversation trace of 2023, Poisson arrivals, TTFT within 1 s and TPOT within 15 ms. `paced` cuts chunks of prompts by
what it believes steps to take; `fcfs` cuts them at a fixed length. A repeat has the same lengths in another order at
other times; within one, all lines have the same requests and the same jitter. Prints the share of good requests for
each line and rate, with Student's 95 % interval over the repeats, and the rate up to which 90 % are good. About three
minutes on one core.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from penstock.core.config import ClusterConfig, InstanceConfig, Limits
from penstock.core.features import repeated
from penstock.core.slo import Slo
from penstock.core.step import Features, StepCost
from penstock.cost.models import Model, Scaled
from penstock.cost.named import resolve
from penstock.drivers.scenario import MemberConfig, SimConfig
from penstock.drivers.sim import Simulation
from penstock.metrics import plot
from penstock.metrics.confidence import Interval, student
from penstock.metrics.curves import crossing
from penstock.workload import lengths
from penstock.workload.arrivals import arrivals
from penstock.workload.request import Request

SLO = Slo.parse("ttft=1s,tpot=15ms")
RATES = (16.0, 18.0, 20.0, 22.0, 24.0)
TARGET = 0.9
#: Standard deviation of the logarithm of what a step takes over what its model says.
JITTER = 0.1
#: How much longer steps take from the middle of a run on, where reality changes.
SLOWER = 1.25
#: The first part of a run, in which the batch fills, is not counted.
WARMUP = 0.1
KV_PAGES = 50_000
#: Chunks of fcfs to compare with, beside the default; and their colours.
FIXED = {256: "#56b4e9", 512: "#0072b2", 1024: "#e69f00"}
NO_LIMIT = 1_000_000


class Reality:
    """What steps take: a model's word, some jitter that follows from the step's features alone, and a factor that may
    change while it runs."""

    def __init__(self, model: StepCost, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._model = model
        self._jitter: list[float] = rng.lognormal(-(JITTER**2) / 2, JITTER, 4096).tolist()
        self.times = 1.0

    def step_ns(self, features: Features) -> int:
        # Tuples of integers hash alike in every process; structs do not.
        jitter = self._jitter[hash((features.new, features.new_context)) % len(self._jitter)]
        return max(1, round(self._model.step_ns(features) * self.times * jitter))

    def steps_ns(self, first: Features, growth: int, count: int) -> npt.NDArray[np.int64]:
        return np.fromiter(map(self.step_ns, repeated(first, growth, count)), np.int64, count)

    interval_ns = step_ns


@dataclass(frozen=True, eq=False)
class Line:
    """A policy, and what it believes. Known by identity: models cannot be keys."""

    label: str
    style: str
    policy: str = "paced"
    chunk: int = 2048
    believes: Model | None = None
    correct: bool = True
    #: Whether steps take longer from the middle of the run on.
    changes: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines that are drawn together."""

    title: str
    lines: tuple[Line, ...]
    #: Where no curve is.
    legend: str = "lower left"


#: Line and rate -> share of good requests, one number a repeat.
Shares = dict[tuple[Line, float], list[float]]


def panels() -> list[Panel]:
    truth, other = resolve("h200/llama-3.1-8b").cost, resolve("a100/llama-3.1-8b").cost
    assert not isinstance(truth, Scaled)
    short, long = Scaled(truth, 0.8), Scaled(truth, 1.25)
    fcfs, right = (
        Line("fcfs, chunks of 2048", "#444444 - s", "fcfs"),
        Line("paced, right", "#009e73 - o", believes=truth),
    )
    fixed = [Line(f"fcfs, chunks of {n}", f"{colour} - s", "fcfs", n) for n, colour in FIXED.items()]
    return [
        Panel("paced and fixed chunks", (*fixed, fcfs, right)),
        Panel(
            "a predictor that is 20 % wrong",
            (
                fcfs,
                Line("believes 0.8 x, uncorrected", "#d55e00 - v", believes=short, correct=False),
                Line("believes 1.25 x, uncorrected", "#0072b2 - ^", believes=long, correct=False),
                Line("believes 0.8 x, corrected", "#d55e00 : v", believes=short),
                Line("believes 1.25 x, corrected", "#0072b2 : ^", believes=long),
                right,
            ),
        ),
        Panel(
            "steps become 25 % slower half way",
            (
                Line("fcfs, chunks of 2048", "#444444 - s", "fcfs", changes=True),
                Line("paced, uncorrected", "#d55e00 - v", believes=truth, correct=False, changes=True),
                Line("paced, corrected", "#d55e00 : v", believes=truth, changes=True),
            ),
        ),
        Panel(
            "the profile of another GPU (A100)",
            (
                fcfs,
                Line("believes an A100, uncorrected", "#cc79a7 - D", believes=other, correct=False),
                Line("believes an A100, corrected", "#cc79a7 : D", believes=other),
                right,
            ),
            legend="center left",
        ),
    ]


def main() -> int:
    args = _parse()
    plot.check()
    drawn = panels()
    lines = list(dict.fromkeys(line for panel in drawn for line in panel.lines))
    shares: Shares = {(line, rate): [] for line in lines for rate in RATES}
    for line, rate, seed in tqdm(
        _runs(lines, args.repeat), total=len(shares) * args.repeat, unit="run", leave=False, disable=None
    ):
        shares[line, rate].append(share(line, rate, seed, args.requests))
    print(table(drawn, shares))
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    draw(drawn, shares, args.figure)
    print(f"The figure is {args.figure}")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=Path("wrong_predictor.png"), metavar="PNG")
    parser.add_argument("--requests", type=int, default=600, help="of each run")
    parser.add_argument("--repeat", type=int, default=4, help="runs of each line and rate, with seeds from 1 on")
    return parser.parse_args()


def _runs(lines: Iterable[Line], repeats: int) -> Iterator[tuple[Line, float, int]]:
    return ((line, rate, seed) for seed in range(1, repeats + 1) for rate in RATES for line in lines)


def share(line: Line, rate: float, seed: int, count: int) -> float:
    """Of good requests in one run, warm-up left out."""
    requests = load(rate, seed, count)
    reality = Reality(resolve("h200/llama-3.1-8b").cost, seed)
    records = Simulation(_config(line), reality).run(requests, _Middle(line, requests, reality))
    counted = records[round(WARMUP * count) :]
    return sum(record.good(SLO) for record in counted) / len(counted)


def load(rate: float, seed: int, count: int) -> list[Request]:
    """Lengths are shuffled, not drawn anew, and times stretched to end at count / rate: what a run has to do does not
    depend on the seed, only when."""
    prompts, answers = lengths.draw("azure-conv-2023", count)
    times_s = arrivals("poisson", count, rate, seed=seed)
    times_s = times_s * (count / rate / times_s[-1])
    order = np.random.default_rng(seed).permutation(count)
    return [
        Request(arrival_s=at, prompt_tokens=prompt, output_tokens=answer, slo=SLO)
        for at, prompt, answer in zip(times_s.tolist(), prompts[order].tolist(), answers[order].tolist(), strict=True)
    ]


class _Middle:
    """Called at each arrival; half way, reality changes if the line says so."""

    def __init__(self, line: Line, requests: Sequence[Request], reality: Reality) -> None:
        self._left = len(requests) // 2 if line.changes else NO_LIMIT
        self._reality = reality

    def __call__(self) -> None:
        self._left -= 1
        if not self._left:
            self._reality.times = SLOWER


def _config(line: Line) -> SimConfig:
    limits = Limits(max_num_batched_tokens=line.chunk, max_num_queued=NO_LIMIT)
    instance = InstanceConfig(policy=line.policy, pages=KV_PAGES, limits=limits, correct=line.correct)
    member = MemberConfig(instance=instance, predictor=line.believes)
    cluster = ClusterConfig(policy=line.policy, max_num_queued=NO_LIMIT)
    return SimConfig(members=[member], cluster=cluster, every_token=False)


def table(drawn: Iterable[Panel], shares: Shares) -> str:
    """In Markdown, one table a panel."""
    rows = [f"Good requests (%), {SLO}, mean and half of the 95 % interval; 90 % good up to so many req/s."]
    for panel in drawn:
        rows += ["", f"| {panel.title} |" + "".join(f" {rate:g} req/s |" for rate in RATES) + " 90 % good up to |"]
        rows += ["|---|" + "---|" * (len(RATES) + 1)]
        for line in panel.lines:
            intervals = [student(shares[line, rate]) for rate in RATES]
            cells = "".join(f" {_said(interval)} |" for interval in intervals)
            rows += [f"| {line.label} |{cells} {_edge([interval.value for interval in intervals])} |"]
    return "\n".join(rows)


def _said(share: Interval) -> str:
    width = f" ± {100 * (share.value - share.low):.0f}" if share.low is not None else ""
    return f"{100 * share.value:.1f}{width}"


def _edge(values: Sequence[float]) -> str:
    at = crossing(list(zip(RATES, values, strict=True)), TARGET)
    if at is not None:
        return f"{at:.1f}"
    return f"below {RATES[0]:g}" if values[0] < TARGET else f"above {RATES[-1]:g}"


def draw(drawn: Sequence[Panel], shares: Shares, path: Path) -> None:
    """A PNG, two panels in a row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 8.2), layout="constrained")
    for axis, panel in zip(figure.subplots(2, 2, sharex=True, sharey=True).flat, drawn, strict=True):
        for line in panel.lines:
            _curve(axis, line, [student(shares[line, rate]) for rate in RATES])
        axis.axhline(100 * TARGET, color="#444444", linestyle="--", linewidth=0.8)
        axis.set(title=panel.title, ylim=(0, 104), xticks=RATES)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small", loc=panel.legend)
        axis.tick_params(labelbottom=True, labelleft=True)
    figure.supxlabel(
        "request rate (req/s), Llama-3.1-8B on one H200, simulated. Bands are 95 % confidence intervals; dashed: 90 %.",
        fontsize="medium",
    )
    figure.supylabel("requests with TTFT within 1 s and TPOT within 15 ms (%)", fontsize="medium")
    figure.savefig(path, dpi=110)


def _curve(axis: Any, line: Line, intervals: Sequence[Interval]) -> None:
    colour, dashes, mark = line.style.split()
    values = [100 * interval.value for interval in intervals]
    # Hollow and on top, since corrected lines lie upon the one that is right.
    corrected = dashes == ":"
    face, size = ("none", 9) if corrected else (colour, 5)
    axis.plot(
        RATES, values, color=colour, linestyle=dashes, marker=mark, markersize=size, markerfacecolor=face,
        label=line.label, zorder=3 if corrected else 2,
    )  # fmt: skip
    low = [100 * max(0.0, i.value if i.low is None else i.low) for i in intervals]
    high = [100 * min(1.0, i.value if i.high is None else i.high) for i in intervals]
    axis.fill_between(RATES, low, high, color=colour, alpha=0.1, linewidth=0)


if __name__ == "__main__":
    sys.exit(main())
