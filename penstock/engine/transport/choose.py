"""Which transport: chosen when an instance starts, and all instances of a deployment must have the same."""

from collections.abc import Callable

from penstock.engine.transport.base import Limits, Transport, Wire
from penstock.engine.transport.store import Store
from penstock.engine.transport.zmq import Curve, ZmqWire

TRANSPORTS = ("auto", "nixl", "zmq")


def start_transport(
    name: str,
    store: Store,
    at: str,
    curve: Curve | None = None,
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Transport:
    """The named transport; `auto` is NIXL where it works and is safe, else zmq. `at` and `curve` are those of
    `ZmqWire`; for NIXL, ipc:// says that all peers are on this host. Says which it is and why. Raises ValueError,
    saying what to change, or OSError, if it cannot be had."""
    limits = limits or Limits()
    wire, why = _choose(name, store, at, curve, limits)
    say(f"KV pages travel by {wire.capability} ({why})")
    return Transport(wire, store, limits)


def _choose(name: str, store: Store, at: str, curve: Curve | None, limits: Limits) -> tuple[Wire, str]:
    one_host = at.startswith("ipc://")
    if name == "zmq":
        return ZmqWire(store, at, curve), "as asked for"
    if name == "nixl":
        return _nixl(store, limits, one_host), "as asked for"
    if name != "auto":
        raise ValueError(f"KV transport {name!r}: choose {', '.join(TRANSPORTS)}")
    if not store.layout.pages:
        return ZmqWire(store, at, curve), "there are no pages"
    if not one_host:
        return ZmqWire(store, at, curve), "NIXL neither encrypts nor authenticates between hosts"
    try:
        return _nixl(store, limits, one_host), "installed, and costs the source nothing"
    except ValueError as error:
        return ZmqWire(store, at, curve), str(error)


def _nixl(store: Store, limits: Limits, one_host: bool) -> Wire:
    from penstock.engine.transport.nixl import NixlWire

    return NixlWire(store, limits, one_host)
