"""Feed a recorded run to the scheduler again, then simulate the same requests and say how far off the twin is.

penstock serve --record run.log        leaves run.log (the cluster) and run.log.instance0, ...
penstock replay run.log                the same events must give the same commands, to the byte: the exit status is 1 if
                                       any differs. Then the run once more with step times fitted to the log itself
penstock replay run.log --cost cost.json --goodput ttft:500 tpot:50 --json errors.json
penstock replay run.log --cost-from yesterday.log.instance0
penstock replay run.log --closed-loop  where clients waited for their answers before they sent more
penstock replay run.log --request 7    what happened to that request (`job` in its timeline), and what made it slow

--cost takes a file of `penstock fit`, a name (`penstock fit --list`) or five numbers, as in `penstock simulate`.
"""

import argparse
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from penstock.core.slo import Slo
from penstock.core.step import Features
from penstock.cost import named
from penstock.cost.fitting import of_steps
from penstock.cost.models import Model
from penstock.drivers import log, recorded
from penstock.drivers.recorded import Recorded
from penstock.drivers.story import in_words
from penstock.drivers.story_log import Logged
from penstock.metrics.errors import Errors, compare, render
from penstock.metrics.record import Record
from penstock.metrics.summary import Dist

#: A mean TTFT this much too long, relative, is that of a queue that ran away.
RAN_AWAY = 1.0
#: Each with its features, and what it took in ns.
Steps = list[tuple[Features, int]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=Path, help="a file that `penstock serve --record` wrote")
    costs = parser.add_mutually_exclusive_group()
    costs.add_argument("--cost", help="what steps cost in the simulation; default: fitted to the log")
    costs.add_argument("--cost-from", type=Path, nargs="+", metavar="LOG", help="fit to these instances' logs instead")
    parser.add_argument("--no-simulation", action="store_true", help="compare the commands only")
    parser.add_argument(
        "--goodput", nargs="+", default=[], metavar="METRIC:TARGET",
        help="judge all requests by this SLO instead of the recorded ones: ttft:200 (ms), tpot:50 e2e:2s, ttft:3x",
    )  # fmt: skip
    parser.add_argument(
        "--closed-loop", action="store_true",
        help="clients waited for their answers: send each request after the one that had just ended when it came",
    )  # fmt: skip
    parser.add_argument("--request", type=int, metavar="JOB", help="tell what happened to this request, and no more")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is found for other programs")
    parser.add_argument("--disable-tqdm", action="store_true", help="no progress bar")


def main(args: argparse.Namespace) -> int:
    """0 if all commands are the same."""
    if args.request is not None:
        return _tell(args.log, args.request, args.json)
    slo = Slo.parse(" ".join(args.goodput))
    cost = named.resolve(args.cost).cost if args.cost else None
    if args.cost_from:
        cost = _fitted(args.cost_from)
    paths = recorded.paths_of(args.log)
    compared = {path: log.replay(path) for path in paths}
    for path, found in compared.items():
        print(_verdict(path, found))
    said: dict[str, Any] = {"logs": {str(path): _counts(found) for path, found in compared.items()}}
    if not args.no_simulation:
        said |= _simulate(args, paths, cost, slo)
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(said), indent=1))
        print(f"All of this is in {args.json}")
    return 1 if any(found.difference for found in compared.values()) else 0


def _tell(path: Path, job: int, out: Path | None) -> int:
    """The story of one request. Raises ValueError if there is none."""
    logged = Logged(recorded.paths_of(path))
    story = logged.stories.get(job)
    if story is None:
        known = [story.id for story in logged.stories]
        there = f"they have {min(known)} to {max(known)}" if known else "they have none"
        raise ValueError(f"request {job} is not in the logs of {path}: {there}")
    told = logged.stories.told(story, logged.bounds(story.spec, len(story.times)))
    print("\n".join(in_words(told)))
    if out is not None:
        out.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1))
    return 0


def _counts(found: log.Replay) -> dict[str, Any]:
    return {"events": found.events, "commands": found.commands, "the_same": found.difference is None}


