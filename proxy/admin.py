"""The two HTTP servers of the supervisor: admin on loopback, and /metrics where Prometheus reaches it.

GET never changes anything; what does is POST. The whole surface is one table of endpoints, and whatever
is not in it is answered with a JSON error that says what is. Answers are bounded: no more than
``LIST_MAX`` items, and no waiting for a worker beyond ``ANSWER_SECONDS`` (a worker that did not answer is
named in a header).

Admin asks nobody who he is, so a browser on the same host must not be made to ask for somebody else:
``_asked_by_its_owner`` refuses what a foreign page can send (a POST across sites, and a name of its own
that it lets point here).
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from typing import TYPE_CHECKING, NamedTuple, Protocol, get_args
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from proxy.exposition import render
from proxy.metrics import Kind
from proxy.settings import LogLevelName
from proxy.totals import quantile

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping

    from proxy.channel import Topic
    from proxy.settings import Settings
    from proxy.totals import Sample

LIST_MAX = 1000
LIST_DEFAULT = 100
ANSWER_SECONDS = 2.0
MISSING_HEADER = "x-arca-missing-workers"


class Gathered(NamedTuple):
    """What the workers answered, one JSON array each, and the numbers of those that did not in time."""

    arrays: list[bytes]
    missing: list[int]


class Proxy(Protocol):
    """What these endpoints ask of the supervisor."""

    @property
    def settings(self) -> Settings: ...
    async def unready(self) -> list[str]:
        """Why the proxy is not ready; empty when it is."""

    async def warnings(self) -> list[str]:
        """What is worth a look although it is ready."""

    def samples(self) -> list[Sample]: ...
    async def gather(self, what: Topic, n: int, seconds: float) -> Gathered: ...
    def stop(self) -> None:
        """As SIGTERM does."""

    def set_log_level(self, level: str) -> None: ...


class _RefusalError(Exception):
    def __init__(
        self, status: int, error: str, allowed: object, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(error)
        self.status, self.error, self.allowed, self.headers = status, error, allowed, headers


class _Endpoint(NamedTuple):
    method: str
    answer: Callable[[web.Request], Awaitable[web.Response]]
    parameters: frozenset[str] = frozenset()


async def serve_admin(proxy: Proxy, listening: socket.socket) -> web.AppRunner:
    """Serves the admin endpoints on ``listening`` until the answer's ``cleanup()``."""
    return await _serve(_admin_endpoints(proxy), listening, _asked_by_its_owner)


async def serve_metrics(proxy: Proxy, listening: socket.socket) -> web.AppRunner:
    """Serves GET /metrics on ``listening`` until the answer's ``cleanup()``."""
    one_at_a_time = asyncio.Lock()

    async def metrics(request: web.Request) -> web.Response:
        async with one_at_a_time:
            accept = request.headers.get("Accept", "")
            body, content_type = await asyncio.to_thread(render, proxy.samples(), accept)
        return web.Response(body=body, headers={"Content-Type": content_type})

    return await _serve({"/metrics": _Endpoint("GET", metrics)}, listening, _asked_by_anybody)


async def _serve(
    endpoints: dict[str, _Endpoint], listening: socket.socket, check: Callable[[web.Request], None]
) -> web.AppRunner:
    application = web.Application(client_max_size=1024)
    application.router.add_route("*", "/{path:.*}", _dispatcher(endpoints, check))
    runner = web.AppRunner(application, access_log=None, keepalive_timeout=30, shutdown_timeout=1)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    return runner


