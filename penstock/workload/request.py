"""One record a request: when it comes, how long it is, what it shares with others, and what was promised to it.

The words of its prompt are made in `prompts`; files of requests are read and written in `formats`.
"""

import msgspec

from penstock.core.slo import Slo

MOONCAKE_BLOCK = 512
BAILIAN_BLOCK = 16


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One request of a workload. `arrival_s` counts from the start of the run.

    Not tracked by the garbage collector: it holds nothing that could point back to it, and traces have a million.
    """

    arrival_s: float
    prompt_tokens: int
    #: How many tokens the answer has, or the most that it may have.
    output_tokens: int
    #: The prompt itself, where the trace has it.
    prompt: str | None = None
    #: Names of the prompt's blocks, from its start: equal names promise equal content. What is left is its
    #: own.
    hash_ids: tuple[int, ...] = ()
    #: Tokens that each of them stands for.
    block_tokens: int = MOONCAKE_BLOCK
    #: The `max_tokens` that is asked for; None: `output_tokens`.
    limit_tokens: int | None = None
    #: Lower is more urgent; None: not said.
    priority: int | None = None
    #: This request's own, where it differs from the run's.
    slo: Slo | None = None
    #: Requests of one name are the turns of one conversation, in the order of their arrivals.
    session: str = ""
    #: Sent so long after the previous turn of its session was answered; None, or no such turn: at `arrival_s`,
    #: which else says when it comes if answers take no time.
    think_s: float | None = None
    #: The client hangs up so long after sending; None: never.
    cancel_s: float | None = None
    #: The LoRA adapter, by the name that the server knows it by; empty: the base model.
    adapter: str = ""