def _verdict(path: Path, found: log.Replay) -> str:
    if found.difference is None:
        return f"{path}: {found.events} events, {found.commands} commands, all the same"
    first = found.difference
    commands = enumerate(zip_longest(first.recorded, first.replayed, fillvalue="none"))
    number, (then, now) = next((at, pair) for at, pair in commands if pair[0] != pair[1])
    return "\n".join(
        [
            f"{path}: event {first.entry} gives other commands than recorded; {found.events} before it gave the same",
            f"  event     {first.event}",
            f"  recorded  command {number} of {len(first.recorded)}: {then}",
            f"  now       command {number} of {len(first.replayed)}: {now}",
        ]
    )


def _simulate(args: argparse.Namespace, paths: Sequence[Path], cost: Model | None, slo: Slo) -> dict[str, Any]:
    """Run it again, print the errors, and give them for JSON."""
    try:
        run = recorded.gather(paths)
        instances = paths[1:] or paths
        cost = cost or _fitted(instances)
    except ValueError as error:
        print(f"Not simulated: {error}")
        return {"not_simulated": str(error)}
    print("\n".join(_about(run, _steps(instances), cost)))
    if args.closed_loop:
        run = recorded.closed_loop(run)
    with tqdm(total=len(run.requests), unit="req", disable=args.disable_tqdm or None) as bar:
        twin, preemptions = recorded.simulate(run, cost, bar.update)
    for records in (run.records, twin):
        recorded.set_idle(records, run, cost)
    found = compare(_judged(run.records, slo), _judged(twin, slo), slo)
    print(render(found))
    print(f"{'preemptions':<40}{run.preemptions:>14}{preemptions:>14}{preemptions - run.preemptions:>+12}")
    if not args.closed_loop and (found.of("ttft", "mean").relative or 0.0) > RAN_AWAY:
        print(
            "The simulated queue ran away: requests are sent when they came, however late simulated answers are. If "
            "clients\nwaited for their answers before they sent more, say --closed-loop."
        )
    return _as_json(found) | {"cost": cost, "preemptions": [run.preemptions, preemptions]}


def _steps(paths: Sequence[Path]) -> Steps:
    """Of all these instances' logs."""
    return list(chain.from_iterable(log.observe(path).steps for path in paths))


def _fitted(paths: Sequence[Path]) -> Model:
    """What these logs say that steps take. Raises ValueError where there are too few."""
    found = of_steps(_steps(paths))
    print(found.said(", ".join(path.name for path in paths)))
    return found.cost


def _totals(steps: Steps, cost: Model) -> tuple[int, int]:
    """What all steps took together, and what `cost` says of them, in ns."""
    return sum(ns for _, ns in steps), sum(cost.step_ns(features) for features, _ in steps)


def _about(run: Recorded, steps: Steps, cost: Model) -> list[str]:
    """What is simulated, in words."""
    places, failures = len(run.sim.members), len(run.sim.failures)
    delay = Dist.of(run.delays)
    took, predicted = _totals(steps, cost)
    lines = [f"Simulating {len(run.requests)} requests on {places} x {run.sim.members[0].instance.policy}"]
    lines[0] += f"; an instance was missing {failures} x." if failures else "."
    if delay is not None:
        at = delay.percentiles_ms
        lines.append(
            f"Messages to an instance took {at[50]:.2f} ms (median; P99 {at[99]:.2f}): the median is simulated."
        )
    if took:
        lines.append(
            f"The recorded steps took {took / 1e9:.2f} s; this cost model gives them {predicted / 1e9:.2f} s "
            f"({100 * (predicted - took) / took:+.1f} %)."
        )
    return lines


def _judged(records: list[Record], slo: Slo) -> list[Record]:
    """To be judged by `slo` if that says anything, else by what was promised to each."""
    return [msgspec.structs.replace(record, slo=None) for record in records] if slo else records


def _as_json(found: Errors) -> dict[str, Any]:
    attained = found.attainment
    return {
        "errors": [
            {"metric": e.metric, "statistic": e.statistic, "recorded_ms": e.live_ms, "simulated_ms": e.twin_ms,
             "error": e.relative}
            for e in found.errors
        ],
        "attainment": attained and {
            "slo": str(attained.slo), "recorded": attained.live, "simulated": attained.twin, "points": attained.points
        },
        "outcomes": found.outcomes,
    }  # fmt: skip
