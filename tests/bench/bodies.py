"""Bodies of 10 MB, 50 at once each way: that every byte arrives, and what the worker's memory rises to
meanwhile.

Both ends are aiohttp; this file is the server when it is started as a program. Body number N is known to both
ends (one random block, turned by N), so neither holds 50 of them. Even numbers travel with Content-Length,
odd ones chunked.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import uvloop
from aiohttp import web

from tests.bench.memory import worker
from tests.bench.peers import Peer, standing
from tests.bench.processes import (
    NotMeasured,
    forget_peak,
    peak_since,
    running,
    wait_until_listening,
)
from tests.bench.upstream import BODY
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.bench.load import Bench

SIZE = 10 * 1024 * 1024
AT_ONCE = 50

_PIECE = 256 * 1024
_PATIENCE_SECONDS = 120.0
_BLOCK = memoryview(random.Random(2).randbytes(SIZE))


@dataclass(frozen=True, slots=True)
class BodyFigures:
    """How many bodies arrived as they were sent, and how many KiB the worker's memory rose at its peak."""

    at_once: int
    uploads: int
    downloads: int
    upload_peak_kib: int
    download_peak_kib: int


def measure_bodies(bench: Bench, subject: Peer) -> BodyFigures:
    port = free_port()
    log = bench.directory / "bodies.log"
    server = [sys.executable, "-m", "tests.bench.bodies", str(port)]
    with running(server, log, bench.load_core) as process:
        wait_until_listening(process, port, log)
        with standing(subject, bench.directory, port, bench.proxy_core) as proxy:
            pid = worker(proxy)
            before = forget_peak(pid)
            uploads = uvloop.run(_all_at_once(_upload, proxy.port))
            upload_peak = peak_since(pid) - before
            forget_peak(pid)
            downloads = uvloop.run(_all_at_once(_download, proxy.port))
            download_peak = peak_since(pid) - before
    return BodyFigures(AT_ONCE, uploads, downloads, upload_peak, download_peak)


async def _all_at_once(transfer: Callable[[aiohttp.ClientSession, int], Awaitable[bool]], port: int) -> int:
    """How many of the transfers came out identical."""
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{port}",
        connector=aiohttp.TCPConnector(limit=AT_ONCE),
        timeout=aiohttp.ClientTimeout(total=_PATIENCE_SECONDS),
    ) as session:
        try:
            return sum(await asyncio.gather(*(transfer(session, number) for number in range(AT_ONCE))))
        except (aiohttp.ClientError, TimeoutError) as failure:
            raise NotMeasured(f"a body was lost: {failure!r}") from failure


async def _upload(session: aiohttp.ClientSession, number: int) -> bool:
    headers = {} if number % 2 else {"Content-Length": str(SIZE)}
    async with session.post("/upload", data=_stream(number), headers=headers) as answer:
        return answer.status == 200 and await answer.text() == _digest(number)


async def _download(session: aiohttp.ClientSession, number: int) -> bool:
    digest = hashlib.sha256()
    async with session.get(f"/download/{number}") as answer:
        async for piece in answer.content.iter_any():
            digest.update(piece)
        return answer.status == 200 and digest.hexdigest() == _digest(number)


def _pieces(number: int) -> Iterator[memoryview]:
    turned = number * 4099
    for part in (_BLOCK[turned:], _BLOCK[:turned]):
        for start in range(0, len(part), _PIECE):
            yield part[start : start + _PIECE]


async def _stream(number: int) -> AsyncIterator[bytes]:
    for piece in _pieces(number):
        yield bytes(piece)


def _digest(number: int) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(number):
        digest.update(piece)
    return digest.hexdigest()


async def _receive(request: web.Request) -> web.Response:
    digest = hashlib.sha256()
    async for piece in request.content.iter_any():
        digest.update(piece)
    return web.Response(text=digest.hexdigest())


async def _send(request: web.Request) -> web.StreamResponse:
    number = int(request.match_info["number"])
    answer = web.StreamResponse()
    if number % 2:
        answer.enable_chunked_encoding()
    else:
        answer.content_length = SIZE
    await answer.prepare(request)
    for piece in _pieces(number):
        await answer.write(bytes(piece))
    return answer


async def _small(_: web.Request) -> web.Response:
    return web.Response(body=BODY)


async def _ids(request: web.Request) -> web.Response:
    return web.Response(text=f"{request.headers.get('X-Request-ID')} {request.headers.get('traceparent')}")


def serve(port: int) -> None:
    application = web.Application()
    application.router.add_get("/", _small)
    application.router.add_get("/ids", _ids)
    application.router.add_post("/upload", _receive)
    application.router.add_get("/download/{number}", _send)
    web.run_app(application, host="127.0.0.1", port=port, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    serve(int(sys.argv[1]))
