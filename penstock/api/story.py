"""GET /v1/requests/{id}/timeline: what happened to a recent request, and what made it slow."""

from collections.abc import Sequence

import msgspec
from msgspec.json import encode

from penstock.api.call import Call
from penstock.api.errors import ApiError
from penstock.api.front import Front
from penstock.core.slo import SECOND, Bounds
from penstock.drivers.story import Story, Told


class RequestTimeline(msgspec.Struct, kw_only=True):
    """One story for each choice, in order. Times are in ms since the choice's arrival at the scheduler."""

    id: str
    choices: Sequence[Told]


async def timeline(front: Front, call: Call) -> None:
    request: str = call.scope["path_params"]["request"]
    stories = front.recent.get(request)
    if stories is None:
        message = f"No request {request!r} is known here: its id is that of the answer, and only recent ones are kept."
        raise ApiError(404, message, code="request_not_found")
    told = [front.home.stories.told(story, _bounds(front, story)) for story in stories]
    await call.reply(200, encode(RequestTimeline(id=request, choices=told)))


def _bounds(front: Front, story: Story) -> Bounds:
    """What was promised, as the ledger judges it."""
    slo, tokens = story.spec.slo, len(story.times)
    ttft_s, tpot_s = front.home.predict(story.spec.known, tokens) if slo.relative else (0.0, 0.0)
    e2e_s = ttft_s + tpot_s * max(0, tokens - 1)
    return slo.resolve(*(round(idle_s * SECOND) for idle_s in (ttft_s, tpot_s, e2e_s)))
