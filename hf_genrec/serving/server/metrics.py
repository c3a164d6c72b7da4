"""
What the server counts, for Prometheus: requests and their seconds by route, batches, the queue, the catalog.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from starlette.responses import JSONResponse

from hf_genrec.serving.server.settings import ServerSettings


_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class ServerMetrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        where: dict[str, Any] = {"namespace": "hf_genrec", "registry": self.registry}
        self.requests = Counter("requests", "Requests that were answered.", ("route", "status"), **where)
        self.seconds = Histogram("request_seconds", "From request to answer.", ("route",), buckets=_SECONDS, **where)
        self.unknown = Counter("unknown_ids", "Ids of histories that the catalog does not have.", **where)
        self.in_flight = Gauge("requests_in_flight", "Requests that wait for their answer.", **where)
        self.batch_users = Histogram("batch_users", "Users computed together.", buckets=_USERS, **where)
        self.batch_seconds = Histogram("batch_seconds", "Time to compute a batch.", buckets=_SECONDS, **where)
        self.queue = Gauge("queue_users", "Users that wait to be computed.", **where)
        self.catalog_version = Gauge("catalog_version", "Version of the catalog.", **where)
        self.catalog_items = Gauge("catalog_items", "Items that may be recommended.", **where)

    def observe_batch(self, num_users: int, seconds: float) -> None:
        """Count a batch. Args: its users, and how long it took."""
        self.batch_users.observe(num_users)
        self.batch_seconds.observe(seconds)

    def page(self) -> bytes:
        """`bytes`: what Prometheus reads."""
        return generate_latest(self.registry)


class RequestDoor:
    """
    ASGI middleware that counts and times requests, refuses those that say themselves that they are too large, and
    closes connections while the server drains.

    Args: the application, the metrics, the limits, and a function that says whether the server drains.
    """

    def __init__(
        self, app: Any, metrics: ServerMetrics, settings: ServerSettings, is_draining: Callable[[], bool]
    ) -> None:
        self.app, self.metrics, self.settings, self.is_draining = app, metrics, settings, is_draining

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Hand a request on. Args: those of ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, start = 500, time.perf_counter()

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.is_draining():
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        self.metrics.in_flight.inc()
        try:
            length = dict(scope["headers"]).get(b"content-length", b"0")
            if length.isdigit() and int(length) > self.settings.max_body:
                await JSONResponse({"detail": too_large(self.settings)}, 413)(scope, receive, counted)
            else:
                await self.app(scope, receive, counted)
        finally:
            self.metrics.in_flight.dec()
            # paths that no route has are one: whoever scans a server must not fill its metrics
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)


def too_large(settings: ServerSettings) -> str:
    """
    What a request with too large a body is answered.

    Args:
        settings ([`ServerSettings`]): The limits.
    """
    return f"The body must have at most `max_body` = {settings.max_body} bytes."
