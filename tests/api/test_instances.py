"""The operator's endpoints, over a home that notes what it is asked for."""

from collections.abc import Iterator

import httpx
import pytest
from fake_home import FakeHome, instance
from serving import running

from penstock.api.config import FrontConfig
from penstock.core.events import Load

KEY = {"authorization": "Bearer secret"}


@pytest.fixture
def admin(home: FakeHome) -> Iterator[httpx.Client]:
    home.instances = [instance(0, Load(running=1, pages=10, pages_free=5)), instance(3, Load(), "decode")]
    config = FrontConfig(served_names=("fake",), api_key="other", admin_key="secret")
    with running(home, config) as (url, _), httpx.Client(base_url=f"{url}/admin", headers=KEY) as client:
        yield client


@pytest.mark.parametrize("headers", [{}, KEY])
def test_without_a_key_there_is_nothing(server: str, headers: dict[str, str]) -> None:
    reply = httpx.get(f"{server}/admin/instances", headers=headers)
    assert reply.status_code == 404
    assert "--admin-key" in reply.json()["error"]["message"]


@pytest.mark.parametrize("key", ["", "Bearer wrong", "Bearer other", "Basic secret"])
def test_the_key_is_checked(admin: httpx.Client, home: FakeHome, key: str) -> None:
    for method, path in (("GET", "/instances"), ("DELETE", "/instances/0"), ("POST", "/instances/restart")):
        reply = admin.request(method, path, headers={"authorization": key})
        assert reply.status_code == 401
        assert reply.json()["error"]["code"] == "invalid_admin_key"
    assert not home.fleet.asked


def test_instances_are_listed(admin: httpx.Client) -> None:
    first, second = admin.get("/instances").json()["data"]
    assert (first["instance"], first["role"], first["state"], first["pid"]) == (0, "", "up", 1000)
    assert (first["running"], first["pages_free"]) == (1, 5)
    assert (second["instance"], second["role"]) == (3, "decode")


def test_what_is_asked_for_is_done(admin: httpx.Client, home: FakeHome) -> None:
    replies = [
        admin.post("/instances", json={}),
        admin.post("/instances", json={"role": "decode", "count": 2}),
        admin.post("/instances/3/drain"),
        admin.delete("/instances/0"),
        admin.post("/instances/3/role", json={"role": "prefill"}),
        admin.post("/instances/3/move", json={"to": 0, "jobs": 2}),
        admin.post("/instances/restart"),
    ]
    assert [reply.status_code for reply in replies] == [202] * 7
    assert home.fleet.asked == [
        ("add", ""),
        ("add", "decode"),
        ("add", "decode"),
        ("drain", 3),
        ("remove", 0),
        ("assign", 3, "prefill"),
        ("move", 3, 0, 2),
        ("restart",),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/instances/9/drain", None, 404, "there are 0, 3"),
        ("DELETE", "/instances/9", None, 404, "no instance 9"),
        ("POST", "/instances/x/drain", None, 404, "nothing at"),
        ("POST", "/instances", {"role": "cook"}, 400, "'cook'"),
        ("POST", "/instances/0/role", {"role": "cook"}, 400, "'cook'"),
        ("POST", "/instances/0/role", {}, 400, "role"),
        ("POST", "/instances/3/move", {"to": 3}, 400, "no other instance"),
        ("POST", "/instances/3/move", {"to": 9}, 400, "there are 0, 3"),
        ("POST", "/instances/9/move", {"to": 0}, 404, "no instance 9"),
        ("POST", "/instances", {"count": 0}, 400, "count"),
        ("POST", "/instances", {"number": 1}, 400, "number"),
        ("PUT", "/instances", {}, 405, "use"),
    ],
)
def test_what_cannot_be_is_said(
    admin: httpx.Client, home: FakeHome, method: str, path: str, body: dict | None, status: int, words: str
) -> None:
    reply = admin.request(method, path, json=body)
    assert reply.status_code == status
    assert words in reply.json()["error"]["message"]
    assert not home.fleet.asked
