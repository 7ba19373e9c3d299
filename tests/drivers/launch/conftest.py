"""A socket where the workers that a test launches say hello."""

from collections.abc import Iterator

import pytest
import zmq.asyncio
from meeting import Meeting


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    context = zmq.asyncio.Context()
    yield Meeting(context)
    context.destroy(linger=0)
