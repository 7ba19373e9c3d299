"""Search deployments for the highest goodput per GPU, in simulated time.

    penstock plan --model llama-3.1-8b --hardware h200:8 --slo ttft=500ms,tpot=30ms --lengths azure-conv-2023
    penstock plan ... --rate 60 --output plan.yaml         the fewest GPUs that carry 60 requests/s
    penstock plan ... --rate 60 --objective latency        the least P90 of E2E at 60 requests/s on all the GPUs
    penstock plan ... --policies fcfs --knob max_num_batched_tokens=256,512,1024,2048
    penstock plan --watch http://127.0.0.1:8000 plan.yaml  says when the workload is no longer what was planned for
    penstock plan --like distserve-simulator               DistServe's own example, under its own rules

Every way to lay the model on the GPUs that --hardware NAME:GPUSxNODES names is tried at rates that bisection chooses;
what carries most a GPU, within --slo for --target of the requests, wins. `penstock simulate --config plan.yaml` runs
it in simulated time, `penstock serve --plan plan.yaml` serves it. docs/plan.md tells what is searched, and how sure the
answer is.
"""

import argparse
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import yaml
from tqdm import tqdm

from penstock.cli import deployed
from penstock.core.slo import Slo
from penstock.drivers.deployment import DelaySpec, Deployment
from penstock.metrics import curve_plot, plot
from penstock.plan import finalists, idle, latency, planned, report
from penstock.plan.bounds import Bounds, Filter
from penstock.plan.latency import Aim
from penstock.plan.search import Answer, Terms, grid_max, search
from penstock.plan.space import AFFINITIES, Cluster, Option, Space, as_one, options, repeated
from penstock.plan.trial import Goal, Load
from penstock.policies.bundles import ROWS

