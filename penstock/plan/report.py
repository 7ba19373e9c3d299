"""What a search found, as text, as CSV, and as a deployment to run. Searches nothing."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from penstock.drivers.deployment import Deployment
from penstock.metrics.confidence import Interval
from penstock.metrics.curves import Series
from penstock.plan.latency import Aim, Timed
from penstock.plan.search import Answer, Terms
from penstock.plan.space import Option

_WIDTH = 100
_NAME = 34
#: Names of one reason that are printed; the others are in the CSV.
_NAMES = 3
CSV_COLUMNS = ("option", "gpus", "goodput_req_per_s_per_gpu", "not_carried_req_per_s_per_gpu", "attained", "limit")


def render(answers: Sequence[Answer], impossible: Sequence[Option], terms: Terms, rows: int = 10) -> str:
    """The best, what each knob is best at, and what cannot be."""
    carried = [answer for answer in answers if answer.rate]
    head = f"{'req/s a GPU':>11}{'GPUs':>6}{'attained':>10}  {'option':<{_NAME}}  what limits it"
    lines = [" Highest goodput per GPU ".center(_WIDTH, "="), head, *(_row(a, terms) for a in carried[:rows])]
    lines += [f"and {len(carried) - rows} more"] * (len(carried) > rows)
    left = [answer for answer in answers if not answer.rate]
    if left:
        lines += [" Left there: another carries more, or nothing is carried ".center(_WIDTH, "-")]
        lines += [_row(answer, terms) for answer in left[:rows]]
        lines += [f"and {len(left) - rows} more"] * (len(left) > rows)
    lines += _knobs(answers)
    if impossible:
        lines += [f" Cannot be: {len(impossible)} ".center(_WIDTH, "-"), reasons(impossible)]
    return "\n".join([*lines, "-" * _WIDTH, *_notes(terms), "=" * _WIDTH])


def latencies(found: Sequence[Timed], impossible: Sequence[Option], aim: Aim, terms: Terms, rows: int = 10) -> str:
    """The least, and what cannot be at that rate."""
    head = f"{'ms':>11}{'GPUs':>6}{'attained':>10}  option"
    lines = [f" Least {aim} at {aim.rate:g} req/s ".center(_WIDTH, "="), head]
    for one in found[:rows]:
        share = f"{100 * one.tally.share(terms.goal):.1f} %" if terms.goal.slo else ""
        lines.append(f"{one.ms(aim):>11.4g}{one.option.gpus:>6}{share:>10}  {one.option.name}")
    lines += [f"and {len(found) - rows} more"] * (len(found) > rows)
    if impossible:
        lines += [f" Cannot be at that rate: {len(impossible)} ".center(_WIDTH, "-"), reasons(impossible)]
    said = f"; {100 * terms.goal.target:g} % must keep {terms.goal.slo}" if terms.goal.slo else ""
    notes = [
        f"Each option as often as the GPUs hold it, {terms.load.count(aim.rate)} requests a run,",
        f"{terms.load.said}{said}.",
        f"One run of each, {len(terms.seeds)} of the first {terms.best}.",
    ]
    return "\n".join([*lines, "-" * _WIDTH, *notes, "=" * _WIDTH])


def write_latencies(
    found: Sequence[Timed], impossible: Sequence[Option], aim: Aim, terms: Terms, path: str | Path
) -> None:
    """A row an option, those that cannot be included. Raises OSError."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("option", "gpus", f"p{aim.percentile:g}_{aim.metric}_ms", "attained", "limit"))
        for one in found:
            share = one.tally.share(terms.goal) if terms.goal.slo else ""
            writer.writerow([one.option.name, one.option.gpus, one.ms(aim), share, ""])
        writer.writerows([option.name, option.gpus, "", "", option.reason] for option in impossible)


def whole(answers: Sequence[Answer], terms: Terms) -> str:
    """The best over all of a trace."""
    head = f" Over the whole trace: {terms.load.num_prompts} requests ".center(_WIDTH, "=")
    return "\n".join([head, *(_row(answer, terms) for answer in answers), "=" * _WIDTH])


