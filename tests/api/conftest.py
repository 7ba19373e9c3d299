"""One server over one fake home for all tests, which start with a fresh state and must close every stream."""

from collections.abc import Iterator

import pytest
from fake_home import FakeHome
from serving import running

from penstock.api.config import FrontConfig


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[FakeHome, str]]:
    fake = FakeHome()
    with running(fake, FrontConfig(served_names=("fake", "fake-alias"))) as (url, _):
        yield fake, url


@pytest.fixture
def home(served: tuple[FakeHome, str]) -> Iterator[FakeHome]:
    fake, _ = served
    fake.reset()
    yield fake
    assert not fake.open, f"streams left open: {fake.open}"


@pytest.fixture
def server(served: tuple[FakeHome, str], home: FakeHome) -> str:
    return served[1]
