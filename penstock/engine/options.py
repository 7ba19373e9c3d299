"""What can be chosen about an engine. No tensors: the front and the command line read this too."""

import msgspec


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, tag="model"):
    """How to load a model and how much memory its KV may have."""

    #: A local folder, or a hub id.
    model: str
    #: Where a hub id is downloaded to; "" is the hub's own cache.
    download_dir: str = ""
    #: "auto" reads the safetensors; "dummy" draws random weights from `seed` (for performance work).
    load_format: str = "auto"
    #: "auto" is the checkpoint's own; or float32, bfloat16, float16, float64.
    dtype: str = "auto"
    #: "auto" is cuda where there is one, else cpu.
    device: str = "auto"
    #: How steps are run: "cpu" or "cuda" on such a device; "plain" is the slow reference on any; "auto" the fastest.
    backend: str = "auto"
    #: The most tokens, prompt and output, of a job; None is what the model was made for.
    max_len: int | None = None
    #: Ranks that share the model, each a process with a part of its weights and of its KV heads.
    tensor_parallel_size: int = 1
    #: Memory for KV pages (of each rank). None is, on a CPU, a quarter of what is free for all, and no more than 256
    #: jobs of `max_len` need;
    #: on a GPU what `memory_share` leaves beside the weights and a step of `step_tokens`.
    kv_bytes: int | None = None
    memory_share: float = 0.9
    step_tokens: int = 2048
    #: Number of KV pages, instead of `kv_bytes`.
    pages: int | None = None
    #: Host memory for the KV of preempted jobs (of all ranks); 0: what they had is computed again.
    swap_bytes: int = 0
    page_tokens: int = 16
    block_tokens: int = 64
    #: Threads of the CPU, of all ranks together; None is all cores that this process may use.
    threads: int | None = None
    #: What part of the free memory is this engine's, where nobody says how much: others are on the host or the device.
    host_share: float = 1.0
    #: Of dummy weights.
    seed: int = 0

    def __post_init__(self) -> None:
        if self.page_tokens < 1 or self.block_tokens % self.page_tokens:
            raise ValueError(f"block_tokens {self.block_tokens} must be a multiple of page_tokens {self.page_tokens}")
        if self.load_format not in ("auto", "dummy"):
            raise ValueError(f"load_format {self.load_format!r}: choose auto or dummy")
        if self.tensor_parallel_size < 1:
            raise ValueError(f"tensor_parallel_size {self.tensor_parallel_size}: at least 1 is needed")
