"""What the pairs of one worker share: who is let in, how upstream is dialed, what is counted, how it ends.

Here are the decisions of a connection's first moment: where it was going, in which direction, and whether
it is carried at all. Then it is a ``Pair``'s. Nothing here is done per request.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import socket
import time
from typing import TYPE_CHECKING

from netfilter.addresses import LocalAddresses
from netfilter.destination import Address, local_address, original_destination
from protocols.exchange import End
from protocols.trace_context import Ids
from proxy.dial import Dial
from proxy.pair import Pair, Side, silent_pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.cells import Gauge
    from proxy.settings import Settings
    from proxy.telemetry import Telemetry

_log = logging.getLogger("arca.interceptor")

_DRAIN_LOOK_SECONDS = 0.05
_CUT_SECONDS = 1.0
_ABORT_SECONDS = 0.5
_HEAD_LOOK_SECONDS = 0.5
_SILENCE_LOOK_SECONDS = 1.0  # MQTT's keep-alive is in whole seconds
# Thousands can fall silent at once, when a network goes: each costs about 30 us of the loop to tell of.
_SILENT_MAX = 100
_SILENT_MORE_SECONDS = 0.02
_RUNNING_MAX = 1_000  # lines of running exchanges per look; each costs about 3 us of the loop
_ANY = frozenset(("0.0.0.0", "::"))


class Interceptor:
    """Carries every connection that a worker accepts.

    ``listeners`` are the addresses ARCA itself listens on, which are never dialed; ``max_connections`` is
    this worker's share of the limit.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        telemetry: Telemetry,
        listeners: frozenset[tuple[str, int]],
        max_connections: int,
    ) -> None:
        self.loop = loop
        self.telemetry = telemetry
        self.hangups = Hangups(loop)
        self._listeners = listeners
        self._max_connections = max_connections
        self._pairs: set[Pair] = set()
        self._prefix = f"{os.getpid():x}-"
        self._count = 0
        self._resolve_cells()
        self._running_look: asyncio.TimerHandle | None = None
        self.configure(settings, [])
        loop.call_later(_HEAD_LOOK_SECONDS, self._look_for_late_heads)
        loop.call_later(_SILENCE_LOOK_SECONDS, self._look_for_silence)

    def configure(self, settings: Settings, local_prefixes: list[str]) -> None:
        """From now on these; pairs that exist keep what they began with."""
        self.ids = Ids(settings.sample)
        self.strict = settings.strict
        self.thrift_frame_bytes = settings.limits.thrift_frame_bytes
        self.telemetry.slow = settings.slow
        self._settings = settings
        self._local = LocalAddresses(local_prefixes)
        if self._running_look is not None:
            self._running_look.cancel()
        self._look_for_running_later()

    # -- letting in ----------------------------------------------------------------------------------------

    def redirected(self) -> asyncio.BaseProtocol:
        """The protocol of a connection that the kernel redirected here."""
        return Pair(self, self.telemetry, None).downstream

    def forward_to(self, target: tuple[str, int]) -> Callable[[], asyncio.BaseProtocol]:
        """The protocol factory of a listener whose connections all go to ``target``."""
        destination = Address(*target)

        def accept() -> asyncio.BaseProtocol:
            return Pair(self, self.telemetry, destination).downstream

        return accept

    def remember(self, pair: Pair) -> None:
        """A pair begins; ``forget`` follows."""
        self._pairs.add(pair)
        self.active.add(1)

    def admit(self, fd: int, fixed: Address | None) -> tuple[Address, bool, End | None]:
        """Where a connection goes, whether that is inbound, and why it is not carried, if it is not.

        Raises OSError when the connection is gone already.
        """
        # A connection that conntrack does not know came straight to the listener.
        destination = fixed or original_destination(fd) or local_address(fd)
        # To connect to the unspecified address is to connect to this host (ip(7)).
        inbound = destination.host in self._local or destination.host in _ANY
        refusal = None
        if self._is_own(destination, inbound):
            refusal = End.LOOP
        elif len(self._pairs) > self._max_connections:
            refusal = End.OVERLOAD
        if refusal is not None:
            self._cells.counter("arca_connections_refused_total", refusal.name.lower()).add(1)
        return destination, inbound, refusal

    def next_id(self) -> str:
        """A name for a connection, unique on this host for as long as this process lives."""
        self._count += 1
        return f"{self._prefix}{self._count:x}"

    def _is_own(self, destination: Address, local: bool) -> bool:
        return any(
            port == destination.port
            and (host == destination.host or (host in _ANY and local) or destination.host in _ANY)
            for host, port in self._listeners
        )

    # -- dialing -------------------------------------------------------------------------------------------

    def start_dial(self, pair: Pair) -> Dial:
        return Dial(self.loop, pair, self._settings.mark, self._settings.limits.connect_timeout_seconds)

    # -- counting ------------------------------------------------------------------------------------------

    def _resolve_cells(self) -> None:
        cells = self._cells = self.telemetry.cells
        self.active = cells.gauge("arca_connections_active")
        self.connect_duration = cells.histogram("arca_connect_duration_seconds")
        self.grpc_in_flight = cells.gauge("arca_requests_in_flight", "grpc")
        self._retransmits = {
            True: cells.counter("arca_tcp_retransmits_total", "downstream"),
            False: cells.counter("arca_tcp_retransmits_total", "upstream"),
        }

    def in_flight_gauge(self, protocol: str) -> Gauge:
        return self._cells.gauge("arca_requests_in_flight", protocol)

    def detected(self, protocol: str, how: str, inbound: bool) -> None:
        direction = "inbound" if inbound else "outbound"
        self._cells.counter("arca_detect_total", protocol, how).add(1)
        self._cells.counter("arca_connections_total", protocol, direction).add(1)

    def fell_back(self, protocol: str, reason: str) -> None:
        self._cells.counter("arca_codec_fallbacks_total", protocol, reason).add(1)

    def exceeded(self, protocol: str, limit: str, side: str) -> None:
        """A peer, downstream or upstream, went over one of its protocol's limits."""
        self._cells.counter("arca_protocol_limits_total", protocol, limit, side).add(1)

    def count_reset(self, side: str, error: int) -> None:
        # errno does not say which end reset a connection.
        reason = errno.errorcode.get(error, str(error))
        self._cells.counter("arca_tcp_resets_total", side, "unknown", reason).add(1)

    def count_retransmits(self, is_downstream: bool, facts: dict[str, float] | None) -> None:
        if facts and facts["retransmits"]:
            self._retransmits[is_downstream].add(facts["retransmits"])

    # -- looking after -------------------------------------------------------------------------------------

    def connections(self, n: int) -> list[dict[str, object]]:
        """At most ``n`` of the pairs that are being carried."""
        begun = (pair for pair in self._pairs if pair.connection is not None)
        return [pair.describe() for pair, _ in zip(begun, range(n), strict=False)]

    def _look_for_late_heads(self) -> None:
        self.loop.call_later(_HEAD_LOOK_SECONDS, self._look_for_late_heads)
        limit = self._settings.limits.head_timeout_seconds
        if limit:
            since = time.monotonic() - limit
            for pair in [pair for pair in self._pairs if pair.awaits_head(since)]:
                pair.time_out_head()

    def _look_for_silence(self) -> None:
        now = time.monotonic()
        found = silent_pairs(self._pairs, now, _SILENT_MAX)
        more = len(found) == _SILENT_MAX
        self.loop.call_later(_SILENT_MORE_SECONDS if more else _SILENCE_LOOK_SECONDS, self._look_for_silence)
        for pair in found:
            pair.gone_silent(now)

    def _look_for_running_later(self) -> None:
        """Only the exchange log hears of what still runs: without one nobody need look."""
        period = self._settings.report_running_seconds if self._settings.exchanges else 0
        self._running_look = self.loop.call_later(period, self._look_for_running) if period else None

    def _look_for_running(self) -> None:
        self._look_for_running_later()
        now = time.monotonic()
        before = now - self._settings.report_running_seconds
        found = 0
        for pair in self._pairs:
            found += pair.report_running(before, now, _RUNNING_MAX - found)
        if found > _RUNNING_MAX:
            self._cells.counter("arca_dropped_records_total", "running").add(found - _RUNNING_MAX)

    # -- ending --------------------------------------------------------------------------------------------

    def forget(self, pair: Pair) -> None:
        """A pair is over."""
        self._pairs.discard(pair)
        self.active.add(-1)

    async def drain(self, seconds: float) -> None:
        """End when no pair is left: idle ones are closed at once, others when they are done, or cut."""
        deadline = self.loop.time() + seconds
        while self._pairs and self.loop.time() < deadline:
            for pair in list(self._pairs):
                pair.finish_if_idle()
            await asyncio.sleep(_DRAIN_LOOK_SECONDS)
        # A reset waits for what was sent before it, though not for ever.
        for end, patience in ((Pair.cut, _CUT_SECONDS), (Pair.abort, _ABORT_SECONDS)):
            deadline = self.loop.time() + patience
            for pair in list(self._pairs):
                end(pair)
            while self._pairs and self.loop.time() < deadline:
                await asyncio.sleep(_DRAIN_LOOK_SECONDS)


class Hangups:
    """Hears resets on connections that the loop does not read.

    A stream that is paused, or whose peer has sent FIN, has no read watcher any more, so a reset would go
    unnoticed until the next write. epoll reports EPOLLERR and EPOLLHUP without being asked for anything
    else (epoll_ctl(2)); one epoll set of the worker collects them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._sides: dict[int, Side] = {}
        loop.add_reader(self._epoll.fileno(), self._look)

    def watch(self, fd: int, side: Side) -> None:
        self._sides[fd] = side
        self._epoll.register(fd, select.EPOLLONESHOT)

    def unwatch(self, fd: int) -> None:
        if self._sides.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _look(self) -> None:
        for fd, _ in self._epoll.poll(0):
            side = self._sides.get(fd)
            if side is None:
                continue
            with socket.socket(fileno=fd) as connection:
                error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                connection.detach()
            # No error: both directions were closed in order, and the pair knows.
            if error:
                self.unwatch(fd)
                side.hung_up(error)