def _dispatcher(
    endpoints: dict[str, _Endpoint], check: Callable[[web.Request], None]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def dispatch(request: web.Request) -> web.Response:
        try:
            check(request)
            return await _endpoint_for(endpoints, request).answer(request)
        except _RefusalError as refusal:
            body = {"error": refusal.error, "allowed": refusal.allowed}
            return _json(body, status=refusal.status, headers=refusal.headers)

    return dispatch


def _asked_by_anybody(request: web.Request) -> None:
    """Metrics are read under whatever name Prometheus has for this host, and cannot be written."""


def _asked_by_its_owner(request: web.Request) -> None:
    """Raises _RefusalError on what no person or program on this host sends, but a page in its browser can."""
    host = request.headers.get("Host", "")
    if not all(_is_no_name(each) for each in request.headers.getall("Host", [])):
        # A page's own name, made to point here (DNS rebinding): to the browser we are then the page's server.
        raise _RefusalError(421, f"this is not {host[:100]}", "an IP address or localhost as Host")
    if request.method in ("GET", "HEAD"):
        return
    # The Fetch standard: a POST carries Origin, and a form of another site sends one without asking first.
    origin = request.headers.get("Origin", f"http://{host}")
    site = request.headers.get("Sec-Fetch-Site", "none")
    if origin.lower() != f"http://{host}".lower() or site not in ("same-origin", "none"):
        raise _RefusalError(403, "a page of another site may not ask for this", "no Origin but this host")


def _is_no_name(host: str) -> bool:
    """Whether a Host header names an address, or localhost, which no resolver gives to others (RFC 6761)."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _endpoint_for(endpoints: dict[str, _Endpoint], request: web.Request) -> _Endpoint:
    endpoint = endpoints.get(request.path)
    if endpoint is None:
        known = [f"{each.method} {path}" for path, each in endpoints.items()]
        raise _RefusalError(404, f"there is no {request.path[:200]}", known)
    methods = ["GET", "HEAD"] if endpoint.method == "GET" else [endpoint.method]
    if request.method not in methods:
        error = f"{request.path} does not take {request.method[:20]}"
        raise _RefusalError(405, error, methods, {"Allow": ", ".join(methods)})
    for name in request.query:
        if name not in endpoint.parameters or len(request.query.getall(name)) > 1:
            error = f"{request.path} does not take the parameter {name[:50]}, or only once"
            raise _RefusalError(400, error, sorted(endpoint.parameters))
    return endpoint


def _admin_endpoints(proxy: Proxy) -> dict[str, _Endpoint]:
    async def ready(request: web.Request) -> web.Response:
        reasons = await proxy.unready()
        body = {"ready": not reasons, "reasons": reasons, "warnings": await proxy.warnings()}
        return _json(body, status=503 if reasons else 200)

    async def live(request: web.Request) -> web.Response:
        return _json({"live": True})

    async def config(request: web.Request) -> web.Response:
        return _json(msgspec.to_builtins(proxy.settings))

    async def connections(request: web.Request) -> web.Response:
        n = _count(request)
        found, headers = await _gather(proxy, "connections", n)
        return _json(found[:n], headers=headers)

    async def exchanges(request: web.Request) -> web.Response:
        n = _count(request)
        found, headers = await _gather(proxy, "exchanges", n)
        # RFC 3339 with the same offset and precision throughout: the text sorts as the time does.
        found.sort(key=lambda each: str(each.get("time", "")))
        return _json(found[-n:], headers=headers)

    async def stats(request: web.Request) -> web.Response:
        return _json({sample.family.name: _summary(sample) for sample in proxy.samples()})

    async def drain(request: web.Request) -> web.Response:
        proxy.stop()
        return _json({"draining": True, "drain_seconds": proxy.settings.limits.drain_seconds}, status=202)

    async def log_level(request: web.Request) -> web.Response:
        level = request.query.get("level") or (await _text(request)).strip().strip('"')
        if level not in LOG_LEVELS:
            raise _RefusalError(400, f"{level[:50]!r} is no log level", LOG_LEVELS)
        proxy.set_log_level(level)
        return _json({"level": level})

    return {
        "/ready": _Endpoint("GET", ready),
        "/live": _Endpoint("GET", live),
        "/config": _Endpoint("GET", config),
        "/connections": _Endpoint("GET", connections, frozenset({"n"})),
        "/exchanges": _Endpoint("GET", exchanges, frozenset({"n"})),
        "/stats": _Endpoint("GET", stats),
        "/drain": _Endpoint("POST", drain),
        "/log-level": _Endpoint("POST", log_level, frozenset({"level"})),
    }


LOG_LEVELS: tuple[str, ...] = get_args(LogLevelName)


def _count(request: web.Request) -> int:
    text = request.query.get("n", str(LIST_DEFAULT))
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) >= 1):
        raise _RefusalError(
            400, f"n={text[:50]} is wrong", f"an integer from 1 to {LIST_MAX}; more is read as that"
        )
    return min(int(text), LIST_MAX)


async def _text(request: web.Request) -> str:
    try:
        return await request.text()
    except (web.HTTPRequestEntityTooLarge, UnicodeDecodeError, LookupError):
        return ""


async def _gather(proxy: Proxy, what: Topic, n: int) -> tuple[list[dict[str, object]], dict[str, str]]:
    arrays, missing = await proxy.gather(what, n, ANSWER_SECONDS)
    found: list[dict[str, object]] = []
    for array in arrays:
        found += _decode(array)
    return found, {MISSING_HEADER: ",".join(map(str, missing))} if missing else {}


_decode = msgspec.json.Decoder(list[dict[str, object]]).decode


def _summary(sample: Sample) -> list[dict[str, object]]:
    names = sample.family.labels
    if sample.family.kind is not Kind.HISTOGRAM:
        return [
            {"labels": dict(zip(names, labels, strict=True)), "value": value}
            for labels, value in sample.values.items()
        ]
    return [
        {
            "labels": dict(zip(names, labels, strict=True)),
            "count": sum(distribution.counts),
            "sum": distribution.sum,
            "p50": quantile(distribution, 0.50),
            "p99": quantile(distribution, 0.99),
        }
        for labels, distribution in sample.distributions.items()
    ]


def _json(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    text = json.dumps(msgspec.to_builtins(body), separators=(",", ":"))
    return web.Response(
        # What came from the wire may be a terminal's commands, of which JSON lets DEL pass.
        body=text.replace("\x7f", "\\u007f").encode() + b"\n",
        status=status,
        headers=headers,
        content_type="application/json",
    )
