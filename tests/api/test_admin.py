"""The small endpoints, request ids, and the metrics' text."""

import contextlib
from collections.abc import Iterator

import httpx
import pytest
from fake_home import FakeHome, JobFailed, instance, say
from prometheus_client.parser import text_string_to_metric_families
from serving import running, wait_for

from penstock import __version__
from penstock.api.config import FrontConfig
from penstock.core.events import Load
from penstock.core.move import MoveEnded


def test_models(server: str) -> None:
    names = [card["id"] for card in httpx.get(f"{server}/v1/models").json()["data"]]
    assert names == ["fake", "fake-alias"]
    card = httpx.get(f"{server}/v1/models/fake-alias").json()
    assert (card["id"], card["max_model_len"], card["object"]) == ("fake-alias", 1000, "model")
    assert httpx.get(f"{server}/v1/models/other").status_code == 404


def test_models_with_a_slash_in_the_name(home: FakeHome) -> None:
    with running(home, FrontConfig(served_names=("org/model",))) as (url, _):
        assert httpx.get(f"{url}/v1/models/org/model").json()["id"] == "org/model"


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_health_is_200_only_when_ready(server: str, home: FakeHome, path: str) -> None:
    assert httpx.get(server + path).status_code == 200
    for state in ("starting", "restarting", "draining", "stopped", "failed"):
        home.state, home.state_reason = state, "because"
        reply = httpx.get(server + path)
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == state
        assert "because" in reply.json()["error"]["message"]


def test_health_counts_instances(server: str, home: FakeHome) -> None:
    home.instances = [instance(0, Load()), instance(1, Load(), state="draining"), instance(2, Load())]
    assert httpx.get(f"{server}/health").json() == {"status": "ready", "instances_up": 2, "instances": 3}


def test_version_and_load(server: str) -> None:
    assert httpx.get(f"{server}/version").json() == {"version": __version__}
    assert httpx.get(f"{server}/load").json() == {"server_load": 0}


