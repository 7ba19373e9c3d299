"""All that decides how an instance and a cluster behave. It opens every log, so that a replay starts from the same."""

import msgspec

from penstock.core.slo import MS, SECOND


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds a step and an instance. Policies read them; names as in vLLM where the meaning is the same."""

    #: Jobs that run at the same time.
    max_num_seqs: int = 256
    #: Positions in one step.
    max_num_batched_tokens: int = 2048
    #: Jobs that wait; more are turned away.
    max_num_queued: int = 1024


class MoveLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds moves, and what they cost: enough to choose between copying and computing again."""

    #: Jobs that arrive at the same time, at most; more are turned away.
    arriving: int = 8
    #: Pages that an arriving job must leave free, so that it is not preempted as soon as it is there.
    spare_pages: int = 0
    #: A wait for the other side ends after so long.
    lease_ns: int = 10 * SECOND
    #: Copies while the job goes on, at most, from 0; after so many it is stopped whatever is left.
    stages: int = 4
    #: A job that was turned away asks again after so long.
    retry_ns: int = 50 * MS
    #: What a copy takes: to begin with, and for each position.
    copy_ns: float = 0.0
    copy_position_ns: float = 0.0
    #: What computing a position again takes; 0: unknown, and then no more than a page is.
    compute_position_ns: float = 0.0
    #: Whether moves copy at all; else the job is always computed again.
    copies: bool = True


class InstanceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides how an instance behaves. It opens every log, so that a replay starts from the same."""

    policy: str = "fcfs"
    #: The row that composes its steps; empty: the policy's own.
    compose: str = ""
    pages: int
    page_tokens: int = 16
    block_tokens: int = 64
    #: Pages in host memory, for what preempted jobs have.
    host_pages: int = 0
    #: Steps in flight at most.
    depth: int = 1
    #: Pipeline stages: with more than one, as many steps are in flight, and they have no job in common.
    stages: int = 1
    limits: Limits = Limits()
    #: Whether what steps take corrects what a policy's predictor says.
    correct: bool = True
    #: What other instances call it.
    number: int = 0
    #: How far it takes a job at the start; see `Assigned`.
    role: str = ""
    moves: MoveLimits = MoveLimits()


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """Knobs of rebalancing, in tokens for each running job: how many steps until an instance is full (its freeness)."""

    #: Jobs move away from an instance with less than `out_tokens`, to one with more than `in_tokens`: the gap keeps
    #: them from going back and forth.
    out_tokens: float = 48.0
    in_tokens: float = 96.0
    period_ns: int = 50 * MS
    #: Parts that can be switched off.
    dispatch: bool = True
    migration: bool = True
    defragmentation: bool = True
    scaling: bool = False
    #: The fleet stays between these sizes, and its mean freeness between these bounds.
    instances_min: int = 1
    instances_max: int = 16
    low_tokens: float = 160.0
    high_tokens: float = 960.0
    #: How often the size is looked at, and how many looks in a row must agree.
    scale_ns: int = 10 * SECOND
    scale_looks: int = 1
    #: What an instance with urgent jobs is kept at, in tokens.
    urgent_tokens: int = 1600


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides how the cluster behaves; opens its log."""

    policy: str = "fcfs"
    #: Jobs that wait, here or on an instance, at most; per instance.
    max_num_queued: int = 1024
    balance: Balance = Balance()
