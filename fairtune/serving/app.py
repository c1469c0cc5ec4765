"""The server: a small ASGI application that speaks MLflow's scoring protocol.

MLflow's own server takes bodies of any size, quotes what it cannot read back to the client, and
hands each request to the model alone. This one limits what it takes before it is read, says in
fixed words what is wrong, and lets requests share calls of the model. It loads safetensors and JSON
only: no code from the registry runs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import fairtune
from fairtune.serving.openapi import openapi
from fairtune.serving.predictor import FAILED, Answer, Pending, Predictor
from fairtune.serving.scoring import RequestError, read_rows

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LINGER_SECONDS = 2.0
TOO_LARGE = "the body is larger than {limit} bytes"
TOO_SLOW = "the body did not arrive within {seconds:g} s"
BUSY = "too many requests at once: try again in a moment"
TIMED_OUT = "no answer within {seconds:g} s"
WRONG_TYPE = "Content-Type must be application/json"
CRASHED = "internal error"


class MethodError(RequestError):
    """The path is there, for other methods: `allow` lists them, as RFC 9110 wants."""

    def __init__(self, allow: str) -> None:
        super().__init__(405, f"use {allow}")
        self.allow = allow


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Limits of a server; sizes in bytes, times in seconds.

    Attributes
    ----------
    model : str
        Folder of a downloaded model.
    body_limit : int
        Larger requests get 413.
    memory_limit : int
        Bytes of all bodies in progress together; a request beyond gets 503.
    header_timeout, body_timeout, request_timeout : float
        For the headers to arrive, the body to arrive, and the answer to be made.
    workers : int
        Processes that share the cores.
    """

    model: str
    body_limit: int = 32 * 2**20
    memory_limit: int = 256 * 2**20
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    request_timeout: float = 60.0
    workers: int = 1


class App:
    """ASGI application around one `Predictor`."""

    def __init__(self, predictor: Predictor, config: ServeConfig) -> None:
        self.predictor = predictor
        self.config = config
        self._held = 0
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        about = {"model_version": predictor.version, "fairtune": fairtune.__version__}
        self._pages = {
            "/ping": b"\n",
            "/health": b"\n",
            "/version": json.dumps(about).encode(),
            "/openapi.json": json.dumps(openapi(predictor.spec, config.body_limit)).encode(),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or take part in the server's start and stop."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} here")
        allow = ""
        try:
            status, body = 200, await self._route(scope, receive)
        except RequestError as error:
            status, body = error.status, _error(error.status, str(error))
            allow = error.allow if isinstance(error, MethodError) else ""
        except Exception:
            logger.exception("a request failed")
            status, body = 500, _error(500, CRASHED)
        unread = status in (408, 413, 503)
        await _respond(send, status, body, receive if unread else None, allow)

    async def _route(self, scope: Scope, receive: Receive) -> bytes:
        path, method = scope["path"], scope["method"]
        if path in self._pages or path == "/stats":
            if method not in ("GET", "HEAD"):
                raise MethodError("GET, HEAD")
            return self._pages.get(path) or json.dumps(self.predictor.stats()).encode()
        if path != "/invocations":
            raise RequestError(404, "use POST /invocations, or GET " + ", ".join(self._pages))
        if method != "POST":
            raise MethodError("POST")
        return await self._invocations(scope, receive)

    async def _invocations(self, scope: Scope, receive: Receive) -> bytes:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        _check_type(headers.get(b"content-type", b""))
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared[:20]) > self.config.body_limit:
            raise RequestError(413, TOO_LARGE.format(limit=self.config.body_limit))
        held = _Held(self)
        try:
            body = await self._body(receive, held)
            async with asyncio.timeout(self.config.request_timeout):
                return await self._answer(body)
        except TimeoutError:
            seconds = self.config.request_timeout
            raise RequestError(504, TIMED_OUT.format(seconds=seconds)) from None
        finally:
            held.release()

    async def _body(self, receive: Receive, held: _Held) -> bytes:
        parts = []
        try:
            async with asyncio.timeout(self.config.body_timeout):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError(400, "the client went away")
                    parts.append(message.get("body", b""))
                    held.take(len(parts[-1]))
                    more = message.get("more_body", False)
        except TimeoutError:
            seconds = self.config.body_timeout
            raise RequestError(408, TOO_SLOW.format(seconds=seconds)) from None
        return b"".join(parts)

    async def _answer(self, body: bytes) -> bytes:
        """Parse and decode off the event loop, then wait for the shared call of the model."""
        rows = _Rows()
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._pool, self._submit, body, rows)
            answers = [await self._answer_row(item) for item in rows.pending]
        finally:
            rows.give_up()  # on what is not answered: nobody waits for it any more
        return json.dumps({"predictions": answers}, separators=(",", ":")).encode()

    async def _answer_row(self, item: Pending) -> Answer:
        if isinstance(item, str):
            return self.predictor.refusal(item)
        try:
            scores = await asyncio.wrap_future(item)
        except Exception:
            logger.exception("the model failed on a batch")
            return self.predictor.refusal(FAILED)
        return self.predictor.answer(scores[0])

    def _submit(self, body: bytes, rows: _Rows) -> None:
        for item in self.predictor.submit(read_rows(body, self.predictor.spec.max_rows)):
            if not rows.take(item):
                return


class _Rows:
    """The rows of one request: queued by a thread of the pool, given up by the event loop."""

    def __init__(self) -> None:
        self.pending: list[Pending] = []
        self._given_up = threading.Event()

    def take(self, item: Pending) -> bool:
        """Add a row; returns whether more are wanted."""
        self.pending.append(item)
        if self._given_up.is_set():
            self.give_up()
        return not self._given_up.is_set()

    def give_up(self) -> None:
        """Let the model skip the rows that it has not begun, and those that are still to come."""
        self._given_up.set()
        for item in self.pending:
            if isinstance(item, Future):
                item.cancel()


class _Held:
    """Bytes that one request has in memory, counted against its own and the common limit."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._bytes = 0

    def take(self, count: int) -> None:
        """Count a piece of the body; raises `RequestError` when it is too much."""
        self._bytes += count
        self._app._held += count
        if self._bytes > self._app.config.body_limit:
            raise RequestError(413, TOO_LARGE.format(limit=self._app.config.body_limit))
        if self._app._held > self._app.config.memory_limit:
            raise RequestError(503, BUSY)

    def release(self) -> None:
        """Give the bytes back."""
        self._app._held -= self._bytes


def _check_type(value: bytes) -> None:
    kind, _, parameters = value.partition(b";")
    charset = parameters.replace(b" ", b"").replace(b'"', b"").lower()
    if kind.strip().lower() != b"application/json" or charset not in (b"", b"charset=utf-8"):
        raise RequestError(415, WRONG_TYPE)


def _error(status: int, message: str) -> bytes:
    codes = {500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
    return json.dumps({"error_code": codes.get(status, "BAD_REQUEST"), "message": message}).encode()


async def _respond(
    send: Send, status: int, body: bytes, unread: Receive | None = None, allow: str = ""
) -> None:
    """Send an answer; with `unread`, to a client that has not been heard out, and then hang up.

    A connection closed on a client that is still sending is reset, and the client may never see the
    answer; so what arrives in the next moment is thrown away first.
    """
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
        *([(b"connection", b"close")] if unread else []),
        *([(b"allow", allow.encode())] if allow else []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": unread is not None})
    if unread is None:
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await unread()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
