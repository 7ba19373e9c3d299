"""Mailboxes in the place of processes, for tests of the one that they write to."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.drivers.wire import Mailbox


@contextmanager
def mailboxes(folder: Path, reads: dict[str, Any]) -> Iterator[list[Mailbox[Any]]]:
    """One of each name, in order, that understands those messages."""
    boxes: list[Mailbox[Any]] = [Mailbox(name, f"ipc://{folder}/{name}", kinds) for name, kinds in reads.items()]
    try:
        yield boxes
    finally:
        for box in boxes:
            box.close()


async def next_of(box: Mailbox[Any], kind: type) -> Any:
    """The next letter of that kind; others are passed over."""
    async with asyncio.timeout(20):
        while True:
            letter = box.receive()
            if letter is None:
                await asyncio.sleep(0.005)
            elif isinstance(letter.message, kind):
                return letter.message
