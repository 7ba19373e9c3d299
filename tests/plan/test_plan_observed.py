"""Workloads as metrics show them: the numbers are those of the requests, chance is no drift, what is wrong is said."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from penstock.api.metrics import Metrics
from penstock.drivers.deployment import PlannedSpec, WorkloadSpec
from penstock.plan import observed, planned
from penstock.plan.observed import Look, Observed
from penstock.workload.compose import Plan, synthesize
from penstock.workload.trace import Request


class Page:
    """Serves a text."""

    def __init__(self) -> None:
        self.text, self.status = b"", 200
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(page.status)
                self.end_headers()
                self.wfile.write(page.text)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def page() -> Iterator[Page]:
    page = Page()
    yield page
    page.close()


def count(metrics: Metrics, requests: list[Request]) -> None:
    for request in requests:
        metrics.accepted(request.prompt_tokens, request.arrival_s)
        metrics.finished("stop", 1.0, 0.1, request.output_tokens)


async def test_metrics_give_the_numbers_of_the_requests(page: Page) -> None:
    requests = synthesize(Plan(lengths="uniform:10-500", output_lengths="uniform:1-90", count=400, rate=20, seed=3))
    metrics = Metrics("m")
    count(metrics, requests[:100])
    page.text = metrics.text(0, 0, 0.0)
    first = observed.look(page.url)
    count(metrics, requests[100:])
    metrics.ended("rejected", 30)
    page.text = metrics.text(0, 0, 0.0)
    second = observed.look(page.url)
    seen = observed.between(Look(10.0, first.values), Look(25.0, second.values))
    assert (seen.requests, seen.rejected, seen.rate) == (300, 30, 330 / 15)
    truth = planned.numbers(requests[99:])  # The gap before the first counts, too.
    lengths = planned.numbers(requests[100:])
    assert seen.workload is not None
    assert seen.workload.gap_cv == pytest.approx(truth.gap_cv, rel=1e-3)
    for name in ("input_mean", "input_std", "output_mean", "output_std"):
        assert getattr(seen.workload, name) == pytest.approx(getattr(lengths, name), rel=1e-3)


async def test_answers_of_one_request_are_one_arrival() -> None:
    metrics = Metrics("m")
    for arrival_s in (1.0, 1.0, 1.0, 3.0):
        metrics.accepted(5, arrival_s)
    text = metrics.text(0, 0, 0.0).decode()
    assert 'penstock_request_interarrival_seconds_count{model_name="m"} 1.0' in text
    assert 'penstock_request_interarrival_seconds_squared_total{model_name="m"} 4.0' in text


PLANNED = PlannedSpec(
    command="penstock plan", rate=20.0,
    workload=WorkloadSpec(gap_cv=1.0, input_mean=300, input_std=250, output_mean=50, output_std=50),
)  # fmt: skip


def seen_of(seed: int, rate: float, lengths: str, outputs: str, cv: float = 1.0, seconds: float = 30.0) -> Observed:
    requests = synthesize(
        Plan(lengths=lengths, output_lengths=outputs, arrival="gamma", cv=cv, duration_s=seconds, rate=rate, seed=seed)
    )
    return Observed(seconds, len(requests), 0, planned.numbers(requests))


LENGTHS = ("lognormal:300:0.726", "lognormal:50:0.833")


def test_chance_is_no_drift() -> None:
    changes = [observed.drift(PLANNED, seen_of(seed, 20.0, *LENGTHS), 0.2) for seed in range(50)]
    assert sum(map(bool, changes)) <= 1


@pytest.mark.parametrize(
    ("rate", "lengths", "outputs", "cv", "says"),
    [
        (32.0, *LENGTHS, 1.0, "arrival rate: 3"),
        (10.0, *LENGTHS, 1.0, "arrival rate: "),
        (20.0, *LENGTHS, 3.0, "CV of gaps: "),
        (20.0, "lognormal:600:0.7", LENGTHS[1], 1.0, "prompts: "),
        (20.0, LENGTHS[0], "fixed:20", 1.0, "answers: 20 instead of 50 tokens"),
    ],
)
def test_drift_is_named(rate: float, lengths: str, outputs: str, cv: float, says: str) -> None:
    (change, *_) = observed.drift(PLANNED, seen_of(4, rate, lengths, outputs, cv), 0.2)
    assert change.startswith(says) or cv != 1.0
    assert any(one.startswith(says) for one in observed.drift(PLANNED, seen_of(4, rate, lengths, outputs, cv), 0.2))


def test_silence_is_drift_once_it_is_no_chance() -> None:
    assert observed.drift(PLANNED, Observed(30.0, 0, 0, None), 0.2) == ["arrival rate: 0 instead of 20 req/s"]
    assert observed.drift(PLANNED, Observed(0.1, 0, 0, None), 0.2) == []


def test_what_is_no_server_of_ours(page: Page) -> None:
    page.text = b"# TYPE up gauge\nup 1.0\n"
    with pytest.raises(ValueError, match="has no penstock_request_interarrival_seconds_count: is it a server"):
        observed.look(page.url)
    page.status = 404
    with pytest.raises(ValueError, match="404"):
        observed.look(page.url)


def test_a_server_that_has_gone() -> None:
    page = Page()
    page.close()
    with pytest.raises(OSError, match="the server does not answer, or no longer"):
        observed.look(page.url)


async def test_a_server_that_was_started_again(page: Page) -> None:
    looks = []
    for requests in (50, 20):
        metrics = Metrics("m")
        count(metrics, [Request(arrival_s=float(n), prompt_tokens=5, output_tokens=5) for n in range(requests)])
        page.text = metrics.text(0, 0, 0.0)
        looks.append(observed.look(page.url))
    with pytest.raises(ValueError, match="went back"):
        observed.between(*looks)


def test_moments_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).gamma(2.0, 3.0, 100)
    first = Look(0.0, _values(np.zeros(0)))
    seen = observed.between(first, Look(1.0, _values(values)))
    assert seen.workload is not None
    assert (seen.workload.input_mean, seen.workload.input_std) == pytest.approx((values.mean(), values.std()))
    assert seen.workload.gap_cv == pytest.approx(values.std() / values.mean())


def _values(values: "np.typing.NDArray[np.float64]") -> dict[str, float]:
    found = {"penstock_requests_total": 0.0}
    for kind in ("request_interarrival_seconds", "request_prompt_tokens", "request_generation_tokens"):
        found[f"penstock_{kind}_count"] = float(len(values))
        found[f"penstock_{kind}_sum"] = float(values.sum())
        found[f"penstock_{kind}_squared_total"] = float((values**2).sum())
    return found
