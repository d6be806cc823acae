"""Counts and times for Prometheus; none of a request's content."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ixtune.serving.engine.engine import Engine

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ROUTES = ("/", "/healthz", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/layout")
_MOST_RETRY_SECONDS = 60


class Metrics:
    """Metrics of one server, in their own registry."""

    def __init__(self, engine: Engine) -> None:
        """Read the gauges from this engine."""
        self.registry = CollectorRegistry()
        self._engine = engine
        self._requests = self._counter("requests", "HTTP requests.", ("route", "status"))
        self._seconds = self._histogram("request_seconds", "Time of chat requests in seconds.")
        self._first = self._histogram("first_token_seconds", "Time from arrival to the first token in seconds.")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of finished requests.", ("model",))
        self._image = self._counter("image_tokens", "Image tokens among the prompt tokens.", ("model",))
        self._answer = self._counter("completion_tokens", "Generated tokens of finished requests.", ("model",))
        self._recent = 1.0  # seconds of a chat request, smoothed
        gauges = {
            "waiting_requests": ("Requests that wait.", lambda: engine.counts[0]),
            "running_answers": ("Answers being generated.", lambda: engine.counts[1]),
            "prefixes_computed": ("Image prefixes computed.", lambda: engine.prefixes.computed),
            "prefixes_reused": ("Image prefixes found in the cache.", lambda: engine.prefixes.reused),
            "prefix_bytes": ("Bytes of kept prefixes.", lambda: engine.prefixes.nbytes),
            "vectors_computed": ("Images seen by the vision tower.", lambda: engine.vectors.computed),
            "vector_bytes": ("Bytes of kept image vectors.", lambda: engine.vectors.nbytes),
        }
        for name, (text, read) in gauges.items():
            Gauge(f"ixtune_{name}", text, registry=self.registry).set_function(read)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an HTTP request."""
        route = route_of(path)
        self._requests.labels(route, str(status)).inc()
        if route == "/v1/chat/completions" and status == 200:
            self._seconds.observe(seconds)
            self._recent += 0.2 * (seconds - self._recent)

    def first_token(self, seconds: float) -> None:
        """Count the time to a first token."""
        self._first.observe(seconds)

    def answered(self, model: str, prompt_tokens: int, image_tokens: int, tokens: int) -> None:
        """Count the tokens of a finished request."""
        self._prompt.labels(model).inc(prompt_tokens)
        self._image.labels(model).inc(image_tokens)
        self._answer.labels(model).inc(tokens)

    def retry_after(self) -> int:
        """Return the estimated seconds until a place is free."""
        return min(_MOST_RETRY_SECONDS, max(1, math.ceil(self._recent)))

    def exposition(self) -> tuple[bytes, str]:
        """Return all metrics and their content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"ixtune_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"ixtune_{name}", text, buckets=_SECONDS, registry=self.registry)


def route_of(path: str) -> str:
    """Return the address for counts and the log; those that are none of ours may hold anything."""
    return path if path in _ROUTES else "other"
