"""The small endpoints: what is served, is it well, how is it doing; and text to ids and back."""

import msgspec
from msgspec.json import encode
from prometheus_client import CONTENT_TYPE_LATEST

from penstock import __version__
from penstock.api.call import Call
from penstock.api.chat import prompt_tokens
from penstock.api.errors import bad, unavailable
from penstock.api.front import Front
from penstock.api.ledger import kv_used
from penstock.api.logprobs import token_text
from penstock.api.openapi import document
from penstock.api.protocol import (
    DetokenizeRequest,
    DetokenizeResponse,
    Health,
    ModelCard,
    ModelList,
    ServerLoad,
    TokenizeRequest,
    TokenizeResponse,
    Version,
)

_TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
_DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)


async def models(front: Front, call: Call) -> None:
    await call.reply(200, encode(ModelList(data=[_card(front, name) for name in front.config.served_names])))


async def model(front: Front, call: Call) -> None:
    name: str = call.scope["path_params"]["model"]
    front.check_model(name)
    await call.reply(200, encode(_card(front, name)))


async def health(front: Front, call: Call) -> None:
    """200 only where a request sent now would be worked on."""
    if front.home.state != "ready":
        reason = f": {front.home.state_reason}" if front.home.state_reason else ""
        raise unavailable(f"The server is {front.home.state}{reason}.", code=front.home.state)
    there = front.home.instances
    up = sum(instance.state == "up" for instance in there)
    await call.reply(200, encode(Health(status="ready", instances_up=up, instances=len(there))))


async def version(front: Front, call: Call) -> None:
    await call.reply(200, encode(Version(version=__version__)))


async def load(front: Front, call: Call) -> None:
    await call.reply(200, encode(ServerLoad(server_load=front.ledger.open)))


async def metrics(front: Front, call: Call) -> None:
    now = front.home.capacity
    front.metrics.see_fleet(front.home)
    text = front.metrics.text(now.running, now.waiting, kv_used(now))
    await call.reply(200, text, CONTENT_TYPE_LATEST)


async def openapi(front: Front, call: Call) -> None:
    await call.reply(200, encode(document(front.config)))


async def tokenize(front: Front, call: Call) -> None:
    request = await front.decode(call, _TOKENIZE)
    front.check_model(request.model)
    tokens = await _tokens(front, call, request)
    names = [token_text(front.tokenizer, token) for token in tokens] if request.return_token_strs else None
    max_len = front.info().max_len
    await call.reply(
        200, encode(TokenizeResponse(count=len(tokens), max_model_len=max_len, tokens=tokens, token_strs=names))
    )


async def detokenize(front: Front, call: Call) -> None:
    request = await front.decode(call, _DETOKENIZE)
    front.check_model(request.model)
    text = await front.offload(call.size, lambda: front.tokenizer.decode(request.tokens, False))
    await call.reply(200, encode(DetokenizeResponse(prompt=text)))


async def _tokens(front: Front, call: Call, request: TokenizeRequest) -> list[int]:
    if (request.prompt is None) == (request.messages is None):
        raise bad("Send either prompt or messages.", "prompt")
    if request.messages is not None:
        return await prompt_tokens(
            front,
            call,
            request.messages,
            request.tools or (),
            request.add_generation_prompt,
            request.chat_template_kwargs,
            bool(request.add_special_tokens),
        )
    text, special = request.prompt or "", request.add_special_tokens is not False
    return await front.offload(len(text), lambda: front.tokenizer.encode(text, special))


def _card(front: Front, name: str) -> ModelCard:
    info = front.home.info
    return ModelCard(
        id=name,
        created=front.created,
        root=front.model if info is None else info.model,
        max_model_len=None if info is None else info.max_len,
    )
