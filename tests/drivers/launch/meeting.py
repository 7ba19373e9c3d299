"""A socket where real workers say hello."""

import asyncio

import msgspec
import zmq
import zmq.asyncio

from penstock.drivers import messages as m
from penstock.drivers.worker import WorkerConfig
from penstock.engine.null import NullOptions


class Meeting:
    """Where workers connect to over tcp, and what they say of themselves."""

    def __init__(self, context: zmq.asyncio.Context, host: str = "127.0.0.1") -> None:
        self._socket = context.socket(zmq.ROUTER)
        self._address = f"tcp://{host}:{self._socket.bind_to_random_port(f'tcp://{host}')}"

    def config(self, instance: int) -> bytes:
        """For a worker without a model, which connects here."""
        return msgspec.json.encode(WorkerConfig(engine=NullOptions(), address=self._address, instance=instance))

    async def hellos(self, count: int) -> dict[int, m.Hello]:
        """Waits for so many; by instance."""
        decoder = msgspec.msgpack.Decoder(m.ToHome)
        hellos: dict[int, m.Hello] = {}
        async with asyncio.timeout(120):
            while len(hellos) < count:
                message = decoder.decode((await self._socket.recv_multipart())[-1])
                if isinstance(message, m.Hello):
                    hellos[message.instance] = message
        return hellos