def _row(answer: Answer, terms: Terms) -> str:
    rate = f"{answer.rate:.4g}" if answer.rate else f"< {answer.above:.4g}"
    share = f"{100 * answer.tally.share(terms.goal):.1f} %" if answer.tally else ""
    return f"{rate:>11}{answer.option.gpus:>6}{share:>10}  {answer.option.name:<{_NAME}}  {answer.limit}"


def _knobs(answers: Sequence[Answer]) -> list[str]:
    """For each knob that has several values, the best with each."""
    lines: list[str] = []
    for knob in dict.fromkeys(key for answer in answers for key in answer.option.knobs):
        lines += [f" {knob} ".center(_WIDTH, "-")]
        for value in dict.fromkeys(answer.option.knobs[knob] for answer in answers):
            of_value = [answer for answer in answers if answer.option.knobs[knob] == value]
            best = min(of_value, key=lambda answer: (answer.order[0], -answer.above, *answer.order[1:]))
            rate = f"{best.rate:.4g}" if best.rate else f"< {best.above:.4g}"
            lines.append(f"{rate:>11}{best.option.gpus:>6}{'':>10}  {value}: {best.option.name}")
    return lines


def reasons(impossible: Sequence[Option]) -> str:
    """Each reason once, below the names that it holds for."""
    groups: dict[str, list[str]] = {}
    for option in impossible:
        groups.setdefault(option.reason, []).append(option.name)
    lines = []
    for reason, names in groups.items():
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        lines += [f"{'; '.join(names[:_NAMES])}{more}:", f"  {reason}"]
    return "\n".join(lines)


def _notes(terms: Terms) -> list[str]:
    goal, load, count = terms.goal, terms.load, len(terms.seeds)
    judged = "of its TTFT and of its TPOT, each by itself" if goal.marginal else "of requests in both"
    long = f"{load.num_prompts} requests" + f" and {load.duration_s:g} s" * bool(load.duration_s)
    return [
        f"Carried: {100 * goal.target:g} % keep {goal.slo}, {judged}; {count} x {long} at the least,",
        f"{load.said}. attained: of those simulated until the verdict was sure.",
        f"Carried and not are apart by {100 * terms.precision:g} % or {terms.step:.3g} req/s a GPU, if that is more.",
        "< : not carried there; where that is so for certain or another is better, it is not searched further.",
    ]


def curve(series: Series) -> str:
    """A line: rate and share for each point."""
    return f"{series.label}\n  " + "  ".join(f"{p.cell.rate:.4g}: {_share(p.attained())}" for p in series.points)


def _share(share: Interval) -> str:
    half = "" if share.high is None else f" +- {100 * (share.high - share.value):.1f}"
    return f"{100 * share.value:.1f}{half} %"


def write_csv(answers: Sequence[Answer], impossible: Sequence[Option], terms: Terms, path: str | Path) -> None:
    """A row an option, those that cannot be included. Raises OSError."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for a in answers:
            share = a.tally.share(terms.goal) if a.tally else ""
            writer.writerow([a.option.name, a.option.gpus, a.rate, a.above, share, a.limit])
        writer.writerows([option.name, option.gpus, 0, 0, "", option.reason] for option in impossible)


def write_plan(deployment: Deployment, said: Sequence[str], path: str | Path) -> None:
    """YAML for `penstock simulate --config` and `penstock serve --plan`, with a few words on top. Raises OSError."""
    text = yaml.safe_dump(_told(deployment), sort_keys=False, allow_unicode=True)
    Path(path).write_text("".join(f"# {line}\n" for line in said) + text, "utf-8")


def _told(struct: msgspec.Struct) -> dict[str, Any]:
    """What is not at its default; pools are always told."""
    told: dict[str, Any] = {}
    for field in msgspec.structs.fields(type(struct)):
        value = getattr(struct, field.name)
        if isinstance(value, msgspec.Struct):
            value = _told(value)
            default: Any = {}
        elif field.name == "pools":
            value, default = [_told(pool) for pool in value], None
        else:
            default = field.default if field.default is not msgspec.NODEFAULT else []
        if value != default:
            told[field.name] = value
    return told
