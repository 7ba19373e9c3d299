"""A job: a run of positions to execute, whatever they are. Knows nothing of models, tokens or text.

A completion of a prompt of P tokens with at most N new ones is P + N - 1 positions of one module: executing
position i needs the input of i, and executing the last *known* position makes the next one known (that is the
token it emits). An image is encode, denoise steps, decode: the same counters, over several units.

    0 ........ done ........ planned ........ known ........ total
      executed      in flight       may run now     not known yet

The three counters (nano-vllm's two, and the frontier) tell everything about progress: there is no phase.
"""

from penstock.core.prefix import Node
from penstock.core.spec import JobSpec

NEVER = 1 << 62


class Job:
    """A job on an instance: its spec, its home's epoch, and a few integers."""

    __slots__ = (
        "done",
        "epoch",
        "id",
        "keys",
        "known",
        "node",
        "planned",
        "queued",
        "room",
        "share_at",
        "shared",
        "spec",
        "stowed",
        "total",
    )

    def __init__(self, spec: JobSpec, epoch: int) -> None:
        self.spec = spec
        self.id = spec.id
        self.epoch = epoch
        self.total = spec.total
        #: Positions executed, and kept in the pool.
        self.done = 0
        #: `done` plus what is in flight.
        self.planned = 0
        #: Positions whose input exists.
        self.known = spec.known
        #: `known` when it last began to wait.
        self.queued = spec.known
        #: Positions that the job's pages have room for: blocks that it shares, then pages of its own.
        self.room = 0
        #: Blocks at the start that are in the pool's table of shared blocks.
        self.shared = 0
        #: The value of `done` at which the next block can be shared; NEVER where it has no name.
        self.share_at = NEVER
        #: Positions that host memory keeps for it while it waits.
        self.stowed = 0
        self.keys = list(spec.keys)
        #: Where in the tree of shared blocks its path ends; None while it has none.
        self.node: Node | None = None

    @property
    def wants(self) -> int:
        """Positions that could be planned now. At the frontier it is one: the step in flight makes it known."""
        return min(max(self.known - self.planned, 1), self.total - self.planned)

    @property
    def order(self) -> tuple[int, int]:
        """Arrival order, a total one."""
        return (self.spec.arrival, self.id)

    def __repr__(self) -> str:
        return f"Job({self.id}, done={self.done}, planned={self.planned}, known={self.known}, total={self.total})"
