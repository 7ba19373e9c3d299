"""Prometheus metrics under our names (`penstock_...`), and again under vLLM's, which dashboards know.

Counts come from the ledger; load is read from the home when somebody asks. Names and help texts only, no judgement.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.core.move import MoveEnded
from penstock.core.slo import SECOND
from penstock.drivers.home import BaseHome
from penstock.drivers.messages import Instance

_LATENCY_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
)
_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 40, 80)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)

#: Name, help and value of what is shown for each instance.
_OF_INSTANCES: tuple[tuple[str, str, Callable[[Instance], float]], ...] = (
    ("up", "Whether the instance takes requests, 0 or 1", lambda i: i.state == "up"),
    ("requests_running", "Answers being generated there", lambda i: i.load.running),
    ("requests_waiting", "Answers waiting there for their first step", lambda i: i.load.waiting),
    ("kv_pages", "KV pages that it has", lambda i: i.load.pages),
    ("kv_pages_free", "KV pages that are free or can be evicted", lambda i: i.load.pages_free),
    ("preemptions_total", "Running answers that had to wait for pages", lambda i: i.load.preemptions),
    ("moves_leaving", "Answers on their way to another instance", lambda i: i.load.leaving),
    ("moves_arriving", "Answers on their way from another instance", lambda i: i.load.arriving),
    ("moves_begun_total", "Moves of answers from there that began", lambda i: i.load.moves),
    ("moves_taken_total", "Moves from there after which the answer went on elsewhere", lambda i: i.moves.taken),
    ("move_copied_positions_total", "Positions whose KV was copied from there", lambda i: i.moves.copied),
    ("move_recomputed_positions_total", "Positions of moves from there computed again", lambda i: i.moves.again),
)
#: Of moves, from below a message's time to a lease.
_MOVE_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
_PHASES = ("reserve", "copy", "stop", "switch", "release")


class Metrics:
    """The metrics of one front, in a registry of their own; `model` labels them all."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        self._running = self._gauge("num_requests_running", "Answers being generated")
        self._waiting = self._gauge("num_requests_waiting", "Answers waiting for their first step")
        self._kv = self._gauge("kv_cache_usage_perc", "Share of KV pages in use, 0 to 1")
        self._instances = _Instances(model)
        self._registry.register(self._instances)
        self._tasks = self._gauge("event_loop_tasks", "asyncio tasks of the HTTP front: at rest a few, always the same")
        self._prompts = self._counter("prompt_tokens", "Prompt tokens accepted")
        self._generated = self._counter("generation_tokens", "Output tokens received from the engine")
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token", _LATENCY_S)
        self._itl = self._histogram("inter_token_latency_seconds", "Between two tokens of an answer", _TOKEN_S)
        self._tpot = self._histogram(
            "request_time_per_output_token_seconds", "(E2E - TTFT) / (n - 1) of an ended answer", _TOKEN_S
        )
        self._e2e = self._histogram(
            "e2e_request_latency_seconds", "Arrival to last token of an ended answer", _LATENCY_S
        )
        self._prompt_sizes = self._histogram("request_prompt_tokens", "Prompt tokens of an accepted answer", _TOKENS)
        self._answer_sizes = self._histogram("request_generation_tokens", "Output tokens of an ended answer", _TOKENS)
        self._gaps = Histogram(
            "penstock_request_interarrival_seconds", "Between the arrivals of accepted requests", ("model_name",),
            buckets=_LATENCY_S, registry=self._registry,
        ).labels(model)  # fmt: skip
        self._gap_squares = self._squares("request_interarrival_seconds")
        self._prompt_squares = self._squares("request_prompt_tokens")
        self._answer_squares = self._squares("request_generation_tokens")
        #: When the last accepted request arrived.
        self._arrived_s: float | None = None
        self._finished = Counter(
            "penstock_request_success", "Ended answers by reason", ("model_name", "finished_reason"), registry=None
        )
        self._publish(self._finished)
        self._outcomes = Counter(
            "penstock_requests",
            "Ended answers by outcome against their SLO",
            ("model_name", "outcome"),
            registry=self._registry,
        )
        self._preemptions = self._counter("num_preemptions", "Times that a running answer had to wait for pages")
        #: Instance -> its preemptions so far.
        self._preempted: dict[int, int] = {}
        self._phases = Histogram(
            "penstock_move_phase_seconds",
            "Of moves of this front's answers: each phase that was entered",
            ("model_name", "phase"),
            buckets=_MOVE_S,
            registry=self._registry,
        )
        self._downtime = Histogram(
            "penstock_move_downtime_seconds",
            "Of moves that were taken: from standing still to going on elsewhere",
            ("model_name",),
            buckets=_MOVE_S,
            registry=self._registry,
        ).labels(model)
        for phase in _PHASES:
            self._phases.labels(model, phase)
        for outcome in ("good", "late", "dropped", "rejected", "cancelled", "failed"):
            self._outcomes.labels(model, outcome)
        for reason in ("stop", "length", "abort", "error"):
            self._finished.labels(model, reason)

    def accepted(self, prompt: int, arrival_s: float) -> None:
        """An answer; all those of a request have the same arrival."""
        self._prompts.inc(prompt)
        self._prompt_sizes.observe(prompt)
        self._prompt_squares.inc(prompt**2)
        before, self._arrived_s = self._arrived_s, max(arrival_s, self._arrived_s or arrival_s)
        if before not in (None, arrival_s):
            self._gaps.observe(self._arrived_s - before)
            self._gap_squares.inc((self._arrived_s - before) ** 2)

    def generated(self, tokens: int) -> None:
        self._generated.inc(tokens)

    def first_token(self, seconds: float) -> None:
        self._ttft.observe(seconds)

    def inter_token(self, seconds: float, tokens: int) -> None:
        """`tokens` came together, `seconds` after those before them."""
        for _ in range(tokens):
            self._itl.observe(seconds / tokens)

    def finished(self, reason: str, e2e_s: float | None, tpot_s: float | None, tokens: int) -> None:
        self._finished.labels(self._model, reason).inc()
        self._answer_sizes.observe(tokens)
        self._answer_squares.inc(tokens**2)
        if e2e_s is not None:
            self._e2e.observe(e2e_s)
        if tpot_s is not None:
            self._tpot.observe(tpot_s)

    def ended(self, outcome: str, answers: int) -> None:
        self._outcomes.labels(self._model, outcome).inc(answers)

    def moved(self, ended: MoveEnded) -> None:
        """A move is over."""
        for phase, ns in zip(_PHASES, ended.phases, strict=True):
            if ns:
                self._phases.labels(self._model, phase).observe(ns / SECOND)
        if not ended.reason:
            self._downtime.observe(ended.down_ns / SECOND)

    def see_fleet(self, home: BaseHome) -> None:
        """How instances are now."""
        self._instances.see(home)
        before, self._preempted = self._preempted, {i.instance: i.load.preemptions for i in home.instances}
        for instance, preemptions in self._preempted.items():
            self._preemptions.inc(preemptions - before.get(instance, 0))

    def text(self, running: int, waiting: int, kv_used: float) -> bytes:
        """Prometheus' text format, with the load as it is now. Called in the front's event loop."""
        self._running.set(running)
        self._waiting.set(waiting)
        self._kv.set(kv_used)
        self._tasks.set(len(asyncio.all_tasks()))
        return generate_latest(self._registry)

    def _gauge(self, name: str, about: str) -> Gauge:
        gauge = Gauge(f"penstock_{name}", about, ("model_name",), registry=None)
        self._publish(gauge)
        return gauge.labels(self._model)

    def _counter(self, name: str, about: str) -> Counter:
        counter = Counter(f"penstock_{name}", about, ("model_name",), registry=None)
        self._publish(counter)
        return counter.labels(self._model)

    def _squares(self, name: str) -> Counter:
        """Of what a histogram has the sum of: both give a standard deviation."""
        counter = Counter(
            f"penstock_{name}_squared", f"Sum of squares of {name}", ("model_name",), registry=self._registry
        )
        return counter.labels(self._model)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"penstock_{name}", about, ("model_name",), buckets=buckets, registry=None)
        self._publish(histogram)
        return histogram.labels(self._model)

    def _publish(self, metric: MetricWrapperBase) -> None:
        self._registry.register(metric)
        self._registry.register(_Alias(metric))


