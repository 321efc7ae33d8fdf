import asyncio

from netfilter.destination import Address
from proxy.interceptor import Interceptor
from proxy.telemetry import Connection, Telemetry

class Side(asyncio.Protocol):
    """One of a pair's two connections, as the event loop's protocol object."""

    fd: int
    is_downstream: bool
    def hung_up(self, error: int) -> None: ...

class Pair:
    """One downstream connection and the upstream connection that it becomes."""

    connection: Connection
    destination: Address
    downstream: Side
    upstream: Side
    def __init__(
        self, interceptor: Interceptor, telemetry: Telemetry, fixed_destination: Address | None
    ) -> None: ...
    def connected(self, at: float) -> None:
        """The dial succeeded at ``at`` (monotonic seconds), and ``upstream`` is the transport's protocol."""

    def dial_failed(self, error: int) -> None:
        """The dial ended with this errno."""

    def awaits_head(self, since: float) -> bool:
        """Whether a request began before ``since`` (monotonic seconds) of which no complete head came."""

    def time_out_head(self) -> None: ...
    def gone_silent(self, now: float) -> None: ...
    def report_running(self, before: float, now: float, room: int) -> int:
        """Log the exchanges, ``room`` at most, that began before ``before`` and still run; how many do."""

    def finish_if_idle(self) -> bool:
        """Close it when nothing is in flight; answers whether it was so."""

    def cut(self) -> None: ...
    def abort(self) -> None: ...
    def describe(self) -> dict[str, object]: ...

def silent_pairs(pairs: set[Pair], now: float, most: int) -> list[Pair]:
    """At most ``most`` of those for which ``gone_silent`` is due at ``now`` (monotonic seconds)."""
