"""The supervisor: the one process with the privileges, which carries no connection itself.

It opens the sockets, starts the workers and replaces those that die, applies the rules once somebody
listens and detaches them before anybody stops listening, adds up what the workers count, and serves admin
and metrics. The order in ``_start`` and its reverse in ``_end`` is what keeps a host reachable: whatever
goes wrong between the two, ``_end`` runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

import uvloop

from netfilter.addresses import LocalAddressWatch, read_local_prefixes
from netfilter.commands import NetfilterError, has_ipv6
from proxy import descriptors, listeners
from proxy.addresses import Address, resolve
from proxy.admin import Gathered, serve_admin, serve_metrics
from proxy.channel import Configure, Counters, Drain, Drained, Lines, LogLevel, Ready, Server, Start
from proxy.configuration import SettingsError, check_together
from proxy.exchange_log import ExchangeLog, ExchangeLogError
from proxy.listeners import AddressError
from proxy.live_rules import LiveRules
from proxy.log import configure_log
from proxy.metrics import Cells
from proxy.settings import changed, keeping, needs_restart
from proxy.totals import Totals
from proxy.version import version
from proxy.worker_process import WorkerProcess

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine

    from aiohttp import web

    from proxy.channel import FromSupervisor, FromWorker, Topic
    from proxy.settings import Settings
    from proxy.totals import Sample

OWN_CELLS = -1  # the source under which the supervisor's own cells are merged; workers count from 0
FAST_DEATH_SECONDS = 1.0
FAST_DEATHS_MAX = 5  # in a row, before the proxy was ever ready: then it never will be
# What a worker gets beyond its drain time: Interceptor.drain waits 2 s for the connections it cut, then the
# last report must be written.
GRACE_SECONDS = 5.0
SILENT_SECONDS = 5.0  # ten reports: a worker that sends none for so long does not carry anything either
LOG_CLOSE_SECONDS = 2.0  # what the exchange log gets to write what it still has
RULES_CHECK_SECONDS = 2.0  # how long an answer of iptables-save stays good for /ready

_log = logging.getLogger("arca.supervisor")


class StartError(Exception):
    """The proxy cannot start. Its text is one line for a person."""


def backoff(fast_deaths: int) -> float:
    """Seconds to wait before replacing a worker that died in its first second so many times in a row."""
    return 0.0 if fast_deaths <= 1 else min(0.1 * 2 ** (fast_deaths - 2), 5.0)


class Death(NamedTuple):
    """The end of one worker process: in words; whether it came at once; and the last lines it wrote."""

    how: str
    fast: bool
    last_words: str


class RulesSeen(NamedTuple):
    """What the kernel's rules were like when they were last read, ``at`` time.monotonic()."""

    at: float
    differences: list[str]
    remarks: list[str]


