"""Measure what steps take on this machine, into a file that `penstock fit` makes a cost model of.

penstock profile                                   the demo model, into profile.sqlite
penstock profile ./folder --grid default --out h200.sqlite
penstock profile --import other.sqlite             take in what someone else measured
penstock profile --list                            what the file holds

Every step of the grid is measured several times, and all steps once before any of them again: a machine that is slow
for some seconds is then slow for a little of everything. Times during which other processes took the cores away are
kept and not counted, and such a step is tried again. Stopped, it goes on where it was with the same command.
"""

import argparse
import hashlib
import importlib.metadata
import statistics
import time
from pathlib import Path

from tqdm import tqdm

import penstock
from penstock.cli import overheads
from penstock.cli.engine_flags import engine_arguments, engine_options
from penstock.core.config import Limits
from penstock.core.predict import regime
from penstock.cost import grid
from penstock.cost.base import Cost
from penstock.cost.fitting import REGIMES
from penstock.cost.linear import fit
from penstock.cost.profile import WAITED_MAX, Point, Profile, Setup, disturbed
from penstock.drivers.worker import make_engine
from penstock.engine.base import EngineInfo
from penstock.engine.hub import DEMO, resolve
from penstock.engine.measure import Bench, hardware

#: A step that takes less is measured twice on each occasion, one that takes more than the second once and not after a
#: step of its own kind: seconds of its own are warm-up enough.
SHORT_NS, LONG_NS = 50_000_000, 300_000_000
#: Steps that take long are measured on fewer occasions, to take no more than this each, but on two at least.
STEP_NS = 1_500_000_000
#: So many rounds for each occasion, where other processes disturb.
TRIES = 2
#: What it takes to add and bind a job, and to hand a token over, in ns: for the time left, which corrects itself.
JOB_NS, TOKEN_NS = 30_000, 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="", help="local folder or hub id; nothing: the demo model")
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--out", type=Path, default=Path("profile.sqlite"), help="file (default: %(default)s)")
    measuring.add_argument(
        "--grid", choices=grid.NAMES, default="coarse", help="which steps; decode and prefill are parts of default"
    )
    measuring.add_argument(
        "--repeat", type=int, default=5, help="occasions for a step, fewer for long ones (default: %(default)s)"
    )
    measuring.add_argument(
        "--max-num-batched-tokens", type=int, default=Limits().max_num_batched_tokens,
        help="positions in a step, as served (default: %(default)s)",
    )  # fmt: skip
    measuring.add_argument(
        "--context-tokens", type=int, default=4096, help="different positions that decoding jobs have as their context"
    )
    files = parser.add_argument_group("files")
    files.add_argument("--import", dest="others", nargs="+", default=[], type=Path, metavar="SQLITE",
                       help="take these in, and measure nothing")  # fmt: skip
    files.add_argument("--list", action="store_true", help="say what the file holds, and measure nothing")
    engine_arguments(parser.add_argument_group("engine"))


def main(args: argparse.Namespace) -> int:
    """0 when the grid has been gone over; 130 if stopped before."""
    if args.list:
        return _list(args.out)
    if args.others:
        return _import(args.out, args.others)
    for name in ("repeat", "max_num_batched_tokens", "context_tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1 is needed")
    # Before the model is loaded, in case the file is something else.
    with Profile(args.out) as profile:
        try:
            return _measure(args, profile)
        except KeyboardInterrupt:
            print(f"\nStopped. What was measured is in {args.out}; the same command goes on from there.")
            return 130


def _measure(args: argparse.Namespace, profile: Profile) -> int:
    engine, cost = make_engine(engine_options(args, args.max_num_batched_tokens), _say)
    null = args.engine == "null"
    folder = None if null else resolve(args.model or str(DEMO), args.download_dir, weights=False)
    setup = _setup(engine.info, "null" if null else args.model or "penstock-demo", folder, args.null_cost)
    at = profile.setup_id(setup)
    _say(str(setup))
    if not profile.overheads(at):
        _say("measuring what there is beside the model")
        for overhead in overheads.measure(engine.info, folder):
            profile.add_overhead(at, overhead)
    with Bench(engine, args.context_tokens) as bench:
        wanted = grid.steps(args.grid, args.max_num_batched_tokens)
        steps = [step for step in wanted if bench.fits(step)]
        _say(f"grid {args.grid}: {len(steps)} steps, on up to {args.repeat} occasions each; "
             f"{len(wanted) - len(steps)} left out, for which there is no room")  # fmt: skip
        if not steps:
            raise ValueError("no step of the grid fits: give more --kv-pages or a longer --max-model-len")
        _Rounds(profile, at, bench, cost, args.repeat).run(steps)
    print(_summary(profile.points(at)))
    print(overheads.table(profile.overheads(at)))
    if unsettled := sum(not point.settled for point in profile.points(at)):
        print(f"WARNING: other programs had the cores whenever {unsettled} of the steps were measured; "
              "the same command tries those again")  # fmt: skip
    print(f"All of it is in {args.out}. Next: penstock fit {args.out}")
    return 0


