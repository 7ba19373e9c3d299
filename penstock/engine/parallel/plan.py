"""How a model is cut for tensor parallelism: by the plan that transformers gives with each family's configuration.

A plan names linear layers: `colwise` ones are cut by their outputs (so that each rank has some heads, or some of an
MLP's inner width), `rowwise` ones by their inputs (their sums then add up to the whole). What no plan names is whole on
all ranks. Knows nothing of weights, processes or collectives.
"""

import re
from math import gcd
from typing import Literal

from torch import nn
from transformers import PretrainedConfig

from penstock.engine.load import Unsupported

Cut = Literal["colwise", "rowwise"]

#: Styles of a plan that leave a module whole.
_WHOLE = {"replicated", "replicated_with_grad_allreduce"}


def cuts(model: nn.Module) -> dict[str, Cut]:
    """Which modules of the model, by name, are cut, and how. Raises Unsupported if its plan is none that we follow."""
    config: PretrainedConfig = model.config  # type: ignore[assignment]
    text = config.get_text_config()
    plan: dict[str, str] = getattr(text, "base_model_tp_plan", None) or {}
    refusal = f"model type {config.model_type!r} cannot be cut for tensor parallelism"
    if not plan:
        raise Unsupported(f"{refusal}: transformers has no plan for it; use tensor_parallel_size 1")
    if strange := sorted(set(plan.values()) - _WHOLE - {"colwise", "rowwise"}):
        raise Unsupported(f"{refusal}: its plan has {', '.join(strange)}, not supported; use tensor_parallel_size 1")
    found: dict[str, Cut] = {}
    for name, module in model.named_modules():
        cut = _cut(plan, name.removeprefix(f"{model.base_model_prefix}."))
        if cut is None:
            continue
        if type(module) is not nn.Linear:
            raise Unsupported(f"{refusal}: {name} is not a linear layer; use tensor_parallel_size 1")
        found[name] = cut
    return found


def _cut(plan: dict[str, str], name: str) -> Cut | None:
    style = plan.get(re.sub(r"\.\d+\.", ".*.", name))
    return "colwise" if style == "colwise" else "rowwise" if style == "rowwise" else None


def check_size(model: nn.Module, size: int) -> None:
    """Raise ValueError, naming the sizes that work, if the model cannot be cut in so many parts."""
    text = model.config.get_text_config()  # type: ignore[operator, union-attr]
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    widths = []
    for name, cut in cuts(model).items():
        linear = model.get_submodule(name)
        widths.append(linear.out_features if cut == "colwise" else linear.in_features)
    common = gcd(heads, kv_heads, *widths)  # type: ignore[arg-type]
    if common % size:
        sizes = [n for n in range(1, common + 1) if common % n == 0]
        raise ValueError(
            f"tensor_parallel_size {size}: {heads} attention heads, {kv_heads} KV heads and the widths of the MLP "
            f"must all divide by it; choose one of {', '.join(map(str, sizes))}"
        )