#: What a flag is where neither it nor a preset says otherwise.
DEFAULTS: dict[str, Any] = {
    "target": 0.9, "policies": ["fcfs", "distserve"], "affinity": "high", "ratios": ["1:1", "2:1", "1:2"],
    "replicas": [1], "knob": [], "cost": "", "arrival": "poisson", "cv": 1.0, "num_prompts": 300, "duration": 60.0,
    "seeds": 3, "seed": 0, "objective": "goodput", "minimize": "e2e", "percentile": 90.0, "precision": 0.05, "best": 3,
    "marginal": False,
}  # fmt: skip
_EXAMPLE = {
    "model": "opt-13b", "hardware": "a100:4", "slo": "ttft=200ms,tpot=100ms", "policies": ["distserve"],
    "ratios": ["1:1"], "cost": "distserve/opt-13b/tp{tp}/pp{pp}", "lengths": "distserve:sharegpt",
    "arrival": "distserve", "num_prompts": 300, "duration": 0.0, "seeds": 1, "seed": 1,
    "rate_max": 5.0, "precision": 0.0, "step": 0.25, "best": 1,
}  # fmt: skip
#: Flags of published searches.
PRESETS: dict[str, dict[str, Any]] = {
    # Its simulator has no KV limit when it decodes, no end to a batch of prompts, and moves that take no time.
    "distserve-simulator": {
        **_EXAMPLE, "marginal": True, "move_gb_per_s": 0.0, "knob": [
            "kv_tokens=10000000", "max_num_seqs=100000", "max_num_batched_tokens=10000000", "max_num_queued_reqs=100000"
        ],
    },
    # The same machine with what it has: KV, links, and the limits of the paper's evaluation.
    "distserve": {
        **_EXAMPLE, "knob": [
            "utilization=0.95", "prefill.max_num_seqs=128", "prefill.max_num_batched_tokens=8192",
            "decode.max_num_seqs=1024",
        ],
    },
}  # fmt: skip
#: Flags that say how to search and where results go, not what for.
_PASSING = (
    "jobs", "results", "fresh", "output", "csv", "finalists", "plot", "disable_tqdm", "plan", "watch", "interval",
    "drift", "once",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--model", help="a name such as llama-3.1-8b, or a folder with a config.json")
    asked.add_argument("--hardware", metavar="NAME:GPUSxNODES", help="h200:8x2: two nodes of 8; cpu:1: no data sheet")
    asked.add_argument("--slo", help="as in ttft=500ms,tpot=50ms; ttft=5x is five idle times")
    asked.add_argument("--target", type=float, help="share of requests that must keep it; default: 0.9")
    asked.add_argument("--marginal", action="store_const", const=True, help="TTFT and TPOT each with that share")
    asked.add_argument("--rate", type=float, metavar="R", help="requests/s: the fewest GPUs that carry them")
    asked.add_argument("--objective", choices=("goodput", "latency"), help="latency: the least at --rate")
    asked.add_argument("--minimize", choices=latency.METRICS, help="which latency; default: e2e")
    asked.add_argument("--percentile", type=float, help="of it; default: 90")
    asked.add_argument("--like", choices=sorted(PRESETS), help="the flags of a published search; others win over them")
    space = parser.add_argument_group("what is searched")
    space.add_argument("--policies", nargs="+", choices=sorted(ROWS), help="default: fcfs distserve")
    space.add_argument("--affinity", choices=AFFINITIES, help="low: KV stays in a node; default: high, anywhere")
    space.add_argument("--tp", type=int, nargs="+", help="only these; default: the divisors of the model's heads")
    space.add_argument("--pp", type=int, nargs="+", help="only these; default: the divisors of its layers")
    space.add_argument("--ratios", nargs="+", metavar="P:D", help="instances of each side; default: 1:1 2:1 1:2")
    space.add_argument("--replicas", type=int, nargs="+", help="instances of a unit that does both; default: 1")
    space.add_argument("--knob", action="append", metavar="KEY=V,V", help="a pool's key, or prefill.KEY, decode.KEY")
    space.add_argument("--servable", action="store_true", help="only what `penstock serve --plan` can run")
    space.add_argument("--cost", metavar="NAME", help="step times, as in distserve/opt-13b/tp{tp}/pp{pp}")
    space.add_argument("--move-gb-per-s", type=float, help="an instance's port; 0: free; default: by its links")
    space.add_argument("--delays", metavar="KEY=V,KEY=V", help="what messages take: front_ms=2,dispatch_ms=0.3 ...")
    work = parser.add_argument_group("workload")
    work.add_argument("--lengths", help="as in `penstock trace synth`: azure-conv-2023, trace:FILE, fixed:512 ...")
    work.add_argument("--trace", metavar="FILE", help="requests with their own arrivals and prefixes, instead")
    work.add_argument("--output-lengths", help="of answers, where --lengths does not say")
    work.add_argument("--arrival", choices=["poisson", "gamma", "constant", "distserve"])
    work.add_argument("--cv", type=float, help="of the gaps of gamma and distserve arrivals; default: 1")
    work.add_argument("--num-prompts", type=int, help="requests of a run, at the least; default: 300")
    work.add_argument("--duration", type=float, metavar="S", help="... and as many as come in S s; default: 60")
    work.add_argument("--seeds", type=int, help="runs of a rate, at the most; default: 3")
    work.add_argument("--seed", type=int, help="of the first; default: 0")
    how = parser.add_argument_group("search")
    how.add_argument("--rate-max", type=float, help="requests/s a GPU; default: a power of two above all bounds")
    how.add_argument("--precision", type=float, help="between carried and not, as a share; default: 0.05")
    how.add_argument("--step", type=float, help="... or requests/s a GPU; default: a thousandth of --rate-max")
    how.add_argument("--best", type=int, help="so many are searched to the end; default: 3")
    how.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one a core")
    output = parser.add_argument_group("output")
    output.add_argument("--results", type=Path, metavar="DIR", help="keep every run here, and go on from there")
    output.add_argument("--fresh", action="store_true", help="throw away what is in DIR first")
    output.add_argument("--output", type=Path, metavar="YAML", help="write the winner as a deployment")
    output.add_argument("--csv", type=Path, metavar="FILE", help="every option, with its reason if it cannot be")
    output.add_argument("--finalists", action="store_true", help="run the best over rates, and say what they attain")
    output.add_argument("--plot", metavar="PNG", help="draw that")
    output.add_argument("--disable-tqdm", action="store_true", help="no progress bar")
    watch = parser.add_argument_group("watch")
    watch.add_argument("plan", nargs="?", type=Path, help="what --output wrote, for --watch")
    watch.add_argument(
        "--watch", metavar="URL", help="say when the workload of this server is not what was planned for"
    )
    watch.add_argument("--interval", type=float, default=60.0, metavar="S", help="between looks (default: %(default)s)")
    watch.add_argument("--drift", type=float, default=0.2, help="what counts, as a share (default: %(default)s)")
    watch.add_argument("--once", action="store_true", help="one look; the exit status is 1 if it drifted")


def main(args: argparse.Namespace) -> int:
    """0 if some option carries some rate, and --rate if that is asked for; with --watch, see there."""
    if args.watch or args.plan:
        from penstock.cli import plan_watch  # which uses this

        return plan_watch.main(args)
    said = command(args)
    every, space, terms = asked(args)
    if args.plot:
        plot.check()
    with ExitStack() as stack:
        folder = args.results or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _claim(folder, space, [terms.goal, terms.load, terms.seeds], args.fresh)
        if args.objective == "latency":
            return _latency(every, space, terms, folder, args, said)
        return _goodput(every, space, terms, folder, args, said)


def command(args: argparse.Namespace) -> str:
    """What says the same, but for how to search and where results go."""
    return planned.words(args, _PASSING)


def asked(args: argparse.Namespace) -> tuple[list[Option], Space, Terms]:
    """What the flags mean, those that are missing filled in: all options, what they are from, and how to search."""
    args = _filled(args)
    load = Load(
        lengths=args.lengths or "", output_lengths=args.output_lengths, arrival=args.arrival, cv=args.cv,
        num_prompts=args.num_prompts, duration_s=args.duration, trace=args.trace or "",
    )  # fmt: skip
    space = _space(args)
    every = _options(space, args.servable)
    seeds = list(range(args.seed, args.seed + args.seeds))
    terms = Terms(
        goal=_goal(args, every, load), load=load, seeds=seeds, rate_max=args.rate_max or 0.0,
        precision=args.precision, step=args.step or 0.0, best=args.best,
    )  # fmt: skip
    return every, space, terms


def _goodput(every: list[Option], space: Space, terms: Terms, folder: Path, args: argparse.Namespace, said: str) -> int:
    """Search, report, conclude."""
    possible, impossible = _sifted(every, Filter(terms.load, terms.goal, terms.seeds))
    rate_max = terms.rate_max or grid_max(possible)
    terms = msgspec.structs.replace(terms, rate_max=rate_max, step=terms.step or rate_max / 1000)
    answers = _search(possible, terms, folder / "search", args)
    print(report.render(answers, impossible, terms))
    if args.csv:
        report.write_csv(answers, impossible, terms, args.csv)
    carried = [answer for answer in answers if answer.rate]
    if args.trace and carried:
        terms = msgspec.structs.replace(terms, load=terms.load.whole, seeds=[0])
        carried = _on_the_whole(carried[: terms.best], terms, folder / "whole", args)
    if carried and (args.finalists or args.plot):
        _finalists(carried[: terms.best], terms, folder / "finalists", args)
    return _conclude(carried, space, terms, folder / ("whole" if args.trace else "search"), args, said)


def _latency(every: list[Option], space: Space, terms: Terms, folder: Path, args: argparse.Namespace, said: str) -> int:
    """Every option as often as the cluster holds it, at one rate."""
    aim = Aim(args.rate, args.minimize, args.percentile)
    sieve = Filter(terms.load, terms.goal, terms.seeds) if terms.goal.slo.ttft else None
    fitting = [as_one(option, space.cluster.gpus // option.gpus) for option in every if not option.reason]
    possible, impossible = _able(fitting, aim, sieve)
    impossible = [option for option in every if option.reason] + impossible
    if not possible:
        raise ValueError(f"nothing carries {aim.rate:g} req/s:\n" + report.reasons(impossible))
    finals = msgspec.structs.replace(terms, load=terms.load.whole, seeds=[0]) if args.trace else terms
    total = len(possible) + min(terms.best, len(possible)) * len(finals.seeds)
    with tqdm(total=total, unit="run", disable=args.disable_tqdm or None) as bar:
        found = latency.least(possible, aim, terms, finals, folder / f"least-{aim.metric}", args.jobs, bar.update)
    reasons = [(one, one.reason(terms)) for one in found]
    kept = [one for one, reason in reasons if not reason]
    impossible += [msgspec.structs.replace(one.option, reason=reason) for one, reason in reasons if reason]
    print(report.latencies(kept, impossible, aim, finals))
    if args.csv:
        report.write_latencies(kept, impossible, aim, terms, args.csv)
    if not kept:
        print(f"Nothing carries {aim.rate:g} req/s.")
        return 1
    best = kept[0]
    what = f"{aim} {best.ms(aim):.4g} ms at {aim.rate:g} req/s on {best.option.gpus} GPUs"
    print(f"Best: {best.option.name}: {what}.")
    if args.output:
        share = best.tally.share(terms.goal) if terms.goal.slo else None
        _write(best.option.deployment, [best.option.name, what], aim.rate, share, finals, args, said)
    return 0


def _able(options: list[Option], aim: Aim, sieve: Filter | None) -> tuple[list[Option], list[Option]]:
    """Those that may carry the rate within the SLO, and those of which bounds know that they do not."""
    possible: list[Option] = []
    impossible: list[Option] = []
    for option in options:
        bounds = sieve.bounds(option) if sieve is not None else None
        if bounds is None or bounds.high > aim.rate:
            possible.append(option)
        else:
            most = f"at most {bounds.high:.4g} req/s within the SLO: " if bounds.high else ""
            impossible.append(msgspec.structs.replace(option, reason=most + bounds.limit))
    return possible, impossible


def _filled(args: argparse.Namespace) -> argparse.Namespace:
    """With the preset's values and the defaults where a flag was not given. Raises ValueError for what is missing."""
    preset = PRESETS.get(args.like, {})
    if args.trace:
        preset = {name: value for name, value in preset.items() if name != "lengths"}
    for name, value in {**DEFAULTS, **preset}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
        elif name == "knob":
            args.knob = [*value, *args.knob]
    if args.trace and (args.lengths or args.output_lengths):
        raise ValueError("--trace has lengths of its own: leave --lengths and --output-lengths out")
    needed = ["model", "hardware"] + ["slo"] * (args.objective == "goodput") + ["lengths"] * (not args.trace)
    for name in needed:
        if getattr(args, name) is None:
            raise ValueError(f"give --{name}, or a preset with --like")
    for name in ("num_prompts", "seeds", "best", "jobs", "rate", "rate_max", "step"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be above 0")
    if args.objective == "latency" and not args.rate:
        raise ValueError("--objective latency: the least at which --rate?")
    if not 0 < args.percentile < 100:
        raise ValueError(f"--percentile {args.percentile:g}: must be above 0 and below 100")
    if args.duration < 0:
        raise ValueError(f"--duration {args.duration:g}: must be 0 or more")
    if not 0 <= args.precision < 1:
        raise ValueError(f"--precision {args.precision:g}: a share from 0 to 1")
    return args


def _goal(args: argparse.Namespace, every: list[Option], load: Load) -> Goal:
    """Says what multiples are of, if there are any."""
    slo = Slo.parse(args.slo or "")
    if not slo.relative:
        return Goal(slo, args.target, args.marginal)
    found, instance = idle.reference(every, load, args.seed)
    print(f"{slo}: multiples of what an idle instance takes ({instance}): {found}")
    return Goal(slo, args.target, args.marginal, found)


def _space(args: argparse.Namespace) -> Space:
    knobs = dict(map(_knob, args.knob))
    fixed = {key: values[0] for key, values in knobs.items() if len(values) == 1}
    return Space(
        model=args.model,
        cluster=Cluster.parse(args.hardware),
        slo=Slo.parse(args.slo or ""),
        policies=args.policies,
        affinity=args.affinity,
        tps=args.tp or (),
        pps=args.pp or (),
        ratios=list(map(_ratio, args.ratios)),
        replicas=args.replicas,
        knobs={key: values for key, values in knobs.items() if key not in fixed},
        pool=fixed,
        cost=args.cost,
        move_gb_per_s=args.move_gb_per_s,
        delays=_delays(args.delays or ""),
    )


def _delays(text: str) -> DelaySpec:
    given = dict(item.strip().partition("=")[::2] for item in text.split(",") if item.strip())
    try:
        return msgspec.convert(given, DelaySpec, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(DelaySpec.__struct_fields__)
        raise ValueError(f"--delays {text}: {error}; write KEY=VALUE,KEY=VALUE with {known}") from None


def _options(space: Space, servable: bool) -> list[Option]:
    """All; what a server cannot run is given a reason where it must."""
    return [_served(option) if servable else option for option in options(space)]


def _served(option: Option) -> Option:
    try:
        deployed.flags(option.deployment)
    except ValueError as error:
        return msgspec.structs.replace(option, reason=option.reason or str(error))
    return option


def _knob(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    if not equals:
        raise ValueError(f"--knob {text!r}: write KEY=VALUE,VALUE as in max_num_batched_tokens=512,2048")
    return key.strip(), [yaml.safe_load(value) for value in values.split(",")]


def _ratio(text: str) -> tuple[int, int]:
    first, _, second = text.partition(":")
    if not (first.isdecimal() and second.isdecimal() and int(first) and int(second)):
        raise ValueError(f"--ratios {text!r}: write P:D as in 2:1")
    return int(first), int(second)


def _sifted(all_options: list[Option], sieve: Filter) -> tuple[list[tuple[Option, Bounds]], list[Option]]:
    """Those that may carry something, and those that cannot, each with its reason."""
    possible: list[tuple[Option, Bounds]] = []
    impossible: list[Option] = []
    for option in all_options:
        bounds = sieve.bounds(option) if not option.reason else None
        if bounds is not None and bounds.high:
            possible.append((option, bounds))
        else:
            reason = option.reason or (bounds.limit if bounds is not None else "")
            impossible.append(msgspec.structs.replace(option, reason=reason))
    if not possible:
        raise ValueError("nothing can be deployed:\n" + report.reasons(impossible))
    return possible, impossible


def _claim(folder: Path, space: Space, what: list[Any], fresh: bool) -> None:
    """Runs in a folder are of one setting. Raises ValueError where they are of another."""
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    # What only decides which options there are, and how far they are searched, may change.
    same = msgspec.structs.replace(space, tps=(), pps=(), ratios=(), replicas=(), policies=(), knobs={})
    said = msgspec.json.format(msgspec.json.encode([same, *what]), indent=1)
    path = folder / "plan.json"
    if path.exists() and path.read_bytes() != said:
        raise ValueError(f"{folder} has the runs of another plan: give another --results, or --fresh")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(said)


def _search(
    possible: list[tuple[Option, Bounds]], terms: Terms, folder: Path, args: argparse.Namespace
) -> list[Answer]:
    with tqdm(total=len(possible), unit="option", disable=args.disable_tqdm or None) as bar:
        return search(possible, terms, folder, args.jobs, lambda answer: bar.update())


def _on_the_whole(best: list[Answer], terms: Terms, folder: Path, args: argparse.Namespace) -> list[Answer]:
    """Those that carry some rate over all of the trace."""
    with tqdm(total=len(best), unit="option", disable=args.disable_tqdm or None) as bar:
        answers = finalists.on_the_whole(best, terms, folder, args.jobs, lambda answer: bar.update())
    print(report.whole(answers, terms))
    return [answer for answer in answers if answer.rate]


def _finalists(best: list[Answer], terms: Terms, folder: Path, args: argparse.Namespace) -> None:
    total = len(best) * len(finalists.AROUND) * len(terms.seeds)
    with tqdm(total=total, unit="run", disable=args.disable_tqdm or None) as bar:
        curves = finalists.over_rate(best, terms, folder, args.jobs, bar.update)
    print(f"Share of requests that keep {terms.goal.slo}, by requests/s a GPU; whole runs:")
    print("\n".join(map(report.curve, curves)))
    if args.plot:
        curve_plot.draw(curves, args.plot, terms.goal.target, rate_unit="req/s a GPU")
        print(f"That is drawn in {args.plot}")


def _conclude(
    carried: list[Answer], space: Space, terms: Terms, folder: Path, args: argparse.Namespace, said: str
) -> int:
    """Name the winner, and write it; `said`: the command."""
    if not carried:
        print("Nothing carries any rate that was tried.")
        return 1
    option, units, rate = carried[0].option, 1, carried[0].rate * carried[0].option.gpus
    what = f"{rate:.4g} req/s on {option.gpus} GPUs"
    if args.rate:
        found = finalists.cheapest(carried, args.rate, space.cluster.gpus, terms, folder)
        if found is None:
            print(f"{args.rate:g} req/s need more than the {space.cluster.gpus} GPUs there are.")
            return 1
        option, units = found
        rate, what = args.rate, f"{args.rate:g} req/s on {units * option.gpus} GPUs, the fewest"
    times = f"{units} x " if units > 1 else ""
    print(f"Best: {times}{option.name}: {what}, {100 * terms.goal.target:g} % within {terms.goal.slo}.")
    if args.output:
        share = finalists.attained(option, units, rate, terms)
        _write(repeated(option, units), [f"{times}{option.name}", f"carries {what}"], rate, share, terms, args, said)
    return 0


def _write(
    deployment: Deployment, on_top: list[str], rate: float, share: float | None, terms: Terms,
    args: argparse.Namespace, said: str,
) -> None:  # fmt: skip
    """The plan, and what it is for; `share` of the requests keeps the SLO."""
    longest = msgspec.structs.replace(terms.load, num_prompts=terms.load.most)
    workload = planned.numbers(longest.requests(rate, terms.seeds[0]))
    plan = planned.keep(deployment, said, rate, terms.goal.target, share, workload)
    report.write_plan(plan, on_top, args.output)
    print(f"penstock simulate --config {args.output} runs it, penstock serve --plan {args.output} serves it.")
