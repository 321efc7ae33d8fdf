from collections.abc import Callable

from protocols.exchange import Exchange
from proxy.metrics import Cells

class Connection:
    """What all exchanges of one pair have in common; ``opened`` in monotonic seconds."""

    id: str
    client: str
    server: str
    inbound: bool
    opened: float
    def __init__(self, id: str, client: str, server: str, inbound: bool, opened: float) -> None: ...  # noqa: A002

class Telemetry:
    """Where exchanges go when they end: metric cells, the exchange log, the memory of the newest.

    ``log`` is handed blocks of whole JSON lines, from 64 KiB on and at every ``flush``; None switches the
    log off. ``slow`` is the number of seconds from which on an exchange is kept with its TCP facts.
    """

    cells: Cells
    slow: float
    def __init__(
        self, cells: Cells, log: Callable[[bytes], None] | None, full: Callable[[], bool] | None = None
    ) -> None: ...
    def record(self, exchange: Exchange, connection: Connection, tcp: dict[str, object] | None) -> None:
        """Take an exchange that ended; ``tcp`` is what TCP_INFO says of both sides, by side."""

    def record_running(
        self, exchange: Exchange, connection: Connection, tcp: dict[str, object] | None, now: float
    ) -> None:
        """Write how far an exchange has come that still runs: a line without a verdict, counted nowhere."""

    def newest(self, n: int) -> list[bytes]:
        """The newest ``n`` exchanges as JSON lines, newest last."""

    def flush(self) -> None:
        """Hand over the lines that wait."""
