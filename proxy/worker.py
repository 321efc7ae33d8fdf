"""A worker: the process that carries connections, on one uvloop, with as few privileges and modules as
will do.

It is told everything over the control channel, the first message (``Start``) included, and has no signal
of its own: what a terminal or systemd sends to the whole group is the supervisor's to understand. When
the channel ends, the supervisor is gone: the worker drains as if asked, and ends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, assert_never

import msgspec
import uvloop

from proxy import channel, privileges
from proxy.channel import Answer, Ask, Configure, Counters, Drain, Drained, LogLevel, Ready, Start
from proxy.interceptor import Interceptor
from proxy.listeners import BACKLOG
from proxy.log import configure_log
from proxy.metrics import Cells
from proxy.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from proxy.channel import FromSupervisor, Server
    from proxy.settings import Settings

REPORT_SECONDS = 0.5  # how often counters and lines go up; a dead worker takes at most so much with it
ANSWER_MAX = 8 * 1024 * 1024  # bytes; half of what the channel carries in one message

_log = logging.getLogger("arca.worker")


class Worker:
    """One process's life: started, serving, draining, done."""

    def __init__(self) -> None:
        self.channel = channel.to_supervisor(self._receive, self._supervisor_lost)
        self._loop = asyncio.get_running_loop()
        self._cells = Cells()
        self._dropped = self._cells.counter("arca_dropped_records_total", "exchanges")
        self._telemetry: Telemetry | None = None
        self._interceptor: Interceptor | None = None
        self._servers: list[asyncio.AbstractServer] = []
        self._settings: Settings | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self.done = self._loop.create_future()

    def _receive(self, message: FromSupervisor) -> None:
        match message:
            case Start():
                self._spawn(self._start(message))
            case Configure():
                self._configure(message)
            case Drain():
                self._begin_drain(message.seconds)
            case Ask():
                self._answer(message)
            case LogLevel():
                configure_log(message.level)
            case _:
                assert_never(message)

    async def _start(self, start: Start) -> None:
        settings = self._settings = start.settings
        configure_log(settings.log_level)
        if start.drop_to is not None and not privileges.drop(start.drop_to) and settings.mark:
            _log.warning(
                "without CAP_NET_ADMIN connections cannot be marked; the user alone tells them apart"
            )
        log = self._send_lines if settings.exchanges else None
        telemetry = Telemetry(self._cells, log, lambda: self.channel.full)
        own = frozenset(server.address for server in start.servers)
        self._telemetry = telemetry
        self._interceptor = Interceptor(self._loop, settings, telemetry, own, start.max_connections)
        self._interceptor.configure(settings, start.local_prefixes)
        for server in start.servers:
            self._servers.append(await self._serve(self._interceptor, server))
        self._loop.call_later(REPORT_SECONDS, self._report_regularly)
        # What start-up made lives as long as the process: no collection need ever look at it again.
        gc.collect()
        gc.freeze()
        self.channel.send(Ready(os.getpid()))

    async def _serve(self, interceptor: Interceptor, server: Server) -> asyncio.AbstractServer:
        factory: Callable[[], asyncio.BaseProtocol]
        factory = interceptor.forward_to(server.target) if server.target else interceptor.redirected
        inherited = socket.socket(fileno=server.fd)
        return await self._loop.create_server(factory, sock=inherited, backlog=BACKLOG)

    def _configure(self, message: Configure) -> None:
        self._settings = message.settings
        if self._interceptor is not None:
            self._interceptor.configure(message.settings, message.local_prefixes)

    def _report_regularly(self) -> None:
        """Also while draining: a worker that is killed at the end of the drain should have told."""
        self._report()
        if not self.done.done():
            self._loop.call_later(REPORT_SECONDS, self._report_regularly)

    def _report(self) -> None:
        if self._telemetry is not None:
            self._telemetry.flush()
        # In a full channel the cells are the better place to wait: there, waiting costs no memory.
        # Without changes it is sent too: that it comes is how the supervisor knows that this loop turns.
        if not self.channel.full:
            self.channel.send(Counters(self._cells.changes()))

    def _send_lines(self, lines: bytes) -> None:
        dropped = self.channel.send_lines(lines)
        if dropped:
            self._dropped.add(dropped)

    def _answer(self, ask: Ask) -> None:
        match ask.what:
            case "connections":
                found = self._interceptor.connections(ask.n) if self._interceptor else []
                payload = json_array([msgspec.json.encode(each) for each in found])
            case "exchanges":
                payload = json_array(self._telemetry.newest(ask.n) if self._telemetry else [])
            case _:
                assert_never(ask.what)
        self.channel.send(Answer(ask.id, payload))

    def _begin_drain(self, seconds: float) -> None:
        if not self._draining:
            self._draining = True
            self._spawn(self._drain(seconds))
        elif seconds == 0 and self._interceptor is not None:
            self._spawn(self._interceptor.drain(0))

    async def _drain(self, seconds: float) -> None:
        for server in self._servers:
            server.close()
        if self._interceptor is not None:
            await self._interceptor.drain(seconds)
        self._report()
        self.channel.send(Drained())
        self.channel.close()
        if not self.done.done():
            self.done.set_result(None)

    def _supervisor_lost(self, error: Exception | None) -> None:
        if not self._draining:
            _log.warning("the supervisor is gone, draining: %s", error or "it closed the channel")
            self._begin_drain(self._settings.limits.drain_seconds if self._settings else 0)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A step that fails ends the worker: the supervisor replaces it, and has its words."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self.done.done():
            self.done.set_exception(error)


def json_array(items: list[bytes]) -> bytes:
    """The newest items (they come last) that fit into ANSWER_MAX bytes, as one JSON array."""
    kept: list[bytes] = []
    room = ANSWER_MAX
    for item in reversed(items):
        room -= len(item) + 1
        if room < 0:
            break
        kept.append(item.rstrip())
    return b"[" + b",".join(reversed(kept)) + b"]"


async def _live(end: socket.socket) -> None:
    worker = Worker()
    await channel.connect(worker.channel, end)
    await worker.done
    await worker.channel.closed(seconds=5)


def main() -> None:
    """Entry of ``python -m proxy.worker FD``: FD is this end of the control channel."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # A supervisor that does not read our stderr loses our words; it must not stop our loop.
    os.set_blocking(2, False)
    logging.raiseExceptions = False
    # Reference counts free what a connection leaves; the collector is for the rare cycle. Its default
    # threshold of 700 would walk the young objects many times a second under load.
    gc.set_threshold(50_000, 20, 50)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_live(socket.socket(fileno=int(sys.argv[1]))))
    except privileges.PrivilegeError as error:
        sys.exit(f"worker: {error}")
    finally:
        loop.close()


if __name__ == "__main__":
    main()
