"""A mailbox where real workers say hello."""

import asyncio

import msgspec

from penstock.drivers import messages as m
from penstock.drivers.wire import Keys, Mailbox
from penstock.drivers.worker import WorkerConfig
from penstock.engine.null import NullOptions


class Meeting:
    """Where workers report over tcp, and what they say of themselves."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._keys = Keys.make()
        self._mailbox: Mailbox[m.ToControl] = Mailbox(m.CONTROL, f"tcp://{host}:*", m.ToControl, self._keys)

    def config(self, instance: int) -> bytes:
        """For a worker without a model, which reports here."""
        config = WorkerConfig(engine=NullOptions(), control=self._mailbox.address, keys=self._keys, instance=instance)
        return msgspec.json.encode(config)

    async def hellos(self, count: int) -> dict[int, m.Hello]:
        """Waits for so many; by instance."""
        hellos: dict[int, m.Hello] = {}
        async with asyncio.timeout(120):
            while len(hellos) < count:
                letter = self._mailbox.receive()
                if letter is None:
                    await asyncio.sleep(0.02)
                elif isinstance(letter.message, m.Hello):
                    hellos[letter.message.instance] = letter.message
        return hellos

    def close(self) -> None:
        self._mailbox.close()