class _Rounds:
    """Goes over the grid again and again until each step has been measured on so many occasions."""

    def __init__(self, profile: Profile, setup: int, bench: Bench, cost: Cost, occasions: int) -> None:
        self.profile = profile
        self.setup = setup
        self.bench = bench
        #: As measured at the start, and as known by now.
        self.first = self.cost = cost
        self.occasions = occasions

    def run(self, steps: list[grid.Step]) -> None:
        visits = self.profile.visits(self.setup)
        missing = {step: self._wanted(step) - visits.get(step, 0) for step in steps}
        layout = "{percentage:3.0f} % |{bar}| {elapsed}, about {remaining} left{postfix}"
        with tqdm(total=1, bar_format=layout) as bar:
            for turn in range(self.occasions * TRIES):
                some = [step for step in steps if missing[step] > 0 and turn < TRIES * self._wanted(step)]
                self._refit()
                expected_s = {step: self._visit_s(step) for step in steps}
                bar.total = bar.n + sum(expected_s[step] * max(0, missing[step]) for step in steps)
                for step in some:
                    bar.set_postfix_str(f"round {turn + 1}, {grid.said(step)}")
                    if self._visit(step):
                        missing[step] -= 1
                    else:
                        bar.total += expected_s[step]
                    # Sums of floats: the last may end a hair beyond the total, which tqdm warns of.
                    bar.update(min(expected_s[step], bar.total - bar.n))

    def _wanted(self, step: grid.Step) -> int:
        """On how many occasions to measure a step."""
        return min(self.occasions, max(2, STEP_NS // self.first.step_ns(grid.features(step))))

    def _refit(self) -> None:
        """By what has been measured, once there is enough."""
        samples = [(point.features, point.median) for point in self.profile.points(self.setup)]
        if len(samples) >= 20:
            self.cost = fit(samples)

    def _visit(self, step: grid.Step) -> bool:
        """Measure a step on one occasion; whether it was left alone."""
        found, took = self.bench.measure(step, self._times(step))
        repeats = [(max(1, round(t.seconds * 1e9)), round(t.waited_s * 1e9)) for t in took[1:] or took]
        self.profile.add(self.setup, step, found, repeats, time.time())
        return not all(disturbed(*repeat) for repeat in repeats)

    def _times(self, step: grid.Step) -> int:
        """How often to run it in a row: the first of several is warm-up."""
        ns = self.cost.step_ns(grid.features(step))
        wanted = 3 if ns < SHORT_NS else 2 if ns < LONG_NS else 1
        return next(times for times in range(wanted, 0, -1) if times == 1 or self.bench.fits(step, times))

    def _visit_s(self, step: grid.Step) -> float:
        jobs = sum(group[0] for group in step)
        tokens = sum(many * (start + count) for many, start, count in step)
        times = self._times(step)
        return times * (self.cost.step_ns(grid.features(step)) + JOB_NS * jobs + TOKEN_NS * tokens) / 1e9


def _setup(info: EngineInfo, model: str, folder: Path | None, null_cost: str) -> Setup:
    if folder is None:
        config, engine = hashlib.sha256(null_cost.encode()), "null engine"
    else:
        config = hashlib.sha256((folder / "config.json").read_bytes())
        engine = "; ".join([f"torch {importlib.metadata.version('torch')}", *info.notes[:1]])
    return Setup(
        hardware=hardware(info),
        # The same folder has another path on another machine.
        model=Path(model).name if folder is not None and Path(model).is_dir() else model,
        config=config.hexdigest()[:12],
        dtype=info.dtype,
        engine=f"penstock {penstock.__version__}; {engine}",
        threads=info.threads,
        tp=info.tensor_parallel_size,
        page_tokens=info.page_tokens,
    )


def _summary(points: list[Point]) -> str:
    lines = [
        f"{'steps':10} {'points':>7} {'times':>7} {'disturbed':>10} {'median ms, from':>16} {'to':>9} {'deviation':>10}"
    ]
    for name in REGIMES:
        some = [p for p in points if name in (regime(p.features), "all")]
        if some:
            medians = [p.median / 1e6 for p in some]
            repeats = [repeat for p in some for repeat in p.repeats]
            others = sum(disturbed(*repeat) for repeat in repeats)
            lines.append(
                f"{name:10} {len(some):7} {len(repeats):7} {others:10} {min(medians):16.2f} {max(medians):9.2f} "
                f"{100 * statistics.median(p.deviation for p in some):8.1f} %"
            )
    lines += [
        f"disturbed: times in which threads waited for cores for more than {100 * WAITED_MAX:g} %; they do not count",
        "deviation: of a point's times from each other, standard, relative to their mean; median over points",
    ]
    return "\n".join(lines)


def _list(path: Path) -> int:
    with Profile(path, must_exist=True) as profile:
        setups = profile.setups()
        print(f"{path}: {len(setups)} setups" + ("" if setups else "; nothing has been measured"))
        for number, setup in setups:
            print(f"\n{setup}")
            points = profile.points(number)
            print(_summary(points) if points else "no steps measured")
            if beside := profile.overheads(number):
                print(overheads.table(beside))
    return 0


def _import(path: Path, others: list[Path]) -> int:
    with Profile(path) as profile:
        for other in others:
            if other.exists() and path.exists() and other.samefile(path):
                raise ValueError(f"{other} is the file itself: name another one to take in")
            with Profile(other, must_exist=True) as theirs:
                points, repeats = profile.merge(theirs)
            print(f"{other}: {points} new points, {repeats} new times")
    return 0


def _say(text: str) -> None:
    print(f"[penstock] {text}", flush=True)
