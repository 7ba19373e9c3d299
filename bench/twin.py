"""Does the twin tell the truth? Live runs beside simulated ones: errors of every latency, and of the SLO's attainment.

    python bench/twin.py [--models demo llama] [--seconds 40] [--json results/twin.json]

Two models, requests as a Poisson process of random lengths and as the Azure 2023 conversation trace (from the file with
--trace, else synthesized to match it), each at three loads: light, at the knee, overloaded. For every cell the same
requests are served live twice (other words, so that no prefix is found again) and simulated once. Between the cells
runs another load, from idle to too much, and what the twin knows of the live server is what the log says of that: step
times, fitted together with a profile, and what messages take. It has not seen the runs that it is compared with.

A second table has the twin once more with the step times of the very run: what is left there is not the machine's speed
of that minute.

The machine has a noise of its own: the second live run against the first. Bars: TPOT median 5 %, TTFT median 10 %, P99
of both 20 %, attainment 3 points; where the noise is larger, 1.5 times the noise is the bar.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from server_process import ServerProcess
from vs_vllm import make_checkpoint

from penstock.core.commands import Run
from penstock.core.config import InstanceConfig
from penstock.core.events import StepDone, Submitted
from penstock.core.features import features
from penstock.core.slo import Slo
from penstock.core.step import Features
from penstock.cost.fitting import of_steps
from penstock.cost.profile import Profile
from penstock.drivers import log
from penstock.drivers.scenario import Delays, alike
from penstock.drivers.sim import Simulation
from penstock.metrics import result
from penstock.metrics.record import COMPLETED, Record
from penstock.metrics.summary import summarize
from penstock.workload.trace import Request

OUT = Path("results/twin")
Row = dict[str, Any]
#: Metric -> the most that the twin may be off: relative, and for attainment absolute.
BARS = {"tpot median": 0.05, "ttft median": 0.10, "tpot p99": 0.20, "ttft p99": 0.20, "attainment": 0.03}
LOADS = {"light": 0.3, "knee": 0.6, "overloaded": 1.3}
#: The load between the cells: parts of the same, one after the other; then many at once, for steps as full as those of
#: an overloaded server.
PARTS = (0.2, 0.6, 1.2)
#: The first so many of these are no more than the front can bear.
BEARABLE = 2
CELLS = [(kind, name) for kind in ("poisson", "azure") for name in LOADS]


@dataclass(frozen=True)
class Case:
    """A model, and lengths that suit its speed."""

    name: str
    flags: tuple[str, ...]
    #: Prompt and output tokens of random requests.
    prompt: int
    output: int
    #: What lengths of the trace are multiplied by.
    length_scale: float
    slo: str
    #: Requests that are sent at once: to find out how many it serves in a second, and to end the load between.
    burst: int
    #: Of arrivals in each run, and in each part of the load between.
    run_s: float
    part_s: float

    def counts(self, rate: float) -> list[int]:
        """Requests of each part of the load between, where it serves `rate` random ones per second at most."""
        return [max(4, round(rate * part * self.part_s)) for part in PARTS]


CASES = {
    "demo": Case("demo", (), 200, 40, 1 / 6, "ttft=100ms,tpot=10ms", 160, 20.0, 3.0),
    "llama": Case("llama-0.29b", (str(OUT / "llama-0.29b"),), 96, 20, 1 / 12, "ttft=2s,tpot=150ms", 32, 60.0, 7.0),
}


@dataclass
class Job:
    """When a job arrived at the home and at the core, how long its prompt is, and when its first token came there."""

    arrival_ns: int
    core_ns: int
    prompt_tokens: int
    #: Names of its blocks: prompts that have something in common have some of these in common.
    keys: tuple[int, ...]
    first_ns: int = 0


@dataclass
class Seen:
    """What a log of an instance says of time."""

    config: InstanceConfig
    #: (when it ended, features, ns)
    steps: list[tuple[int, Features, int]] = field(default_factory=list)
    jobs: dict[int, Job] = field(default_factory=dict)

    def between(self, *spans: tuple[int, int]) -> list[tuple[Features, int]]:
        """The steps that ended in one of these spans of time, and how long they took."""
        return [(found, ns) for at, found, ns in self.steps if any(start <= at <= end for start, end in spans)]


def main() -> int:
    args = _parse()
    OUT.mkdir(parents=True, exist_ok=True)
    make_checkpoint(OUT / "llama-0.29b")
    rows: list[Row] = []
    for name in args.models:
        if not args.judge:
            serve(CASES[name], args)
        rows += judge(CASES[name])
    args.json.write_text(json.dumps({"bars": BARS, "cells": rows}, indent=1))
    print("\n" + table(rows))
    print(f"Every number is in {args.json}, every request in {OUT}.")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--trace", type=Path, help="the Azure 2023 conversation trace")
    parser.add_argument("--judge", action="store_true", help="serve nothing: simulate and judge what was served before")
    parser.add_argument("--json", type=Path, default=Path("results/twin.json"))
    return parser.parse_args()


def serve(case: Case, args: argparse.Namespace) -> None:
    """Profile a model, serve all its cells, and the load between them. Leaves files."""
    profile = [sys.executable, "-m", "penstock.cli.main", "profile", *case.flags, "--grid", "coarse"]
    subprocess.run([*profile, "--out", str(OUT / f"{case.name}.sqlite")], check=True)
    with ServerProcess(*case.flags, "--served-model-name", "m", "--record", str(OUT / f"{case.name}.log")) as server:
        load = Load(case, server.url, args)
        between = [load.calibrate(0)]
        for kind, name in CELLS:
            for turn in (0, 1):
                load.cell(kind, name, LOADS[name], turn)
                between.append(load.calibrate(len(between)))
        time.sleep(1.5)  # The log is flushed once a second.
    (OUT / f"{case.name}.served.json").write_bytes(msgspec.json.encode(Served(load.rates, between)))


def judge(case: Case) -> Iterator[Row]:
    """Simulate what was served, and measure all three."""
    served = msgspec.json.decode((OUT / f"{case.name}.served.json").read_bytes(), type=Served)
    seen = read(OUT / f"{case.name}.log.instance0")
    for number, (kind, name) in enumerate(CELLS):
        lived = [result.load(OUT / f"{case.name}-{kind}-{name}-{turn}.json").records for turn in (0, 1)]
        bearable = sum(case.counts(served.rates["poisson"])[:BEARABLE])
        windows = [
            Window(*served.between[i], _sent(f"{case.name}-calibrate-{i}"), bearable)
            for i in (2 * number, 2 * number + 1)
        ]
        run = windows[0].end_ns, windows[1].start_ns
        asked = requests(seen, run, lived[0])
        delays, about = messages(seen, windows)
        profile = measured(OUT / f"{case.name}.sqlite")
        fitted = of_steps(seen.between(*((w.start_ns, w.end_ns) for w in windows)), profile)
        own = of_steps(seen.between(run), profile)
        twin, told = (
            Simulation(alike(seen.config, delays=delays), cost).run(asked) for cost in (fitted.cost, own.cost)
        )
        over = {f"over_{name}": value for name, value in fitted.cost.regimes.items()}
        yield {
            "model": case.name, "arrivals": kind, "load": name, "requests": len(lived[0]), "slo": case.slo,
            "rate": round(served.rates[kind] * LOADS[name], 3),
            **about, "steps": fitted.steps, "fit_error": fitted.mean, **over,
            "live": measure(lived[0], case.slo), "again": measure(lived[1], case.slo),
            "twin": measure(twin, case.slo), "told": measure(told, case.slo),
        }  # fmt: skip


def _sent(name: str) -> list[Record]:
    return sorted(result.load(OUT / f"{name}.json").records, key=lambda r: r.sent_ns)


class Served(msgspec.Struct):
    """What must be known of a model's runs beside their files."""

    #: Arrivals -> the most requests/s that it serves.
    rates: dict[str, float]
    #: Start and end of the loads between the cells, ns on the monotonic clock.
    between: list[tuple[int, int]]


