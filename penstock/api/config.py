"""What the operator decides about the HTTP front. Knows nothing of engines or schedulers."""

from pathlib import Path

import msgspec

from penstock.core.slo import Slo


class FrontConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one front. Limits are per request."""

    #: Names by which clients may call the model; the first is the one reported.
    served_names: tuple[str, ...]
    #: Folder with tokenizer.json and its configuration; None: ids and UTF-8 bytes stand for text (null engine).
    model_folder: Path | None = None
    #: Bearer token that /v1, /tokenize and /detokenize ask for; "" asks for none.
    api_key: str = ""
    #: Bearer token that /admin asks for; without one there is no /admin.
    admin_key: str = ""
    #: What is promised where a request's headers promise nothing else.
    slo: Slo = Slo()
    #: A jinja file or the template itself, instead of the model's own.
    chat_template: str = ""
    #: A name from `tools.PARSERS`, "auto" (from the chat template) or "none".
    tool_call_parser: str = "auto"
    #: Largest request body.
    body_bytes_max: int = 8 << 20
    #: The most answers of one request: prompts times n.
    choices_max: int = 128
    logprobs_max: int = 20
    #: A request that makes no progress for so long (no token, no byte taken by the client) is ended.
    request_timeout_s: float = 600.0
    #: The client must have sent its body within so long.
    body_timeout_s: float = 60.0
    #: Longer texts are tokenized in a thread, so that other streams go on.
    inline_chars_max: int = 4096
