"""How many tokens of KV fit beside the weights.

    tokens = (memory x utilization - reserve - weights of the fullest GPU) / KV bytes of a token on that GPU

rounded down to whole pages. `utilization` is the share of the GPU that the server may use; `reserve` is what else it
needs within that share, mostly the activations of its largest step (`activation_bytes`). Weights are split evenly over
the GPUs of a stage, embedding and output layer included, as vLLM does; the first stage has the embedding, the last the
output layer, and a stage has at most ceil(layers / stages) layers. KV heads are split over a stage's GPUs until there
is one each. All stages give a token a page, so the stage with the least room decides.
"""

from penstock.cost.hardware import Hardware
from penstock.cost.shapes import Shape, check_split


def kv_tokens(
    hardware: Hardware,
    shape: Shape,
    *,
    tp: int = 1,
    pp: int = 1,
    utilization: float = 0.9,
    reserve: int = 0,
    page_tokens: int = 16,
) -> int:
    """Tokens of KV that one instance of tp x pp GPUs holds, whole pages only.

    Raises ValueError, with the bytes that are missing, where not even one page fits, and for a split that the shape
    does not allow.
    """
    check_split(shape, tp, pp)
    if not 0 < utilization <= 1:
        raise ValueError(f"utilization {utilization} is a share of the GPU's memory, above 0 and at most 1")
    usable = int(hardware.memory_bytes * utilization) - reserve
    pages = []
    for layers, weights in stages(shape, tp, pp):
        page = 2 * layers * max(1, shape.kv_heads // tp) * shape.head_dim * shape.dtype_bytes * page_tokens
        if usable < weights + page:
            raise ValueError(
                f"{weights + page - usable} bytes are missing on {hardware.name} with tp {tp}, pp {pp}: weights take "
                f"{weights} of {usable} usable bytes a GPU, a page of {page_tokens} tokens {page}; use more GPUs"
            )
        pages.append((usable - weights) // page)
    return min(pages) * page_tokens


def stages(shape: Shape, tp: int, pp: int) -> list[tuple[int, int]]:
    """(Layers, weight bytes a GPU) of each pipeline stage; the first stages have the odd layers."""
    found = []
    for stage in range(pp):
        layers = shape.layers // pp + (stage < shape.layers % pp)
        tables = int(stage == 0) + int(stage == pp - 1 and not (shape.tied and pp == 1))
        found.append((layers, (layers * shape.layer_bytes + tables * shape.embedding_bytes) // tp))
    return found


def activation_bytes(shape: Shape, tokens: int, tp: int = 1) -> int:
    """What a step of so many positions holds at once, at its fullest: in the MLP, its input and residual, and the
    products of its first matrices with the activation made from them."""
    mlp = (3 if shape.gated else 2) * shape.intermediate // tp
    return tokens * (2 * shape.hidden + mlp) * shape.dtype_bytes