class Slot:
    """The place of one worker: its sockets outlive each process that serves them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.servers: list[Server] = []
        self.sockets: list[socket.socket] = []
        self.process: WorkerProcess | None = None
        self.heard_at = 0.0  # when the last message came, time.monotonic()

    @property
    def ready(self) -> bool:
        return self.process is not None and self.process.ready.is_set()


class Supervisor:
    """``read`` gives the settings as the configuration says now; it raises SettingsError."""

    def __init__(self, settings: Settings, read: Callable[[], Settings]) -> None:
        self._settings = settings
        self._read = read
        self._totals = Totals()
        self._cells = Cells()
        self._slots = [Slot(number) for number in range(settings.worker_count())]
        # One worker's part of max_connections, rounded up; what it has descriptors for, if that is less.
        self._share = -(-settings.limits.max_connections // len(self._slots))
        self._keepers: list[asyncio.Task[None]] = []
        self._rules = LiveRules()
        self._rules_seen = RulesSeen(float("-inf"), [], [])
        self._exchange_log: ExchangeLog | None = None
        self._dropped_lines = self._cells.counter("arca_dropped_records_total", "exchanges")
        self._sites: list[web.AppRunner] = []
        self._watch: LocalAddressWatch | None = None
        self._local_prefixes: list[str] = []
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()
        self._all_ready = asyncio.Event()
        self._started = False
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: StartError | None = None

    # ---- the life of the proxy

    async def run(self) -> None:
        """Until asked to stop. Raises StartError when it could not start; either way the rules are gone."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload()))
        stopping = asyncio.create_task(self._stop.wait())
        starting = asyncio.create_task(self._start())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
            await stopping
            if self._failure is not None:
                raise self._failure
        except (AddressError, ExchangeLogError, NetfilterError) as error:
            raise StartError(str(error)) from error
        finally:
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await starting
            await self._end()

    def stop(self) -> None:
        """The first time: drain and end. The second: end at once."""
        if self._stop.is_set():
            self._at_once.set()
        self._stop.set()

    async def _start(self) -> None:
        settings = self._settings
        limit = descriptors.raise_limit()
        if warning := descriptors.shortage(limit, self._share):
            _log.warning("%s", warning)
        self._share = min(self._share, descriptors.capacity(limit))
        await self._open_listeners()
        if settings.exchanges:
            self._exchange_log = ExchangeLog(settings.exchanges, self._dropped_lines.add)
        await self._open_sites()
        self._watch = LocalAddressWatch()
        self._local_prefixes = await asyncio.to_thread(read_local_prefixes)
        asyncio.get_running_loop().add_reader(self._watch.fileno(), self._addresses_moved)
        self._cells.gauge("arca_build_info", version(), platform.python_version()).set(1)
        self._keepers = [asyncio.create_task(self._keep(slot)) for slot in self._slots]
        await self._all_ready.wait()
        if settings.rules.apply:
            await self._rules.apply(settings)
        self._started = True
        where = ", ".join(map(str, settings.listeners()))
        _log.info("ready: %d workers on %s", len(self._slots), where)

    async def _end(self) -> None:
        self._stop.set()
        # First of all, so that no new connection is sent to where soon nobody listens.
        await self._rules.detach()
        try:
            for slot in self._slots:
                listeners.close(slot.sockets)
            await self._end_workers(self._settings.limits.drain_seconds if self._started else 0.0)
        finally:
            # Only now: the connections that were redirected lived on what is left of the rules.
            await self._rules.remove()
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()
        if self._exchange_log is not None:
            await asyncio.to_thread(self._exchange_log.close, LOG_CLOSE_SECONDS)
        for site in self._sites:
            await site.cleanup()
        if self._keepers:
            _log.info("stopped")

    async def _end_workers(self, seconds: float) -> None:
        if not self._keepers:
            return
        _log.info("draining for at most %g s", seconds)
        self._tell(Drain(seconds))
        gone = asyncio.create_task(_all_done(self._keepers))
        hurry = asyncio.create_task(self._at_once.wait())
        await asyncio.wait(
            {gone, hurry}, timeout=seconds + GRACE_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if hurry.done() and not gone.done():
            _log.warning("asked again: ending at once")
            self._tell(Drain(0))
            await asyncio.wait({gone}, timeout=GRACE_SECONDS)
        hurry.cancel()
        for slot in self._slots:
            if slot.process is not None and not gone.done():
                _log.warning("worker %d does not end, killing it", slot.number)
                slot.process.kill()
        await gone

    async def _open_listeners(self) -> None:
        opened: list[tuple[Address, Address | None, list[socket.socket]]] = []
        for address, target in self._settings.listeners():
            if address.host == "::" and not has_ipv6():
                _log.warning("this kernel has no IPv6: not listening on %s", address)
                continue
            if target is not None:
                target = await _resolved(target)
            opened.append((address, target, listeners.open_shared(address, len(self._slots))))
        for address, target, sockets in opened:
            for slot, each in zip(self._slots, sockets, strict=True):
                slot.sockets.append(each)
                slot.servers.append(Server(each.fileno(), address, target))

    async def _open_sites(self) -> None:
        if address := self._settings.metrics_address():
            self._sites.append(await serve_metrics(self, listeners.open_alone(address)))
        if address := self._settings.admin_address():
            if not address.host.startswith("127.") and address.host != "::1":
                _log.warning("admin on %s can be reached from elsewhere, and asks nobody who he is", address)
            self._sites.append(await serve_admin(self, listeners.open_alone(address)))

    # ---- workers

    async def _keep(self, slot: Slot) -> None:
        """Keeps one worker running until the proxy stops."""
        fast_deaths = 0
        while not self._stop.is_set():
            death = await self._one_life(slot)
            if self._stop.is_set():
                return
            _log.error("worker %d %s, replacing it", slot.number, death.how)
            fast_deaths = fast_deaths + 1 if death.fast else 0
            if fast_deaths >= FAST_DEATHS_MAX and not self._started:
                self._fail(StartError(f"workers end as soon as they start: {death.how}: {death.last_words}"))
                return
            self._cells.counter("arca_worker_restarts_total").add(1)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), backoff(fast_deaths))

    async def _one_life(self, slot: Slot) -> Death:
        began = time.monotonic()
        try:
            process = await WorkerProcess.spawn(self._start_of(slot), lambda m: self._receive(slot, m))
        except OSError as error:
            return Death(f"could not be started: {error.strerror}", True, "it said nothing")
        slot.process = process
        if self._stop.is_set():
            process.send(Drain(0))
        how = await process.ended()
        fast = not slot.ready or time.monotonic() - began < FAST_DEATH_SECONDS
        slot.process = None
        self._totals.forget(slot.number)
        self._count_workers()
        words = " / ".join(list(process.last_words)[-3:]) or "it said nothing"
        return Death(f"(pid {process.pid}) ended with {how}", fast, words)

    def _start_of(self, slot: Slot) -> Start:
        drop_to = self._settings.user if os.geteuid() == 0 else None
        return Start(self._settings, self._local_prefixes, slot.servers, self._share, drop_to)

    def _receive(self, slot: Slot, message: FromWorker) -> None:
        slot.heard_at = time.monotonic()
        match message:
            case Ready():
                _log.info("worker %d (pid %d) is ready", slot.number, message.pid)
                self._count_workers()
                if all(each.ready for each in self._slots):
                    self._all_ready.set()
            case Counters():
                self._totals.merge(slot.number, message.changes)
            case Lines():
                if self._exchange_log is not None:
                    self._exchange_log.put(message.data)
            case Drained():
                _log.debug("worker %d has drained", slot.number)

    def _count_workers(self) -> None:
        self._cells.gauge("arca_workers").set(sum(slot.ready for slot in self._slots))

    def _tell(self, message: FromSupervisor) -> None:
        for slot in self._slots:
            if slot.process is not None:
                slot.process.send(message)

    def _fail(self, failure: StartError) -> None:
        self._failure = self._failure or failure
        self._stop.set()

    # ---- what changes while it runs

    async def _reload(self) -> None:
        async with self._reloading:
            before = self._settings
            try:
                wanted = await asyncio.to_thread(self._read)
                fixed = needs_restart(before, wanted)
                after = keeping(before, wanted, fixed)
                check_together(after)
                if self._exchange_log is not None:
                    self._exchange_log.reopen(after.exchanges)
            except (SettingsError, ExchangeLogError) as error:
                _log.error("not reloaded, the old settings stay: %s", error)
                return
            if fixed:
                _log.warning("not changed before a restart: %s", ", ".join(fixed))
            self._settings = after
            if after.log_level != before.log_level:
                self.set_log_level(after.log_level)
            self._tell(Configure(after, self._local_prefixes))
            _log.info("reloaded: %s", ", ".join(changed(before, after)) or "nothing changed")
            await self._change_rules(before, after)

    async def _change_rules(self, before: Settings, after: Settings) -> None:
        same = (before.rules, before.mark) == (after.rules, after.mark)
        if same or not self._started or self._stop.is_set():
            return
        self._rules_seen = RulesSeen(float("-inf"), [], [])
        if not after.rules.apply:
            # What is left goes at the end: connections that were redirected may live as long as we do.
            await self._rules.detach()
            return
        try:
            await self._rules.apply(after)
        except (NetfilterError, ValueError) as error:  # RuleError is one
            _log.error("the rules could not be changed, the old ones stay: %s", error)

    def _addresses_moved(self) -> None:
        assert self._watch is not None
        if self._watch.drain():
            self._spawn(self._reread_addresses())

    async def _reread_addresses(self) -> None:
        try:
            self._local_prefixes = await asyncio.to_thread(read_local_prefixes)
        except OSError as error:
            _log.error("local addresses cannot be read, the old ones stay: %s", error)
            return
        self._tell(Configure(self._settings, self._local_prefixes))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- what the admin endpoints ask (proxy.admin.Proxy)

    @property
    def settings(self) -> Settings:
        return self._settings

    async def unready(self) -> list[str]:
        reasons = [f"worker {slot.number} is not ready" for slot in self._slots if not slot.ready]
        since = time.monotonic() - SILENT_SECONDS
        reasons += [
            f"worker {slot.number} has been silent for {SILENT_SECONDS:g} s: its loop hangs"
            for slot in self._slots
            if slot.ready and slot.heard_at < since
        ]
        if self._stop.is_set():
            reasons.append("draining")
        elif not self._started:
            reasons.append("starting")
        elif self._settings.rules.apply:
            reasons += [f"rules: {difference}" for difference in (await self._look_at_rules()).differences]
        return reasons

    async def warnings(self) -> list[str]:
        if not self._started or self._stop.is_set() or not self._settings.rules.apply:
            return []
        return [f"rules: {remark}" for remark in (await self._look_at_rules()).remarks]

    async def _look_at_rules(self) -> RulesSeen:
        if time.monotonic() - self._rules_seen.at > RULES_CHECK_SECONDS:
            differences = await self._rules.differences(self._settings)
            remarks = await self._rules.remarks(self._settings)
            self._rules_seen = RulesSeen(time.monotonic(), differences, remarks)
        return self._rules_seen

    def samples(self) -> list[Sample]:
        self._totals.merge(OWN_CELLS, self._cells.changes())
        return self._totals.samples()

    async def gather(self, what: Topic, n: int, seconds: float) -> Gathered:
        processes = [slot.process for slot in self._slots]
        answers = await asyncio.gather(*(_asked(process, what, n, seconds) for process in processes))
        return Gathered(
            [answer for answer in answers if answer is not None],
            [number for number, answer in enumerate(answers) if answer is None],
        )

    def set_log_level(self, level: str) -> None:
        configure_log(level)
        self._tell(LogLevel(level))


async def _all_done(tasks: list[asyncio.Task[None]]) -> Literal[True]:
    """Like asyncio.wait, as one thing that can be waited for beside others."""
    await asyncio.wait(tasks)
    return True


async def _asked(process: WorkerProcess | None, what: Topic, n: int, seconds: float) -> bytes | None:
    return await process.ask(what, n, seconds) if process is not None and process.ready.is_set() else None


async def _resolved(target: Address) -> Address:
    try:
        return await asyncio.to_thread(resolve, target)
    except OSError as error:
        raise AddressError(f"the forward target {target} cannot be resolved: {error.strerror}") from None


def run(settings: Settings, read: Callable[[], Settings]) -> None:
    """Runs the proxy until it is asked to stop. Raises StartError."""
    configure_log(settings.log_level)

    async def life() -> None:
        await Supervisor(settings, read).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(life())