def test_tokenize_and_back(server: str) -> None:
    body = httpx.post(f"{server}/tokenize", json={"prompt": "hé", "return_token_strs": True}).json()
    assert body == {"count": 3, "max_model_len": 1000, "tokens": [104, 195, 169], "token_strs": ["h", "�", "�"]}
    assert httpx.post(f"{server}/detokenize", json={"tokens": body["tokens"]}).json() == {"prompt": "hé"}
    chat = {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": True}
    assert httpx.post(f"{server}/tokenize", json=chat).json()["count"] == len("user: a\nassistant:")
    for wrong in ({}, chat | {"prompt": "a"}):
        assert httpx.post(f"{server}/tokenize", json=wrong).status_code == 400


def test_request_ids_are_echoed_or_made(server: str) -> None:
    assert httpx.get(f"{server}/version", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = {httpx.get(f"{server}/nowhere").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert httpx.get(f"{server}/version", headers={"x-request-id": "y" * 200}).headers["x-request-id"] != "y" * 200


def metrics(url: str) -> dict[tuple[str, str], float]:
    """(sample name, its labels but the model's) -> value. The parser checks the format."""
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            assert sample.labels.pop("model_name") == "fake"
            found[sample.name, ",".join(sample.labels.values())] = sample.value
    return found


@pytest.fixture
def fresh(home: FakeHome) -> Iterator[str]:
    """A server that has counted nothing yet."""
    with running(home, FrontConfig(served_names=("fake",))) as (url, _):
        yield url


def test_metrics_under_both_names(fresh: str, home: FakeHome) -> None:
    server = fresh
    ask = {"prompt": "hello", "max_tokens": 4}
    assert httpx.post(f"{server}/v1/completions", json=ask).status_code == 200
    httpx.post(f"{server}/v1/completions", json=ask, headers={"x-slo-ttft-ms": "0.0001"})
    home.script = lambda asked: [JobFailed("dropped", "late")]
    httpx.post(f"{server}/v1/completions", json=ask)
    with contextlib.suppress(httpx.ReadTimeout):
        home.script = lambda asked: [30.0]
        httpx.post(f"{server}/v1/completions", json=ask, timeout=0.2)
    wait_for(lambda: not home.open)
    got = metrics(server)
    for prefix in ("penstock_", "vllm:"):
        assert got[prefix + "num_requests_running", ""] == 2
        assert got[prefix + "num_requests_waiting", ""] == 1
        assert got[prefix + "kv_cache_usage_perc", ""] == 0.25
        assert got[prefix + "prompt_tokens_total", ""] == 20
        assert got[prefix + "generation_tokens_total", ""] == 8
        assert got[prefix + "request_success_total", "length"] == 2
        assert got[prefix + "request_success_total", "error"] == 1
        assert got[prefix + "request_success_total", "abort"] == 1
        assert got[prefix + "time_to_first_token_seconds_count", ""] == 2
        assert got[prefix + "inter_token_latency_seconds_count", ""] == 6
        assert got[prefix + "request_time_per_output_token_seconds_count", ""] == 2
        assert got[prefix + "e2e_request_latency_seconds_count", ""] == 2
        assert got[prefix + "request_prompt_tokens_sum", ""] == 20
        assert got[prefix + "request_generation_tokens_sum", ""] == 8
    outcomes = {
        name: got["penstock_requests_total", name]
        for name in ("good", "late", "dropped", "rejected", "failed", "cancelled")
    }
    assert outcomes == {"good": 1, "late": 1, "dropped": 1, "rejected": 0, "failed": 0, "cancelled": 1}


def test_metrics_of_each_instance(fresh: str, home: FakeHome) -> None:
    loads = [
        Load(running=2, pages=100, pages_free=75, preemptions=5, leaving=2, moves=9),
        Load(waiting=3, pages=50, pages_free=50, arriving=1),
    ]
    home.instances = [instance(0, loads[0]), instance(7, loads[1], "decode", "draining")]
    counts = home.instances[0].moves
    counts.taken, counts.copied, counts.again, counts.aborted = 4, 1000, 30, {"no room": 3}
    found = {key: value for key, value in metrics(fresh).items() if key[0].startswith("penstock_instance_")}
    assert found == {
        ("penstock_instance_up", "0,"): 1,
        ("penstock_instance_up", "7,decode"): 0,
        ("penstock_instance_requests_running", "0,"): 2,
        ("penstock_instance_requests_running", "7,decode"): 0,
        ("penstock_instance_requests_waiting", "0,"): 0,
        ("penstock_instance_requests_waiting", "7,decode"): 3,
        ("penstock_instance_kv_pages", "0,"): 100,
        ("penstock_instance_kv_pages", "7,decode"): 50,
        ("penstock_instance_kv_pages_free", "0,"): 75,
        ("penstock_instance_kv_pages_free", "7,decode"): 50,
        ("penstock_instance_preemptions_total", "0,"): 5,
        ("penstock_instance_preemptions_total", "7,decode"): 0,
        ("penstock_instance_moves_leaving", "0,"): 2,
        ("penstock_instance_moves_leaving", "7,decode"): 0,
        ("penstock_instance_moves_arriving", "0,"): 0,
        ("penstock_instance_moves_arriving", "7,decode"): 1,
        ("penstock_instance_moves_begun_total", "0,"): 9,
        ("penstock_instance_moves_begun_total", "7,decode"): 0,
        ("penstock_instance_moves_taken_total", "0,"): 4,
        ("penstock_instance_moves_taken_total", "7,decode"): 0,
        ("penstock_instance_move_copied_positions_total", "0,"): 1000,
        ("penstock_instance_move_copied_positions_total", "7,decode"): 0,
        ("penstock_instance_move_recomputed_positions_total", "0,"): 30,
        ("penstock_instance_move_recomputed_positions_total", "7,decode"): 0,
        ("penstock_instance_move_copied_bytes_total", "0,"): 64000,
        ("penstock_instance_move_copied_bytes_total", "7,decode"): 0,
        ("penstock_instance_moves_aborted_total", "0,no room,"): 3,
    }


def test_metrics_of_moves_and_of_what_went_wrong(fresh: str, home: FakeHome) -> None:
    """Preemptions are counted on, whichever instances are there."""
    home.on_moved(MoveEnded(1, 1, "balance", "", 96, 4, (1_000_000, 30_000_000, 0, 2_000_000, 3_000_000), 4_000_000))
    home.on_moved(MoveEnded(2, 1, "balance", "no room", 0, 0, (5_000_000, 0, 0, 0, 0)))
    home.fleet.restarts = 2
    home.replays.update({"instance ended": 7})
    home.instances = [instance(0, Load(preemptions=5))]
    metrics(fresh)
    home.instances = [instance(1, Load(preemptions=2))]
    got = metrics(fresh)
    assert got["penstock_num_preemptions_total", ""] == got["vllm:num_preemptions_total", ""] == 7
    assert got["penstock_restarts_total", ""] == 2
    assert got["penstock_replays_total", "instance ended"] == 7
    assert got["penstock_move_phase_seconds_count", "reserve"] == 2
    assert got["penstock_move_phase_seconds_sum", "reserve"] == pytest.approx(0.006)
    assert got["penstock_move_phase_seconds_count", "stop"] == 0
    assert got["penstock_move_downtime_seconds_count", ""] == 1
    assert got["penstock_move_downtime_seconds_sum", ""] == pytest.approx(0.004)


def test_a_finished_answer_is_no_load(server: str, home: FakeHome) -> None:
    home.script = lambda asked: say([65])
    httpx.post(f"{server}/v1/completions", json={"prompt": "a", "n": 3})
    assert httpx.get(f"{server}/load").json() == {"server_load": 0}
