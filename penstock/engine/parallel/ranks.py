"""The other ranks of an instance, as rank 0 sees them: processes that it starts, talks to, watches and ends.

Each is `python -m penstock.engine.parallel.rank` with one end of a socket pair. They end with this process however it
goes; and once the instance is ready, this process ends with any of them.
"""

import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, NoReturn

import msgspec

from penstock.engine.parallel.group import RankLost
from penstock.engine.parallel.memory import make_memory
from penstock.engine.parallel.messages import Done, FromRank, Refused, ToRank

#: The longest that one step of a start may take a rank: reading its weights is one.
START_S = 1800
#: Status of a process that ends because another rank did.
LOST = 70


class Ranks:
    """Ranks 1 to `size` - 1."""

    def __init__(self, size: int) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromRank)
        self._guarding = False
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        #: Where each keeps its KV, on a CPU.
        self.memories: list[IO[bytes]] = []
        #: For each rank, its sockets to the others, in their order.
        self.peers: list[list[socket.socket]] = [[] for _ in range(size)]
        for one, other in itertools.combinations(range(size), 2):
            for rank, end in zip((one, other), socket.socketpair(), strict=True):
                self.peers[rank].append(end)
        for rank in range(1, size):
            self._start(rank)

    def _start(self, rank: int) -> None:
        ours, theirs = Pipe()
        memory = make_memory()
        self._pipes.append(ours)
        self.memories.append(memory)
        command = [sys.executable, "-m", "penstock.engine.parallel.rank", str(theirs.fileno())]
        started: Future[subprocess.Popen[bytes]] = Future()
        # The system may end a process with the thread that started it, so a thread stays for that, and watches.
        inherited = [theirs.fileno(), memory.fileno(), *(peer.fileno() for peer in self.peers[rank])]
        args = (rank, command, inherited, started)
        threading.Thread(target=self._watch, args=args, name=f"rank {rank}", daemon=True).start()
        self._processes.append(started.result())
        theirs.close()

    def _watch(
        self, rank: int, command: list[str], inherited: Sequence[int], started: "Future[subprocess.Popen[bytes]]"
    ) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env, pass_fds=inherited)
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(process)
        process.wait()
        if self._guarding:
            _end_with(rank, process.returncode)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def guard(self) -> None:
        """From now on a rank that ends takes this process with it: no step could run any more."""
        self._guarding = True
        for rank, process in enumerate(self._processes, 1):
            if process.poll() is not None:
                _end_with(rank, process.returncode)

    def tell(self, message: ToRank) -> None:
        data = self._encoder.encode(message)
        for rank, pipe in enumerate(self._pipes, 1):
            try:
                pipe.send_bytes(data)
            except OSError as error:
                raise RankLost(f"rank {rank} takes no message: {error}") from error

    def tell_each(self, messages: Sequence[ToRank]) -> None:
        for pipe, message in zip(self._pipes, messages, strict=True):
            pipe.send_bytes(self._encoder.encode(message))

    def release(self) -> None:
        """The ranks have their sockets: what is not closed here would not close when they end."""
        for peer in itertools.chain(*self.peers[1:]):
            peer.close()

    def answers(self) -> list[Done]:
        """One from each rank. Raises ValueError if one refuses, RankLost if one is gone."""
        return [self._answer(rank, START_S) for rank in range(1, len(self._pipes) + 1)]

    def raise_refusal(self) -> None:
        """Raise ValueError if a rank has said why it will not go on: that is why another found it gone."""
        for rank, pipe in enumerate(self._pipes, 1):
            if pipe.poll(1):
                self._answer(rank, 0)

    def _answer(self, rank: int, wait_s: float) -> Done:
        pipe = self._pipes[rank - 1]
        try:
            if not pipe.poll(wait_s):
                raise RankLost(f"rank {rank} has not answered for {wait_s} s")
            answer: FromRank = self._decoder.decode(pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise RankLost(f"rank {rank} ended before it was ready; what it says stands above") from error
        if isinstance(answer, Refused):
            raise ValueError(answer.reason)
        return answer

    def close(self) -> None:
        """End them all; they have nothing to lose."""
        self._guarding = False
        for process in self._processes:
            process.kill()
            process.wait()
        for pipe in self._pipes:
            pipe.close()
        for memory in self.memories:
            memory.close()
        for peer in itertools.chain(*self.peers):
            peer.close()


def _end_with(rank: int, status: int) -> NoReturn:
    print(f"rank {rank} of this instance ended with status {status}, so the instance ends", file=sys.stderr, flush=True)
    os._exit(LOST)
