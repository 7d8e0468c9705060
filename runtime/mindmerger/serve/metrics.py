"""What the service counts, in the form that Prometheus reads.

A registry of its own for each service, so that two in one process (tests) do not add up. Knows nothing about how the counted
things come about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mindmerger.generation import Generation
from mindmerger.serve.answers import GONE
from mindmerger.serve.engine import State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """Counters, and gauges that ask `state` when they are read."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_Load(state))
        self.requests = Counter(
            "mindmerger_requests", "HTTP requests by path and status", ["path", "status"], registry=registry
        )
        self._answers = Counter("mindmerger_answers", "Answers by how they ended", ["finish"], registry=registry)
        self._tokens = Counter("mindmerger_tokens", "Positions read and tokens written", ["kind"], registry=registry)
        self._queue = self._histogram("mindmerger_queue_seconds", "Time between a question and its slot")
        self._first = self._histogram("mindmerger_first_token_seconds", "Time from the slot to the first token")
        self._total = self._histogram("mindmerger_answer_seconds", "Time from the slot to the end of the answer")

    def _histogram(self, name: str, what: str) -> Histogram:
        return Histogram(name, what, buckets=_SECONDS, registry=self._registry)

    def answered(self, result: Generation, waited_ms: float) -> None:
        """Count an answer."""
        timings = result.timings
        self._answers.labels(result.finish_reason).inc()
        self._tokens.labels("soft_prompt").inc(result.soft_prompt_rows)
        self._tokens.labels("prompt").inc(result.prompt_tokens)
        self._tokens.labels("answer").inc(len(result.token_ids))
        self._queue.observe(waited_ms / 1e3)
        if timings.first_token_ms is not None:
            self._first.observe(timings.first_token_ms / 1e3)
        self._total.observe(timings.total_ms / 1e3)

    def text(self) -> bytes:
        """All of them, for Prometheus."""
        return generate_latest(self._registry)


class _Load(Collector):
    """What the engine does at this moment."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def collect(self) -> Iterable[Metric]:
        state = self._state()
        for name, what, value in (
            ("slots", "Questions that are answered at once at most", state.slots),
            ("slots_busy", "Questions in work", state.busy),
            ("questions_waiting", "Questions that wait for a slot", state.waiting),
        ):
            yield GaugeMetricFamily(f"mindmerger_{name}", what, value=value)


class Counted:
    """Middleware: every request is counted, by those paths that there are and "other"."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
