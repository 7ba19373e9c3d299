"""A worker process hears of others in two ways, from their homes and from the control, which are not in order."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.core.job import JobSpec, Unit
from penstock.core.move import Offload, Reserve, Reserved
from penstock.core.moves import MoveLimits
from penstock.drivers import messages as m
from penstock.drivers.launch.local import LocalLauncher
from penstock.drivers.wire import Mailbox
from penstock.drivers.worker import WorkerConfig
from penstock.engine.null import NullOptions
from penstock.engine.params import Sampling


def next_of(box: Mailbox[Any], kind: type) -> Any:
    """The next letter of that kind; others are passed over."""
    while box.inbox.poll(20_000):
        letter = box.receive()
        if letter is not None and isinstance(letter.message, kind):
            return letter.message
    raise AssertionError(f"no {kind.__name__} came")


@pytest.mark.parametrize("arrives", [False, True])
async def test_what_is_for_an_instance_waits_until_that_is_known(arrives: bool, tmp_path: Path) -> None:
    """A job is to go to instance 1, or comes from there, before the control has said where that is."""
    reads = {m.CONTROL: m.ToControl, "home": m.ToHome | m.Pong, "i1": m.ToWorker}
    boxes: dict[str, Mailbox[Any]] = {
        name: Mailbox(name, f"ipc://{tmp_path}/{name}", kinds) for name, kinds in reads.items()
    }
    control, home, other = boxes.values()
    launcher = LocalLauncher()
    config = WorkerConfig(engine=NullOptions(pages=512), control=control.address, moves=MoveLimits())
    spec = JobSpec(id=1, units=(Unit("lm", 5_000),), known=40, arrival=0)
    try:
        await launcher.launch(msgspec.json.encode(config))
        address = next_of(control, m.Hello).address
        for box in (control, home):
            box.connect("i0", address)
        home.send("i0", m.Attach(home.address))
        if arrives:
            home.send("i0", m.Peer(Reserve(1 << 40, 1, spec, 40), []))
        else:
            home.send("i0", m.Submit(spec, 1, [1] * 40, 40, Sampling(max_tokens=4_000)))
            next_of(home, m.Began)
            home.send("i0", Offload(1, 1, why="drain"))
        home.send("i0", m.Ping(1))
        next_of(home, m.Pong)
        control.send("i0", m.Neighbour(1, other.address, []))
        event = next_of(other, m.Peer).event
        assert isinstance(event, Reserved if arrives else Reserve)
    finally:
        await launcher.close()
        for box in boxes.values():
            box.close()
