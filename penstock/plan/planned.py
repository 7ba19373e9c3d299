"""What a plan was made for, kept with the deployment: the words that were typed, and the workload in a few numbers."""

import argparse
import shlex
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import numpy as np

from penstock.drivers.deployment import Deployment, PlannedSpec, WorkloadSpec
from penstock.workload.request import Request

#: Digits that are kept of what was measured.
_DIGITS = 4


def numbers(requests: Sequence[Request]) -> WorkloadSpec:
    """Of requests in the order of their arrivals, two at least."""
    gaps = np.diff([r.arrival_s for r in requests])
    prompts = np.array([r.prompt_tokens for r in requests], float)
    answers = np.array([r.output_tokens for r in requests], float)
    return WorkloadSpec(
        gap_cv=_short(gaps.std() / gaps.mean()) if gaps.any() else 0.0,
        input_mean=_short(prompts.mean()),
        input_std=_short(prompts.std()),
        output_mean=_short(answers.mean()),
        output_std=_short(answers.std()),
    )


def keep(
    deployment: Deployment, command: str, rate: float, target: float, attained: float | None, workload: WorkloadSpec
) -> Deployment:
    """With what it was planned for."""
    spec = PlannedSpec(
        command=command, rate=_short(rate), target=target, attained=None if attained is None else _short(attained),
        workload=workload,
    )  # fmt: skip
    return msgspec.structs.replace(deployment, planned=spec)


def words(args: argparse.Namespace, left_out: Collection[str]) -> str:
    """The command line that says the same, but for some flags; those that were not given are not told."""
    said = ["penstock", "plan"]
    for name, value in vars(args).items():
        # A zero is told: it is not what is meant where nothing is said.
        if name not in left_out and value is not None and value is not False and value != []:
            said += _flag(f"--{name.replace('_', '-')}", value)
    return shlex.join(said)


def _flag(flag: str, value: Any) -> list[str]:
    if value is True:
        return [flag]
    if flag == "--knob":
        return [part for knob in value for part in (flag, str(knob))]
    return [flag, *map(str, value)] if isinstance(value, list) else [flag, str(value)]


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
