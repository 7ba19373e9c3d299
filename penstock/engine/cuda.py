"""The CUDA backend: paged Triton attention, and steps of single tokens replayed as CUDA graphs.

A graph repeats fixed launches on fixed memory, and so spares the CPU the hundreds of launches of a decode step. There
is one for each size in SIZES; a step of fewer jobs is padded with jobs of no context. All other steps run as they are.
It allocates no page and samples nothing. Everything but the recording itself also runs, slowly, without CUDA.
"""

from bisect import bisect_left
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from penstock.engine.backend import NULL_PAGE, Int32, Kv, Paged, Step, call_model
from penstock.engine.triton_attention import Batch, paged_attention, tile_queries, tile_rows, write_pages

#: Numbers of jobs for which decode steps are recorded: at most 15 idle rows in a step, which cost next to nothing.
SIZES: tuple[int, ...] = (1, 2, 4, 8, *range(16, 257, 16))
SPLITS_MAX = 32
#: What makes one copy to the device: the arrays of a Step, in this order.
ARRAYS = ("ids", "positions", "slots", "emit", "query_start", "contexts", "tables")

Run = Callable[[], object]
#: Makes of a function over fixed memory one that repeats its work.
Record = Callable[[Run], Run]


class Cuda:
    """One model on one device. Forward is not reentrant: it leaves the step where attention finds it."""

    name = "cuda"

    def __init__(
        self, device: torch.device | str = "cuda", splits: int | None = None, record: Record | None = None
    ) -> None:
        """`splits` fixes in how many parts a single token's context is read, so that its attention does not depend on
        the batch; None chooses by batch size. `record` replaces CUDA graphs. Raises ValueError if the device is too
        old for Triton."""
        self.device = torch.device(device)
        self._processors = _processors(self.device)
        self._splits = splits
        self._record = record or _GraphRecorder()
        self._live: _Resident | None = None
        #: Jobs of a recorded step -> (its arrays on the device, its replay).
        self._graphs: dict[int, tuple[Tensor, Run]] = {}
        #: What replays write: [largest size, vocab].
        self._logits = torch.empty(0)
        self._width = 0

    def prepare(self, model: nn.Module) -> None:
        """The model stays as it is."""

    @torch.inference_mode()
    def capture(self, model: nn.Module, kv: Kv, width: int) -> None:
        """Record decode steps of all SIZES for jobs of at most `width` pages. Call it once, before the first request;
        from then on forward must be given this model and this `kv`. Compiles all that decoding needs.

        Raises RuntimeError if the model cannot be recorded (it waits for the device in its forward); forward then
        still works, without graphs.
        """
        self._width = width
        steps = {size: pad(_NO_JOBS, size, width) for size in reversed(SIZES)}  # the largest first: it sizes the memory
        graphs = {}
        with self._on_device():
            self._logits = self._eager(model, steps[SIZES[-1]], kv).clone()
            for size, step in steps.items():
                flat = self._upload(pack(step))
                graphs[size] = flat, self._record(self._decode_into(self._logits[:size], model, step, flat, kv))
        self._graphs = graphs

    def forget(self) -> None:
        """Run every step as it is from now on, whatever was recorded."""
        self._graphs = {}

    def forward(self, model: nn.Module, step: Step, kv: Kv) -> Tensor:
        """As in `Backend`. The logits of a replayed step are overwritten by the next forward."""
        with self._on_device():
            size = graph_size(step) if self._graphs else None
            logits = self._eager(model, step, kv) if size is None else self._replay(step, size)
            if not len(step.emit) and self.device.type == "cuda":
                # Nobody will wait for logits, and the step is not done before its work is.
                torch.cuda.current_stream().synchronize()
            return logits

    def _eager(self, model: nn.Module, step: Step, kv: Kv) -> Tensor:
        return self._call(model, step, self._upload(pack(step)), kv)

    def _replay(self, step: Step, size: int) -> Tensor:
        flat, replay = self._graphs[size]
        flat.copy_(self._pinned(pack(pad(step, size, self._width))), non_blocking=True)
        replay()
        jobs = len(step.contexts)
        if len(step.emit) == jobs:
            return self._logits[:jobs]
        return self._logits[self._upload(step.emit.astype(np.int32))]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, kv: Kv, step: Step, scale: float) -> Tensor:
        live = self._live
        assert live is not None, "attention runs inside forward only"
        assert live.step is step, "attention of another step than forward's"
        keys, values = kv.keys[layer], kv.values[layer]
        write_pages(k, v, keys, values, live.slots)
        if live.tiles is None:
            group = q.shape[1] // keys.shape[1]
            queries = tile_rows(q, group) // group
            live.tiles = self._upload(tile_queries(step.query_start, step.decodes, queries))
        batch = Batch(live.query_start, live.contexts, live.tables, step.decodes, live.tiles)
        out, _ = paged_attention(q, keys, values, batch, scale, self._splits_of(step.decodes, keys.shape[1]))
        return out

    @torch.inference_mode()
    def kv_budget_bytes(self, model: nn.Module, kv: Kv, step_tokens: int, share: float) -> int:
        """Bytes for KV pages, if the process is to use no more than `share` of the device's memory: what is left
        beside a step of `step_tokens`, which is run to see. `kv` may be of one page."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self.forward(model, widest_step(step_tokens, kv.page_tokens), kv)
        working = torch.cuda.max_memory_allocated(self.device) - before
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        return budget_bytes(free, total, share, working)

    def _decode_into(self, logits: Tensor, model: nn.Module, step: Step, flat: Tensor, kv: Kv) -> Run:
        return lambda: logits.copy_(self._call(model, step, flat, kv))

    def _call(self, model: nn.Module, step: Step, flat: Tensor, kv: Kv) -> Tensor:
        self._live = live = _Resident(step, flat)
        ids, positions, emit = (array.long() for array in (live.ids, live.positions, live.emit))
        return call_model(model, ids, positions, emit, Paged(self, step, kv))

    def _on_device(self) -> AbstractContextManager[object]:
        """Triton launches on the calling thread's current device, whatever its tensors are on."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _splits_of(self, decodes: int, kv_heads: int) -> int:
        return self._splits or choose_splits(padded(decodes), kv_heads, self._processors)

    def _upload(self, array: Int32) -> Tensor:
        return self._pinned(array).to(self.device, non_blocking=True)

    def _pinned(self, array: Int32) -> Tensor:
        """Memory that a copy can be queued from; torch keeps it until the copy is done."""
        host = torch.from_numpy(array)
        return host.pin_memory() if self.device.type == "cuda" else host


