"""
A recommender behind HTTP: `create_app` is the application, `serve` runs it until a signal.

One process holds one model. Requests share batches ([`MicroBatcher`]); the catalog changes while they are answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_genrec import __version__
from hf_genrec.serving.recommender import Recommender
from hf_genrec.serving.server.settings import TOKEN_VARIABLE, ServerSettings


try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from starlette.exceptions import HTTPException as AnyHTTPException
    from starlette.middleware.body_limit import RequestBodyLimitMiddleware

    from hf_genrec.serving.server.bodies import (
        Info,
        Problem,
        RecommendRequest,
        RecommendResponse,
        Status,
        recommend_model,
    )
    from hf_genrec.serving.server.catalog import add_catalog_routes
    from hf_genrec.serving.server.metrics import RequestDoor, ServerMetrics, too_large
    from hf_genrec.serving.server.questions import add_question_routes
except ImportError as error:
    raise ImportError(
        f'The server needs fastapi, uvicorn and prometheus-client: pip install "hf-genrec[serve]" ({error}).'
    ) from error

from hf_genrec.serving.server.answers import Asked, answers_of
from hf_genrec.serving.server.batches import MicroBatcher, QueueFullError


if TYPE_CHECKING:
    from types import FrameType

logger = logging.getLogger(__name__)

Source = Recommender | Callable[[], Recommender]
_SETTLE = 0.5  # seconds
_SLOW: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (400, 413, 422, 429, 500, 503, 504)}
_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"model": Status, "description": "The model is being loaded, or the server ends."}
}


@dataclass
class ServerState:
    """What the routes share; `recommender` is `None` until it is loaded, `failure` why it cannot be."""

    settings: ServerSettings
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    batches: MicroBatcher = field(init=False)
    changing: asyncio.Lock = field(init=False)  # one change of the catalog at a time
    recommender: Recommender | None = None
    failure: Exception | None = None
    is_draining: bool = False
    when_failed: Callable[[], None] = lambda: None

    def ready(self) -> Recommender:
        """The recommender; an answer of 503 while there is none."""
        if self.recommender is None:
            raise HTTPException(503, "The model is still being loaded.", {"Retry-After": "1"})
        return self.recommender

    async def answer(self, key: Any, content: Any, *, num_users: int, timeout: float | None = None) -> Any:
        """
        What the model's thread answers when its turn comes, or the status that says why it does not.

        Args:
            key: Requests with equal keys share a batch; a function of the recommender is computed alone.
            content: What is computed with the key.
            num_users (`int`): Users of the request.
            timeout (`float`, *optional*): Seconds to wait, at most those of the server.
        """
        self.ready()
        settings = self.settings
        seconds = min(timeout or settings.timeout, settings.timeout)
        try:
            return await self.batches.ask(key, content, num_users=num_users, timeout=seconds)
        except QueueFullError as error:
            wait = {"Retry-After": str(max(1, round(error.seconds)))}
            raise HTTPException(429, f"`max_queue` = {settings.max_queue} users wait already.", wait) from None
        except TimeoutError:
            raise HTTPException(504, f"There was no answer within `timeout` = {seconds:g} seconds.") from None
        except (ValueError, TypeError) as error:  # what the library says of its arguments
            raise HTTPException(422, str(error)) from error


def create_app(recommender: Source, settings: ServerSettings | None = None) -> FastAPI:
    """
    The HTTP application of a recommender; `/docs` describes its routes, `app.state.server` holds what they share.

    For tests and for servers other than uvicorn; `serve` and `hf-genrec serve` run it.

    Args:
        recommender ([`Recommender`] or `Callable`):
            What answers, or a function that loads it: `/ready` answers 503 until it is there.
        settings ([`ServerSettings`], *optional*): Batches, limits and the token; `None` for the defaults.

    Returns:
        `FastAPI`

    Example:

    ```python
    >>> import pyarrow as pa
    >>> from fastapi.testclient import TestClient
    >>> from hf_genrec import SASRecConfig, SASRecForItemGeneration
    >>> model = SASRecForItemGeneration(SASRecConfig(num_items=3, d_model=8, num_heads=1))
    >>> shop = Recommender(model, pa.table({"item_id": ["tea", "cup", "pot"]}))
    >>> with TestClient(create_app(shop)) as client:
    ...     answer = client.post("/recommend", json={"history": ["tea"], "top_k": 2}).json()
    >>> sorted(answer["item_ids"])
    ['cup', 'pot']

    ```
    """
    settings = settings or ServerSettings()
    state = ServerState(settings)
    app = FastAPI(
        title="hf_genrec",
        version=__version__,
        description="Histories of item ids in, ranked items out.",
        lifespan=_lifespan(recommender, state),
    )
    app.state.server = state
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body)
    app.add_middleware(RequestDoor, metrics=state.metrics, settings=settings, is_draining=lambda: state.is_draining)
    _add_errors(app, settings)
    _add_operation(app, state)
    _add_recommend(app, state)
    add_question_routes(app, state)
    add_catalog_routes(app, state)
    return app


def _lifespan(recommender: Source, state: ServerState) -> Callable[[FastAPI], Any]:
    def load() -> None:
        try:
            torch.set_num_threads(state.settings.threads or num_threads())  # first: what is compiled is for so many
            loaded = recommender if isinstance(recommender, Recommender) else recommender()
            loaded.recommend([[]], top_k=1)  # tables that are built lazily are there before the first visitor
            state.recommender = loaded
        except Exception as error:  # noqa: BLE001 (raised by `serve`, which ends)
            state.failure = error
            state.when_failed()

    def compute(key: Any, asked: list[Any]) -> list[Any]:
        if callable(key):
            return [key(state.ready())]
        answers = answers_of(state.ready(), key, asked)
        state.metrics.unknown.inc(sum(answer.num_unknown for answer in answers))
        return answers

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        settings, metrics = state.settings, state.metrics
        state.batches = batches = MicroBatcher(
            compute,
            size=settings.max_batch,
            window=settings.window_ms / 1000,
            max_waiting=settings.max_queue,
            observe=metrics.observe_batch,
        )
        metrics.queue.set_function(lambda: batches.num_waiting)
        state.changing = asyncio.Lock()
        if isinstance(recommender, Recommender):
            load()
        else:  # a thread that the end of the process does not wait for
            threading.Thread(target=load, name="load", daemon=True).start()
        running = asyncio.create_task(batches.run())
        yield
        running.cancel()
        batches.close()

    return lifespan


def num_threads(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """
    Threads for torch: its own choice, which knows `OMP_NUM_THREADS`, within the CPU quota of a container.

    Args:
        quota (`Path`): The file in which Linux keeps it: microseconds of CPU, or `max`, per microseconds.
    """
    number = torch.get_num_threads()
    with contextlib.suppress(OSError, ValueError):
        share, period = quota.read_text(encoding="ascii").split()
        number = min(number, max(1, int(share) // int(period)))
    return number


def _add_errors(app: FastAPI, settings: ServerSettings) -> None:
    @app.exception_handler(RequestValidationError)
    async def _wrong_field(request: Request, error: RequestValidationError) -> JSONResponse:
        # What was sent is not sent back: it may be long, and need not be JSON.
        kept = ("type", "loc", "msg")
        problems = [{name: problem[name] for name in kept if name in problem} for problem in error.errors()]
        return JSONResponse({"detail": problems[:5]}, 422)

    @app.exception_handler(AnyHTTPException)
    async def _refused(request: Request, error: AnyHTTPException) -> JSONResponse:
        detail = error.detail
        if error.status_code == 413:
            detail = too_large(settings)
        return JSONResponse({"detail": detail}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def _fault(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "The server failed; its log says why."}, 500)


def _add_operation(app: FastAPI, state: ServerState) -> None:
    """The routes for those who run the server."""

    @app.get("/health", tags=["operation"])
    async def health() -> Status:
        """Whether the process is alive."""
        return Status(status="alive")

    @app.get("/ready", tags=["operation"], responses=_NOT_READY)
    async def ready() -> Response:
        """Whether requests should come here: the model is loaded and the server does not end."""
        status = "draining" if state.is_draining else "loading" if state.recommender is None else "ready"
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """Counts for Prometheus."""
        if state.recommender is not None:
            catalog = state.recommender.catalog.version
            state.metrics.catalog_version.set(catalog.number)
            state.metrics.catalog_items.set(catalog.num_items)
        return Response(state.metrics.page(), media_type="text/plain; version=1.0.0; charset=utf-8")

    @app.get("/info", tags=["operation"], responses={503: {"model": Problem}})
    async def info() -> Info:
        """What runs here: the model, its catalog, versions and limits."""
        return _info_of(state.ready(), state.settings)


def _info_of(recommender: Recommender, settings: ServerSettings) -> Info:
    config, catalog = recommender.model.config, recommender.catalog.version
    packages = {"hf-genrec": __version__}
    packages |= {name: version(name) for name in ("torch", "transformers", "fastapi")}
    return Info(
        model=str(config.name_or_path),
        revision=getattr(config, "_commit_hash", None),
        architecture=type(recommender.model).__name__,
        dtype=str(recommender.model.dtype).removeprefix("torch."),
        decoding=recommender.decoding,
        num_items=catalog.num_items,
        catalog_version=catalog.number,
        fingerprint=catalog.fingerprint,
        versions=packages | {"python": platform.python_version()},
        limits=settings.limits(),
    )


def _add_recommend(app: FastAPI, state: ServerState) -> None:
    async def recommend(body: Any) -> RecommendResponse:
        """The best next items for one history, or for several."""
        request: RecommendRequest = body
        asked = Asked.of(request)
        return await state.answer(asked.key(), asked, num_users=len(asked.histories), timeout=request.timeout)

    recommend.__annotations__["body"] = recommend_model(state.settings)  # a class made from the settings
    app.post("/recommend", tags=["recommend"], responses=_SLOW)(recommend)


class _Server(uvicorn.Server):
    """
    Goes on accepting for a while after SIGTERM, see `ServerSettings.drain` (a second signal ends this), and then
    answers everything that was sent: uvicorn alone resets connections whose request it has not read yet.
    """

    state: ServerState

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.state.is_draining = True
        loop, accepted = asyncio.get_running_loop(), []
        with contextlib.suppress(BlockingIOError):
            while sockets:  # closing the listener resets what the system has accepted for it
                accepted.append(sockets[0].accept()[0])
        for server in self.servers:
            server.close()
        for connection in accepted:
            connection.setblocking(False)
            await loop.connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(_SETTLE)  # requests on their way to open connections arrive
        await super().shutdown(sockets)

    def _protocol(self) -> Any:
        config: Any = self.config
        return config.http_protocol_class(config, server_state=self.server_state, app_state=self.lifespan.state)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig != signal.SIGTERM or self.state.is_draining or not self.state.settings.drain:
            super().handle_exit(sig, frame)
            return
        self.state.is_draining = True
        loop = asyncio.get_running_loop()
        loop.call_later(self.state.settings.drain, super().handle_exit, sig, frame)


def serve(
    recommender: Source,
    settings: ServerSettings | None = None,
    *,
    log_requests: bool = False,
    when_listening: Callable[[str], None] | None = None,
) -> None:
    """
    Answer HTTP requests until SIGINT or SIGTERM. Requests that were accepted are answered before it returns.

    Args:
        recommender ([`Recommender`] or `Callable`): See [`create_app`].
        settings ([`ServerSettings`], *optional*): Address, batches and limits; `None` for the defaults.
        log_requests (`bool`, *optional*, defaults to `False`): Whether to log a line for each request.
        when_listening (`Callable`, *optional*): Is called with the address once it can be connected to.

    Raises:
        OSError: If the address cannot be listened on.
        Exception: What loading the recommender raised.
    """
    settings = settings or ServerSettings()
    app = create_app(recommender, settings)
    state: ServerState = app.state.server
    with _listening(settings) as listener:
        host, port = listener.getsockname()[:2]
        if when_listening is not None:
            when_listening(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        if settings.token is None and not settings.is_loopback:
            logger.warning("The routes that change the catalog are off: %s is not set.", TOKEN_VARIABLE)
        logging.getLogger(Recommender.__module__).setLevel(logging.ERROR)  # unknown ids are counted, not a line each
        server = _Server(
            uvicorn.Config(
                app,
                access_log=log_requests,
                log_level="info" if log_requests else "warning",
                timeout_keep_alive=75,  # longer than load balancers keep their connections
                timeout_graceful_shutdown=int(settings.timeout) + 5,
                server_header=False,
            )
        )
        server.state = state

        def stop() -> None:
            server.should_exit = True

        state.when_failed = stop
        server.run(sockets=[listener])
    if state.failure is not None:
        raise state.failure


def _listening(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
