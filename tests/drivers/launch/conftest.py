"""A mailbox where the workers that a test launches say hello."""

from collections.abc import Iterator

import pytest
from meeting import Meeting


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    meeting = Meeting()
    yield meeting
    meeting.close()