class _Resident:
    """A step's arrays on the device: views of one tensor laid out by `pack`."""

    def __init__(self, step: Step, flat: Tensor) -> None:
        self.step = step
        parts = torch.split(flat, [getattr(step, name).size for name in ARRAYS])
        self.ids, self.positions, self.slots, self.emit, self.query_start, self.contexts, tables = parts
        self.tables = tables.view(step.tables.shape)
        #: From the first layer's attention on; at once where there are none, as nothing can be uploaded in a recording.
        self.tiles = flat[:0].view(0, 2) if step.decodes == len(step.contexts) else None


class _GraphRecorder:
    """Records CUDA graphs that share their working memory, as only one runs at a time."""

    def __init__(self) -> None:
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def __call__(self, run: Run) -> Run:
        run()  # compiles kernels and allocates workspaces, which a recording cannot
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._graphs[0].pool() if self._graphs else None):
            run()
        self._graphs.append(graph)
        return graph.replay


def graph_size(step: Step) -> int | None:
    """The recorded size that a step fits, None if it must run as it is."""
    jobs = len(step.contexts)
    return padded(jobs) if step.decodes == jobs <= SIZES[-1] else None


def padded(jobs: int) -> int:
    """The least of SIZES that is at least `jobs`; beyond them the largest."""
    return SIZES[min(bisect_left(SIZES, jobs), len(SIZES) - 1)]


def choose_splits(jobs: int, kv_heads: int, processors: int) -> int:
    """A power of two of splits that gives each of the device's processors about two programs, at most SPLITS_MAX."""
    wanted = max(1, 2 * processors // (jobs * kv_heads))
    return min(SPLITS_MAX, 1 << wanted.bit_length() - 1)


def pad(step: Step, jobs: int, width: int) -> Step:
    """A step of single tokens made one of `jobs` jobs and `width` pages a job. The added jobs have no context, write
    to the null page, and emit what nobody reads. Raises ValueError if the step is larger."""
    have, pages = step.tables.shape
    if have > jobs or pages > width:
        raise ValueError(f"a step of {have} jobs with up to {pages} pages does not fit {jobs} jobs of {width} pages")
    tables = np.full((jobs, width), NULL_PAGE, np.int32)
    tables[:have, :pages] = step.tables
    ids, positions, slots = np.zeros((3, jobs), np.int64)
    contexts = np.zeros(jobs, np.int32)
    ids[:have], positions[:have], slots[:have], contexts[:have] = step.ids, step.positions, step.slots, step.contexts
    start = np.arange(jobs + 1, dtype=np.int32)
    return Step(ids, positions, slots, start, contexts, tables, jobs, np.arange(jobs))


def pack(step: Step) -> Int32:
    """All arrays of a step in one; `_Resident` takes it apart. Slots, like the rest, are below 2^31."""
    arrays = [getattr(step, name).ravel() for name in ARRAYS]
    return np.concatenate(arrays, dtype=np.int32, casting="same_kind")


def widest_step(tokens: int, page_tokens: int) -> Step:
    """A step of one job with `tokens` new tokens, all in the null page, with as many logits as a step can want."""
    rows = np.arange(tokens)
    tables = np.full((1, -(-tokens // page_tokens)), NULL_PAGE, np.int32)
    start, contexts = np.array([0, tokens], np.int32), np.array([tokens], np.int32)
    return Step(0 * rows, rows, 0 * rows, start, contexts, tables, 0, rows[-SIZES[-1] :])


def budget_bytes(free_bytes: int, total_bytes: int, share: float, working_bytes: int) -> int:
    """What may still be taken of a device, if (1 - share) of it and `working_bytes` are to stay free."""
    return max(0, int(free_bytes - (1 - share) * total_bytes) - working_bytes)


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise ValueError(f"compute capability {major}.{minor} of {device} is too old: the kernels need 8.0 (Ampere)")
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


_NONE = np.zeros(0, np.int64)
_NO_JOBS = Step(
    ids=_NONE, positions=_NONE, slots=_NONE, query_start=np.zeros(1, np.int32), contexts=np.zeros(0, np.int32),
    tables=np.zeros((0, 0), np.int32), decodes=0, emit=_NONE,
)  # fmt: skip
