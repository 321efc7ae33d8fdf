from typing import Final

from protocols.exchange import End, Exchange, Protocol

class Refusal:
    answer: bytes
    def __init__(self, answer: bytes) -> None: ...

class Codec:
    """What every protocol engine is to its caller.

    ``now`` is always the time of the monotonic clock, in seconds.
    """

    signals: int  # bits: 1 finished, 2 refused, 4 succeeded, 8 resumable; cleared by the caller
    finished: Final[list[Exchange]]  # exchanges that ended, taken out by the caller
    refusal: Refusal | None
    successor: Codec | None
    fallback: str | None  # why the engine gave up, when it did
    pause_downstream: bool  # nothing more should be read from downstream for now
    in_flight: int  # exchanges begun and not ended

    def from_downstream(self, data: bytes, now: float) -> bytes:
        """Take what downstream sent and return what is to go to upstream."""

    def from_upstream(self, data: bytes, now: float) -> bytes:
        """Take what upstream sent and return what is to go to downstream."""

    def downstream_eof(self, now: float) -> bytes:
        """Downstream will send no more; returns bytes that were held back, for upstream.

        While ``pause_downstream`` stays set, some wait for upstream to answer, and FIN goes on behind them.
        """

    def upstream_eof(self, now: float) -> bytes:
        """Upstream will send no more; returns bytes that were held back, for downstream."""

    def take_held_request(self) -> bytes:
        """Bytes of downstream not yet passed on, to be fed to the successor."""

    def take_held_response(self) -> bytes:
        """Bytes of upstream not yet passed on, to be fed to the successor."""

    def dial_failed(self, error: int, status: int, cause: str, text: str, now: float) -> None:
        """Upstream could not be reached: answer ``status``, ``cause`` and ``text`` in the protocol's way."""

    def end(self, how: End, error: int, now: float) -> None:
        """The connection is over: whatever is in flight ends in this way."""

    def awaits_head(self, since: float) -> bool:
        """Whether a request began before ``since`` and its head is not complete yet."""

class Opaque(Codec):
    exchange: Exchange
    def __init__(self, protocol: Protocol, now: float) -> None: ...
