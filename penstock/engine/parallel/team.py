"""The ranks of one instance as one: what `start_engine` and the runner know of tensor parallelism. Lives on rank 0.

Rank 0 has a share of the model like any other, and alone has jobs and samples. It tells the other ranks of each step
and then runs its own part; the ranks meet in the model's sums. Pages are numbered alike on all ranks.
"""

import tempfile
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec
from torch import Tensor, nn
from transformers import PretrainedConfig

from penstock.engine import probe
from penstock.engine.backend import Int64, Kv, Step
from penstock.engine.options import EngineOptions
from penstock.engine.parallel.group import RankLost
from penstock.engine.parallel.memory import map_kv
from penstock.engine.parallel.messages import Allocate, Capture, Done, Forget, Join, Measure, ToRank, forward_of
from penstock.engine.parallel.plan import check_size
from penstock.engine.parallel.ranks import Ranks
from penstock.engine.parallel.shard import load_share, skeleton, stream
from penstock.engine.parallel.weights import Weights

T = TypeVar("T")


class Team:
    """As `member.Member`, for all ranks at once; and the backend of their model, as the runner sees it."""

    def __init__(self, folder: Path, config: PretrainedConfig, options: EngineOptions) -> None:
        """Starts the other ranks and loads. Raises ValueError if the model cannot be cut like this, or what any rank
        raised. `options.threads` are all ranks' together."""
        self._folder, self._config = folder, config
        size = options.tensor_parallel_size
        self._options = msgspec.structs.replace(options, threads=max(1, (options.threads or size) // size))
        check_size(skeleton(folder, config, options), size)
        self._ranks = Ranks(size)
        self.close = weakref.finalize(self, self._ranks.close)
        try:
            with tempfile.TemporaryDirectory(prefix="penstock-") as meeting:
                mine, *others = [self._join(rank, f"{meeting}/store") for rank in range(size)]
                self._ranks.tell_each(others)
                self._ranks.release()
                self._ranks.answers()
                self._member, _ = self._together(lambda: load_share(mine, self._ranks.peers[0]))
        except BaseException:
            self.close()
            raise
        self.name = self._name()

    def _name(self) -> str:
        """The backend's own may change as it gets ready."""
        return f"{self._member.backend.name}, tensor parallel over {self._options.tensor_parallel_size} ranks"

    def _join(self, rank: int, store: str) -> Join:
        memory = self._ranks.memories[rank - 1].fileno() if rank else -1
        return Join(
            rank=rank,
            size=self._options.tensor_parallel_size,
            folder=str(self._folder),
            options=self._options,
            store=store,
            memory=memory,
            peers=[peer.fileno() for peer in self._ranks.peers[rank]],
        )

    @property
    def model(self) -> nn.Module:
        """Rank 0's share of it."""
        return self._member.model

    @property
    def backend(self) -> "Team":
        return self

    @property
    def page_bytes(self) -> int:
        """Of all ranks together."""
        return self._options.tensor_parallel_size * self._member.page_bytes

    def measure(self, max_len: int) -> int:
        """KV pages that each rank has room for."""
        mine, others = self._together(lambda: self._member.measure(max_len), Measure(max_len))
        return min(mine, *(answer.number for answer in others))

    def reference(self, prompts: list[Int64]) -> list[Tensor]:
        """As `probe.reference`, by the model before it was cut."""
        whole = skeleton(self._folder, self._config, self._options)
        stream(whole, Weights(self._folder, self._config, self._options), self._member.device)
        return probe.reference(whole, prompts)

    def allocate(self, pages: int) -> Kv:
        """Rank 0's tensors, with the others' beside them where this process can reach them: on a CPU."""
        kv, _ = self._together(lambda: self._member.allocate(pages), Allocate(pages))
        self.name = self._name()
        if self._member.device.type != "cpu":
            return kv
        return replace(kv, peers=tuple(map_kv(m.fileno(), self._member, pages) for m in self._ranks.memories))

    def capture(self, width: int) -> str:
        """What one rank cannot record, none replays."""
        mine, others = self._together(lambda: self._member.capture(width), Capture(width))
        note = next(filter(None, (mine, *(answer.note for answer in others))), "")
        if note:
            self._together(self._member.forget, Forget())
        return note

    def guard(self) -> None:
        """The instance is ready; from now on this process ends if a rank does."""
        self._ranks.guard()

    def prepare(self, model: nn.Module) -> None:
        """Each rank has prepared its own in `allocate`."""

    def forward(self, model: nn.Module, step: Step, kv: Kv) -> Tensor:
        """As in `Backend`. Raises RankLost on any error; then it is over."""
        self._ranks.tell(forward_of(step))
        try:
            return self._member.backend.forward(model, step, kv)
        except BaseException as error:
            # The others wait in the middle of the model, and would take the next step's sums for this one's.
            self.close()
            if isinstance(error, Exception):
                raise RankLost(f"rank 0: {error}") from error
            raise

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kv: Kv, step: Step, scale: float) -> Tensor:
        return self._member.backend.attend(layer, q, k, v, kv, step, scale)

    def _together(self, own: Callable[[], T], message: ToRank | None = None) -> tuple[T, list[Done]]:
        """Have all ranks do it, this one included; what it gives here, and the others' answers."""
        if message is not None:
            self._ranks.tell(message)
        try:
            mine = own()
        except RankLost:
            self._ranks.raise_refusal()
            raise
        return mine, self._ranks.answers()
