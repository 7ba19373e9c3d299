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
    """The named transport; `auto` is NIXL where it works, else zmq. `at` and `curve` are those of `ZmqWire`. Says which
    it is and why. Raises ValueError, saying what to change, or OSError, if it cannot be had."""
    limits = limits or Limits()
    wire, why = _choose(name, store, at, curve, limits)
    say(f"KV transport {wire.capability} ({why})")
    return Transport(wire, store, limits)


def _choose(name: str, store: Store, at: str, curve: Curve | None, limits: Limits) -> tuple[Wire, str]:
    if name in ("auto", "zmq"):
        return ZmqWire(store, at, curve), "as asked for"
    raise ValueError(f"KV transport {name!r}: choose {', '.join(TRANSPORTS)}")
