"""What is simulated: instances, what messages take, and what goes wrong."""

import msgspec

from penstock.core.config import ClusterConfig, InstanceConfig
from penstock.core.slo import Slo
from penstock.cost.models import Model


class MemberConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An instance that is simulated."""

    instance: InstanceConfig
    #: What its policy reckons with; None: with what steps do cost.
    predictor: Model | None = None
    #: Weights that it reads over the link before it is ready, and what else its start takes.
    load_bytes: int = 0
    start_ns: int = 0
    #: What a position takes in the KV cache: what a move carries.
    kv_bytes_per_token: int = 0
    #: Bandwidth to host memory, for what preempted jobs have; 0: copies take no time.
    swap_bytes_per_s: float = 0.0


class Delays(msgspec.Struct, frozen=True, kw_only=True):
    """What messages and the front take, in ns."""

    #: From sending a request to its dispatch (HTTP, JSON), and for each prompt token (tokenization).
    front: int = 0
    front_per_token: float = 0.0
    #: From the home to an instance's core.
    dispatch: int = 0
    #: From the end of a step to its tokens at the client.
    token: int = 0
    #: From an instance to the cluster.
    report: int = 0
    #: From an instance to another.
    peer: int = 0
    #: What a pull takes beside the bytes.
    pull: int = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An instance is gone at `at_ns` with all that it held, and starts again `down_ns` later; None: never. `drain`: it
    is told to empty itself instead, and goes once it has."""

    instance: int
    at_ns: int
    down_ns: int | None = None
    drain: bool = False


class SimConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated."""

    members: list[MemberConfig]
    cluster: ClusterConfig = ClusterConfig()
    #: Promised to requests that bring none of their own.
    slo: Slo = Slo()
    delays: Delays = Delays()
    #: Bandwidth, in bytes/s, that all instances share when they load their weights; 0: loading takes no time.
    load_bytes_per_s: float = 0.0
    #: Bandwidth of each instance's port, in bytes/s, that its moves share; 0: copies take no time.
    move_bytes_per_s: float = 0.0
    #: Instances are ready when the run begins; else they start then.
    warm: bool = True
    failures: list[Failure] = []
    #: Keep when each token came; else of the first and the last only, for runs of many millions.
    every_token: bool = True
    #: Play every step by itself: slow, for those who do not believe.
    stepping: bool = False


def alike(instance: InstanceConfig, count: int = 1, *, delays: Delays = Delays(), stepping: bool = False) -> SimConfig:
    """So many instances of one kind."""
    cluster = ClusterConfig(policy=instance.policy, max_num_queued=instance.limits.max_num_queued)
    members = [MemberConfig(instance=instance) for _ in range(count)]
    return SimConfig(members=members, cluster=cluster, delays=delays, stepping=stepping)
