"""The operator's endpoints: which instances there are; add, drain, remove and restart some. Off without an admin key.

What is asked for begins at once and may take long: the answer (202) is how things are then.
"""

from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec.json import encode

from penstock.api.call import Call
from penstock.api.errors import ApiError, bad
from penstock.api.front import Front
from penstock.drivers.fleet import ROLES
from penstock.drivers.messages import Instance

#: Added in one request, at most.
_MOST = 64


class InstanceCard(msgspec.Struct, kw_only=True):
    """One instance; its load is as in its last report."""

    instance: int
    role: str
    state: str
    host: str
    pid: int
    running: int
    waiting: int
    pages: int
    pages_free: int
    preemptions: int


class InstanceList(msgspec.Struct, kw_only=True):
    """What every path here answers."""

    data: list[InstanceCard]


class AddRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    role: str = ""
    count: Annotated[int, msgspec.Meta(ge=1, le=_MOST)] = 1


class RoleRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    role: str


class MoveRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Up to `jobs` running requests, of the policy's choice, go on at instance `to`; their clients notice nothing."""

    to: int
    jobs: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1


_ADD = msgspec.json.Decoder(AddRequest)
_ROLE = msgspec.json.Decoder(RoleRequest)
_MOVE = msgspec.json.Decoder(MoveRequest)


async def instances(front: Front, call: Call) -> None:
    await _show(front, call, 200)


async def add(front: Front, call: Call) -> None:
    request = await front.decode(call, _ADD)
    role = _known(request.role)
    for _ in range(request.count):
        front.home.fleet.add(role)
    await _show(front, call, 202)


async def remove(front: Front, call: Call) -> None:
    await _change(front, call, front.home.fleet.remove)


async def drain(front: Front, call: Call) -> None:
    await _change(front, call, front.home.fleet.drain)


async def role(front: Front, call: Call) -> None:
    fleet = front.home.fleet
    role = _known((await front.decode(call, _ROLE)).role)
    await _change(front, call, lambda instance: fleet.assign(instance, role))


async def move(front: Front, call: Call) -> None:
    request = await front.decode(call, _MOVE)
    there = [found.instance for found in front.home.instances]
    if request.to not in there or request.to == call.scope["path_params"]["instance"]:
        raise bad(f"to: {request.to} is no other instance; there are {', '.join(map(str, there))}.", "to")
    await _change(front, call, lambda instance: front.home.fleet.move(instance, request.to, request.jobs))


async def restart(front: Front, call: Call) -> None:
    front.home.fleet.restart()
    await _show(front, call, 202)


async def _change(front: Front, call: Call, change: Callable[[int], None]) -> None:
    instance: int = call.scope["path_params"]["instance"]
    try:
        change(instance)
    except KeyError:
        there = ", ".join(str(found.instance) for found in front.home.instances) or "none"
        raise ApiError(404, f"There is no instance {instance}: there are {there}.", code="instance_not_found") from None
    await _show(front, call, 202)


async def _show(front: Front, call: Call, status: int) -> None:
    await call.reply(status, encode(InstanceList(data=[*map(_card, front.home.instances)])))


def _card(instance: Instance) -> InstanceCard:
    load = instance.load
    return InstanceCard(
        instance=instance.instance,
        role=instance.role,
        state=instance.state,
        host=instance.host,
        pid=instance.pid,
        running=load.running,
        waiting=load.waiting,
        pages=load.pages,
        pages_free=load.pages_free,
        preemptions=load.preemptions,
    )


def _known(role: str) -> str:
    if role not in ROLES:
        raise bad(
            f"role {role!r} is not known: use prefill, decode, or an empty one for an instance that does both.", "role"
        )
    return role