_INSTANCE = ("model_name", "instance", "role")


class _Instances(Collector):
    """What each instance says of itself, under a label of its own; and what became of instances and their jobs."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._now: Sequence[Instance] = ()
        self._position_bytes = 0
        self._restarts = 0
        self._replays: Mapping[str, int] = {}

    def see(self, home: BaseHome) -> None:
        self._now = home.instances
        self._position_bytes = home.info.kv_bytes_per_token if home.info is not None else 0
        self._restarts = home.fleet.restarts
        self._replays = home.replays

    def collect(self) -> Iterator[Metric]:
        yield from self._each()
        yield from self._of_moves()
        restarts = "Instances that ended unasked and were replaced"
        restarted = CounterMetricFamily("penstock_restarts", restarts, labels=("model_name",))
        restarted.add_metric((self._model,), self._restarts)
        yield restarted
        replays = CounterMetricFamily(
            "penstock_replays",
            "Answers of this front that went on elsewhere from what was delivered",
            labels=("model_name", "reason"),
        )
        for reason, count in self._replays.items():
            replays.add_metric((self._model, reason), count)
        yield replays

    def _of_moves(self) -> Iterator[Metric]:
        size = CounterMetricFamily(
            "penstock_instance_move_copied_bytes", "KV that was copied from there", labels=_INSTANCE
        )
        aborted = CounterMetricFamily(
            "penstock_instance_moves_aborted",
            "Moves of answers from there that came to nothing",
            labels=(*_INSTANCE, "reason"),
        )
        for found in self._now:
            here = (self._model, str(found.instance), found.role)
            size.add_metric(here, found.moves.copied * self._position_bytes)
            for reason, count in found.moves.aborted.items():
                aborted.add_metric((*here, reason), count)
        yield size
        yield aborted

    def _each(self) -> Iterator[Metric]:
        for name, about, value in _OF_INSTANCES:
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(f"penstock_instance_{name}", about, labels=_INSTANCE)
            for found in self._now:
                family.add_metric((self._model, str(found.instance), found.role), value(found))
            yield family


class _Alias(Collector):
    """A metric once more, under vLLM's prefix: observed once, shown twice."""

    def __init__(self, metric: MetricWrapperBase) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        for family in self._metric.collect():
            alias = copy(family)
            alias.name = _vllm(family.name)
            alias.samples = [sample._replace(name=_vllm(sample.name)) for sample in family.samples]
            yield alias


def _vllm(name: str) -> str:
    return name.replace("penstock_", "vllm:", 1)
