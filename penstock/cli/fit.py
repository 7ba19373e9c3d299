"""Make a cost model of measured steps, for the simulator and for policies, and say how far off it is.

penstock fit profile.sqlite --out cost.json --plot fit.png
penstock fit --from run.log.instance0                      steps of a recorded run (`penstock serve --record`)
penstock fit profile.sqlite --from run.log.instance0       both: the profile fills in what the traffic never did

Several forms are tried; the one that best predicts points that it was not shown is fitted to all of them and kept. The
errors are those of points that a model was not shown.
"""

import argparse
import datetime
import statistics
from pathlib import Path

import penstock
from penstock.core.predict import regime
from penstock.cost import fitting, models, named
from penstock.cost.fitting import Chosen, Sample
from penstock.cost.profile import Point, Profile, Setup
from penstock.drivers.log import observe
from penstock.metrics import fitplot, plot

#: Names that are not listed one by one.
COMPOSED = (
    "HARDWARE/MODEL[/tpN][/ppN], as in h200/llama-3.1-70b/tp4: composed of kernel measurements (docs/cost-composed.md)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("profiles", nargs="*", type=Path, metavar="SQLITE", help="what `penstock profile` wrote")
    parser.add_argument("--from", dest="logs", nargs="+", action="extend", default=[], type=Path, metavar="LOG",
                        help="logs of instances, of runs with this model on this machine")  # fmt: skip
    parser.add_argument("--hardware", default="", help="the setup whose hardware has this in its name")
    parser.add_argument("--model", default="", help="the setup whose model has this in its name")
    parser.add_argument("--out", type=Path, default=Path("cost.json"), help="file (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the cost models that have names, and fit nothing")
    parser.add_argument("--plot", metavar="PNG", help="draw predicted against measured, and errors over step size")


def main(args: argparse.Namespace) -> int:
    """0 once the model is written."""
    if args.list:
        print("\n".join([*named.listing(), COMPOSED]))
        return 0
    if args.plot:
        plot.check()
    if not args.profiles and not args.logs:
        raise ValueError("nothing to fit: name a profile (see `penstock profile`), or a log with --from")
    setup, sources = _sources(args)
    samples = [sample for some in sources.values() for sample in some]
    chosen = fitting.choose(samples)
    found = fitting.errors(samples, chosen.held_out)
    print(_table(chosen, found, sources))
    models.save(
        models.CostFile(cost=chosen.cost, provenance=_provenance(setup, chosen, sources), errors=found), args.out
    )
    print(f"The model is in {args.out}")
    if args.plot:
        _draw(args.plot, samples, chosen, setup)
    return 0


def _sources(args: argparse.Namespace) -> tuple[Setup | None, dict[str, list[Sample]]]:
    """The setup of the profiles, if there are any, and the samples of each file."""
    sources: dict[str, list[Sample]] = {}
    setup: Setup | None = None
    for path in args.profiles:
        with Profile(path, must_exist=True) as profile:
            at, found = _setup(profile, args.hardware, args.model)
            if setup is not None and found != setup:
                raise ValueError(f"{path} was measured on another setup, and times do not mix:\n  {found}\n  {setup}")
            everything = profile.points(at)
        setup, points = found, _settled(path, everything)
        sources[str(path)] = [(point.features, point.median) for point in points]
        print(f"{path}: {len(points)} steps, {sum(len(p.took) for p in points)} undisturbed times; {setup}")
        _say_noise([p.took for p in points])
    for path in args.logs:
        steps = observe(path).steps
        sources[str(path)] = fitting.condense(steps)
        print(f"{path}: {len(steps)} steps, of {len(sources[str(path)])} kinds; the median of each kind counts")
    return setup, sources


def _settled(path: Path, points: list[Point]) -> list[Point]:
    """The points that other programs ever left alone; all of them where those are too few."""
    good = [point for point in points if point.settled]
    if len(good) < fitting.POINTS_MIN:
        return points
    if len(good) < len(points):
        print(f"{path}: left out {len(points) - len(good)} steps that other programs disturbed every time")
    return good


def _setup(profile: Profile, hardware: str, model: str) -> tuple[int, Setup]:
    """The one setup that is meant. Raises ValueError that names those there are."""
    setups = profile.setups()
    found = [
        (at, setup) for at, setup in setups
        if hardware.lower() in setup.hardware.lower() and model.lower() in setup.model.lower()
    ]  # fmt: skip
    if len(found) == 1:
        return found[0]
    if not setups:
        raise ValueError(f"{profile.path} is empty: `penstock profile --out {profile.path}` fills it")
    choice = "\n".join(f"  {setup}" for _, setup in (found or setups))
    problem = "several setups; choose with --hardware and --model" if found else "no such setup; there are"
    raise ValueError(f"{profile.path} has {problem}:\n{choice}")


def _say_noise(times: list[list[int]]) -> None:
    """What a fit of medians leaves out: the same step took longer at times."""
    several = [took for took in times if len(took) > 1]
    if several:
        ratio = statistics.fmean(statistics.fmean(took) / statistics.median(took) for took in several)
        deviation = statistics.median(statistics.stdev(took) / statistics.fmean(took) for took in several)
        print(
            f"repeats of a step deviate by {100 * deviation:.1f} % (standard deviation, median over steps); "
            f"their mean is {100 * (ratio - 1):.1f} % above their median, which is what is fitted"
        )


def _table(chosen: Chosen, found: dict[str, dict[str, float]], sources: dict[str, list[Sample]]) -> str:
    """Errors of points that the model was not shown, in percent."""
    lines = ["", f"{'form':44} {'mean held-out error':>20}"]
    for name, mean in chosen.candidates.items():
        lines.append(f"{name:44} {100 * mean:18.2f} %" + ("   <- taken" if name == chosen.name else ""))
    columns = {
        "mean": "mean",
        "geometric": "geo. mean",
        "median": "median",
        "p90": "P90",
        "worst": "worst",
        "bias": "bias",
    }
    lines += ["", f"held out, %{'':17} {'steps':>6} " + " ".join(f"{title:>9}" for title in columns.values())]
    rows = dict(found)
    if len(sources) > 1:
        at = 0
        for name, some in sources.items():
            part = fitting.errors(some, chosen.held_out[at : at + len(some)])["all"]
            rows[f"all of {Path(name).name}"], at = part, at + len(some)
    for name, row in rows.items():
        values = " ".join(f"{100 * row[column]:9.2f}" for column in columns)
        lines.append(f"{name[-28:]:28} {row['points']:6.0f} {values}")
    lines.append("error: of the predicted against the measured time of a step, relative; bias: with its sign")
    return "\n".join(lines)


def _provenance(setup: Setup | None, chosen: Chosen, sources: dict[str, list[Sample]]) -> dict[str, str]:
    known = {} if setup is None else {
        "hardware": setup.hardware, "model": setup.model, "config": setup.config, "dtype": setup.dtype,
        "engine": setup.engine, "threads": str(setup.threads), "tp": str(setup.tp), "pp": str(setup.pp),
        "page_tokens": str(setup.page_tokens),
    }  # fmt: skip
    return known | {
        "form": chosen.name,
        "from": ", ".join(f"{name} ({len(some)} steps)" for name, some in sources.items()),
        "fitted": f"penstock {penstock.__version__}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
    }


def _draw(path: str, samples: list[Sample], chosen: Chosen, setup: Setup | None) -> None:
    marks = [
        (regime(what), what.new, ns / 1e6, predicted / 1e6)
        for (what, ns), predicted in zip(samples, chosen.held_out, strict=True)
    ]
    on = f" on {setup.hardware}: {setup.model}, {setup.dtype}" if setup else ""
    fitplot.plot(marks, path, title=f"{chosen.name}, {len(marks)} steps that the model had not seen{on}")
    print(f"The plot is in {path}")
