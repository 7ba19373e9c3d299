"""Penstock: serving of generative models, judged by goodput. Importing this imports nothing heavy."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from penstock.engine.params import Sampling
    from penstock.llm import LLM

__all__ = ["LLM", "Sampling", "__version__"]


def __getattr__(name: str) -> Any:
    """`LLM` and `Sampling` on first use: torch is not loaded before it is needed."""
    if name == "LLM":
        from penstock.llm import LLM

        return LLM
    if name == "Sampling":
        from penstock.engine.params import Sampling

        return Sampling
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
