from typing import Final

from protocols.exchange import End, Exchange, Protocol

class Refusal:
    answer: bytes
    to_upstream: bytes
    def __init__(self, answer: bytes, to_upstream: bytes = b"") -> None: ...

class Codec:
    """What every protocol engine is to its caller.

    ``now`` is always the time of the monotonic clock, in seconds.
    """

    # Bits: 1 finished, 2 refused, 4 succeeded, 8 resumable, 16 reply, 32 exceeded; cleared by the caller.
    signals: int
    finished: Final[list[Exchange]]  # exchanges that ended, taken out by the caller
    refusal: Refusal | None
    successor: Codec | None
    fallback: str | None  # why the engine gave up, when it did
    pause_downstream: bool  # nothing more should be read from downstream for now
    in_flight: int  # exchanges begun and not ended
    in_flight_grpc: int  # of them, those that are gRPC
    exceeded: list[tuple[str, str]]  # (limit, side that went over it), taken out by the caller
    silent_after: float  # when downstream will have been silent for too long, and ``gone_silent`` is due
    heard: float  # where silence is watched: when downstream said something last
    read_since: float  # set by the caller: since when it reads downstream, inf while it does not

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

    def take_reply(self) -> bytes:
        """Bytes for the very side that was just heard, behind everything that it was sent before."""

    def refuse_late_head(self, now: float) -> None:
        """The head that ``awaits_head`` told of has taken too long: end the connection with a refusal."""

    def begin_drain(self) -> bytes:
        """What downstream is told, once, when no new exchange should begin on this connection."""

    def farewell(self) -> bytes:
        """What downstream is told when its idle connection is about to be closed in order."""

    def running(self, before: float) -> list[Exchange]:
        """The exchanges in flight that began before ``before``, where a connection carries several."""

    def protocol_name(self) -> str:
        """One of PROTOCOL_NAMES."""

    def passed_on(self, data: bytes, now: float) -> None:
        """Take what downstream said first, which went on to upstream before its protocol was recognised.

        The engine may change nothing of a message that begins in it.
        """

    def gone_silent(self, now: float) -> None:
        """``silent_after`` passed, and downstream said nothing meanwhile."""

class Opaque(Codec):
    exchange: Exchange
    def __init__(self, protocol: Protocol, now: float) -> None: ...