@dataclass
class Window:
    """A run on the monotonic clock, and what its client saw, in the order of sending."""

    start_ns: int
    end_ns: int
    records: list[Record]
    #: The first so many were no more than the front can bear.
    bearable: int


class Load:
    """Loads one server, again and again."""

    def __init__(self, case: Case, url: str, args: argparse.Namespace) -> None:
        self._case, self._url, self._args = case, url, args
        self._turn = 0
        #: Arrivals -> the most requests/s that it serves.
        self.rates: dict[str, float] = {}
        for kind in ("poisson", "azure"):
            count = ["--num-prompts", str(case.burst), "--arrival", "closed"]
            closed = self._serve(f"{case.name}-{kind}-closed", self._workload(kind), 0, count)
            done = [r for r in closed if r.outcome == COMPLETED]
            self.rates[kind] = len(done) / (max(r.end_ns for r in done) / 1e9)
            print(f"{case.name}, {kind}: {self.rates[kind]:.2f} req/s at most", flush=True)

    def cell(self, kind: str, name: str, part: float, turn: int) -> None:
        """One live run of a cell."""
        rate = self.rates[kind] * part
        count = max(20, round(rate * self._case.run_s))
        flags = ["--num-prompts", str(count), "--request-rate", f"{rate:.4f}"]
        self._serve(f"{self._case.name}-{kind}-{name}-{turn}", self._workload(kind), 1, flags)

    def calibrate(self, number: int) -> tuple[int, int]:
        """Another load: idle ones, then more, then more than it can bear, then many at once."""
        rng = np.random.default_rng([number, 9])
        rate, prompt, output = self.rates["poisson"], self._case.prompt, self._case.output
        counts = self._case.counts(rate)
        gaps = [rng.exponential(1 / (rate * part), count) for part, count in zip(PARTS, counts, strict=True)]
        times = np.concatenate([*gaps, np.zeros(self._case.burst)]).cumsum().tolist()
        path = OUT / f"{self._case.name}-calibrate-{number}.csv"
        rows = [f"{at:.4f},{rng.integers(8, 2 * prompt)},{rng.integers(2, 2 * output)}" for at in times]
        path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
        start_ns = time.monotonic_ns()
        self._serve(path.stem, ["--dataset-name", "trace", "--dataset-path", str(path)], number, [])
        return start_ns, time.monotonic_ns()

    def _workload(self, kind: str) -> list[str]:
        case = self._case
        if kind == "poisson":
            lengths = ["--random-input-len", str(case.prompt), "--random-output-len", str(case.output)]
            return ["--dataset-name", "random", *lengths, "--random-range-ratio", "0.8"]
        file = ["--dataset-path", str(self._args.trace)] if self._args.trace else []
        return ["--dataset-name", "trace", "--length-scale", f"{case.length_scale:.4f}", *file]

    def _serve(self, name: str, workload: list[str], seed: int, flags: list[str]) -> list[Record]:
        self._turn += 1
        path = OUT / f"{name}.json"
        command = [
            sys.executable, "-m", "penstock.cli.main", "bench", "serve", "--base-url", self._url, "--model", "m",
            *workload, "--seed", str(seed), "--prompt-seed", str(self._turn), "--ignore-eos", "--temperature", "0",
            *flags, "--disable-tqdm", "--save-result", "--result-dir", str(OUT), "--result-filename", path.name,
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return result.load(path).records


def read(path: Path) -> Seen:
    """Steps and messages of an instance's log."""
    header, entries = log.read(path)
    assert header.instance is not None, f"{path} is not an instance's log"
    seen = Seen(header.instance)
    running: dict[int, tuple[Run, int]] = {}
    for entry in entries:
        assert isinstance(entry, log.InstanceEntry), f"{path} is not an instance's log"
        event = entry.event
        if isinstance(event, Submitted):
            seen.jobs[event.spec.id] = Job(event.spec.arrival, entry.now, event.spec.known, event.spec.keys)
        elif isinstance(event, StepDone) and event.seq in running:
            run, issued = running.pop(event.seq)
            seen.steps.append((entry.now, features(run.plan.slices), entry.now - issued))
            for piece in run.plan.slices:
                job = seen.jobs[piece.job]
                if not job.first_ns and piece.start + piece.count >= job.prompt_tokens:
                    job.first_ns = entry.now
        for command in entry.commands:
            if isinstance(command, Run):
                running[command.plan.seq] = (command, entry.now)
    return seen


def requests(seen: Seen, between: tuple[int, int], live: list[Record]) -> list[Request]:
    """The requests of a live run, with the names of their blocks as the log has them."""
    jobs = [job for job in seen.jobs.values() if between[0] < job.arrival_ns < between[1]]
    jobs = sorted(jobs, key=lambda job: job.arrival_ns)[-len(live) :]
    block_tokens = seen.config.block_tokens
    return [
        Request(
            arrival_s=record.sent_ns / 1e9, prompt_tokens=record.prompt_tokens, output_tokens=record.output_tokens,
            hash_ids=job.keys, block_tokens=block_tokens,
        )
        for record, job in zip(sorted(live, key=lambda r: r.sent_ns), jobs, strict=True)
    ]  # fmt: skip


def measured(path: Path) -> list[tuple[Features, int]]:
    """Steps of a profile: it has long prompts and large batches that the load between the runs may not have."""
    with Profile(path, must_exist=True) as profile:
        ((setup, _),) = profile.setups()
        return [(point.features, point.median) for point in profile.points(setup) if point.settled]


def messages(seen: Seen, around: Sequence[Window]) -> tuple[Delays, dict[str, float]]:
    """What messages take: from the home to the core, and what a client sees later than the core, both ways together."""
    to_core: list[int] = []
    front: list[int] = []
    for window in around:
        jobs = sorted(
            (job for job in seen.jobs.values() if window.start_ns <= job.arrival_ns <= window.end_ns),
            key=lambda job: job.arrival_ns,
        )
        # The client begins by asking for a token or two, to learn what prompts the server takes. Under too much load
        # the front is late, but then the queue is what counts.
        pairs = list(zip(window.records, jobs[len(jobs) - len(window.records) :], strict=True))[: window.bearable]
        to_core += [job.core_ns - job.arrival_ns for _, job in pairs]
        front += [(r.ttft_ns or 0) - (job.first_ns - job.arrival_ns) for r, job in pairs if r.times_ns]
    dispatch, rest = statistics.median(to_core), statistics.median(front)
    delays = Delays(dispatch=round(dispatch), front=round(rest / 2), token=round(rest / 2))
    return delays, {"dispatch_ms": dispatch / 1e6, "front_and_token_ms": rest / 1e6}


def measure(records: list[Record], slo: str) -> dict[str, float]:
    """Seconds, and attainment as a share."""
    summary = summarize(records, Slo.parse(slo))
    assert summary.goodput is not None, "an SLO is judged"
    found: dict[str, float] = {"attainment": summary.goodput.share}
    for metric in ("ttft", "tpot"):
        dist = summary.latency[metric]
        assert dist is not None, f"no {metric}: {summary.outcomes} {summary.errors}"
        found[f"{metric} median"] = dist.percentiles_ms[50] / 1e3
        found[f"{metric} p99"] = dist.percentiles_ms[99] / 1e3
    return found


def off(metric: str, row: Row, other: str) -> float:
    """By how much `other` differs from the first live run, signed: relative, or in points of attainment."""
    live, theirs = row["live"][metric], row[other][metric]
    return float(theirs - live if metric == "attainment" else theirs / live - 1)


def held(metric: str, row: Row, other: str) -> bool:
    """Whether a twin keeps the bar, or 1.5 times the machine's noise where that is more."""
    return abs(off(metric, row, other)) <= max(BARS[metric], 1.5 * abs(off(metric, row, "again")))


def line(row: Row, other: str) -> str:
    cells = [f"{row['model']:12} {row['arrivals']:8} {row['load']:11} {row['rate']:7.2f} {row['requests']:5}"]
    for metric in BARS:
        mark = " " if held(metric, row, other) else "*"
        cells.append(f"{100 * off(metric, row, other):+7.1f}{mark}({100 * off(metric, row, 'again'):+6.1f})")
    return " ".join(cells)


def table(rows: list[Row]) -> str:
    """Errors of the twin, in brackets those of the second live run; a star where the bar is not kept."""
    head = f"{'model':12} {'arrivals':8} {'load':11} {'req/s':>7} {'reqs':>5} " + " ".join(f"{m:>16}" for m in BARS)
    lines = []
    for other, said in (("twin", ""), ("told", " with the step times of the very run")):
        kept = [held(metric, row, other) for row in rows for metric in BARS]
        lines += [
            f"Error against the first live run in %, attainment in points: the twin's{said} (a second live run's)",
            head, *(line(row, other) for row in rows), f"{sum(kept)} of {len(kept)} within their bar", "",
        ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
