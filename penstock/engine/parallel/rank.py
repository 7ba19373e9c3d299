"""A rank other than 0: `python -m penstock.engine.parallel.rank DESCRIPTOR`, the descriptor that of its socket.

It runs the steps that it is told, each with the sums in which the ranks meet, and ends when the socket closes: then
rank 0 is gone. It has no scheduler, no jobs and no sampling.
"""

import ctypes
import os
import signal
import socket
import sys
import traceback
from multiprocessing.connection import Connection

import msgspec
import torch

from penstock.engine.member import Member
from penstock.engine.parallel.group import RankLost
from penstock.engine.parallel.memory import map_kv
from penstock.engine.parallel.messages import (
    Allocate,
    Capture,
    Done,
    Forget,
    Forward,
    Join,
    Measure,
    Refused,
    ToRank,
    step_of,
)
from penstock.engine.parallel.ranks import LOST
from penstock.engine.parallel.shard import load_share, rank_device


def main() -> None:
    """Entry point of the process."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[1]))
    status = 0
    try:
        Rank(pipe).run()
    except (EOFError, ConnectionError):
        pass  # rank 0 is gone, or has closed the instance
    except RankLost as error:
        print(error, file=sys.stderr)
        status = LOST
    except (ValueError, OSError) as error:
        pipe.send_bytes(msgspec.msgpack.encode(Refused(str(error))))
        status = 3
    except BaseException:
        traceback.print_exc()
        status = LOST
    sys.stderr.flush()
    os._exit(status)  # whatever threads of the collectives are doing


class Rank:
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._decoder = msgspec.msgpack.Decoder(ToRank)

    def run(self) -> None:
        """Until the socket closes."""
        join = self._receive()
        assert isinstance(join, Join), f"the first message is {join}, not Join"
        rank_device(join.options, join.rank)
        # Nobody waits for a rank that could not even begin.
        self._send(Done())
        member = load_share(join, [socket.socket(fileno=peer) for peer in join.peers])
        self._send(Done())
        while True:
            message = self._receive()
            if isinstance(message, Forward):
                with torch.inference_mode():
                    member.backend.forward(member.model, step_of(message), member.kv)
            else:
                self._send(_prepare(member, message, join.memory))

    def _receive(self) -> ToRank:
        message: ToRank = self._decoder.decode(self._pipe.recv_bytes())
        return message

    def _send(self, message: Done) -> None:
        self._pipe.send_bytes(msgspec.msgpack.encode(message))


def _prepare(member: Member, message: ToRank, memory: int) -> Done:
    """A step of the start."""
    match message:
        case Measure(max_len):
            return Done(member.measure(max_len))
        case Allocate(pages):
            on_host = member.device.type == "cpu"
            member.allocate(pages, map_kv(memory, member, pages) if on_host else None)
            return Done()
        case Capture(width):
            return Done(note=member.capture(width))
        case Forget():
            member.forget()
            return Done()
    raise AssertionError(f"{message} is no step of a start")


def _die_with_parent() -> None:
    """On Linux the kernel can do it, which also ends a rank that is stopped or hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    main()
