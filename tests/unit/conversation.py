"""What is said to an engine and what it says, written down as a conversation.

``Caller`` does with an engine what a pair does with it, and keeps what came out. ``Conversation`` holds each
step of a test against it: whatever the engine says must be mentioned before the next thing is said to it, so
a byte too many fails as a byte too few does (precedent: mitmproxy's ``tutils.Playbook``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from protocols.http1 import Http1
from protocols.trace_context import Ids

if TYPE_CHECKING:
    from protocols.codec import Codec
    from protocols.exchange import End, Exchange

FINISHED, REFUSED, SUCCEEDED, RESUMABLE, REPLY, EXCEEDED = 1, 2, 4, 8, 16, 32

# Every random byte is 0x11, so every new id is the same and a test can write it down.
REQUEST_ID = b"11111111-1111-4111-9111-111111111111"
TRACE_ID = b"1" * 32
SPAN_ID = b"1" * 16
GIVEN_BACK = b"X-Request-ID: " + REQUEST_ID + b"\r\n"
ADDED = b"traceparent: 00-" + TRACE_ID + b"-" + SPAN_ID + b"-00\r\n" + GIVEN_BACK


def fixed_ids(sample: float = 0.0) -> Ids:
    return Ids(sample, pool=b"\x11" * 400_000)


class Caller:
    """Drives a codec as a pair does: takes what finished, resumes, hands over, carries out refusals."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.now = 0.0
        self.tick = 1.0  # seconds between two things that are said
        self.to_upstream = bytearray()
        self.to_downstream = bytearray()
        self.exchanges: list[Exchange] = []
        self.exceeded: list[tuple[str, str]] = []
        self.refusal: bytes | None = None
        self.refusal_to_upstream = b""
        self.fallback: str | None = None
        self.handed_over = False
        self.resumed = False
        self.downstream_closed = False
        self.fin_to_upstream = False

    def downstream(self, data: bytes) -> None:
        self._tick()
        if self.refusal is None:
            self.to_upstream += self.codec.from_downstream(data, self.now)
            self._take_reply(self.to_downstream)
            self._attend()

    def upstream(self, data: bytes) -> None:
        self._tick()
        if self.refusal is None:
            self.to_downstream += self.codec.from_upstream(data, self.now)
            self._take_reply(self.to_upstream)
            self._attend()

    def downstream_eof(self) -> None:
        self._tick()
        if self.refusal is None:
            self.downstream_closed = True
            self.to_upstream += self.codec.downstream_eof(self.now)
            self._attend()

    def upstream_eof(self) -> None:
        self._tick()
        if self.refusal is None:
            self.to_downstream += self.codec.upstream_eof(self.now)
            self._attend()

    def dial_failed(self, error: int, status: int, cause: str, text: str) -> None:
        self._tick()
        self.codec.dial_failed(error, status, cause, text, self.now)
        self._attend()

    def end(self, how: End, error: int = 0) -> None:
        self._tick()
        self.codec.end(how, error, self.now)
        self._attend()

    def refuse_late_head(self) -> None:
        self._tick()
        self.codec.refuse_late_head(self.now)
        self._attend()

    def _tick(self) -> None:
        self.now += self.tick

    def _take_reply(self, heard: bytearray) -> None:
        if self.codec.signals & REPLY:
            self.codec.signals &= ~REPLY
            reply = self.codec.take_reply()
            assert reply
            heard += reply

    def _attend(self) -> None:
        while signals := self.codec.signals:
            assert not signals & REPLY
            self.codec.signals = 0
            assert bool(signals & EXCEEDED) == bool(self.codec.exceeded)
            self.exceeded += self.codec.exceeded
            self.codec.exceeded.clear()
            self.resumed = self.resumed or bool(signals & RESUMABLE)
            assert bool(signals & FINISHED) == bool(self.codec.finished)
            self.exchanges += self.codec.finished
            self.codec.finished.clear()
            if signals & SUCCEEDED:
                assert not signals & REFUSED
                assert self.codec.successor is not None
                assert self.codec.in_flight == 0
                self.handed_over = True
                self.fallback = self.codec.fallback
                request, response = self.codec.take_held_request(), self.codec.take_held_response()
                self.codec = self.codec.successor
                self.to_upstream += self.codec.from_downstream(request, self.now)
                self.to_downstream += self.codec.from_upstream(response, self.now) if response else b""
            elif signals & RESUMABLE:
                self.to_upstream += self.codec.from_downstream(b"", self.now)
            if signals & REFUSED:
                assert self.codec.refusal is not None
                assert self.codec.in_flight == 0
                self.refusal = self.codec.refusal.answer
                self.refusal_to_upstream = self.codec.refusal.to_upstream
        if self.downstream_closed and not self.codec.pause_downstream:
            # FIN goes on behind the last byte, which may have to wait for upstream's answer.
            self.fin_to_upstream = True


class Conversation:
    """A test's script; every method answers the conversation itself, so steps are chained."""

    def __init__(self, codec: Codec | None = None) -> None:
        self.caller = Caller(Http1(fixed_ids()) if codec is None else codec)

    # -- what is said to the engine

    def downstream(self, data: bytes) -> Self:
        self._nothing_unmentioned()
        self.caller.downstream(data)
        return self

    def upstream(self, data: bytes) -> Self:
        self._nothing_unmentioned()
        self.caller.upstream(data)
        return self

    def downstream_eof(self) -> Self:
        self._nothing_unmentioned()
        self.caller.downstream_eof()
        return self

    def upstream_eof(self) -> Self:
        self._nothing_unmentioned()
        self.caller.upstream_eof()
        return self

    def dial_failed(self, error: int, status: int, cause: str, text: str) -> Self:
        self._nothing_unmentioned()
        self.caller.dial_failed(error, status, cause, text)
        return self

    def ended(self, how: End, error: int = 0) -> Self:
        self._nothing_unmentioned()
        self.caller.end(how, error)
        return self

    # -- what the engine says

    def to_upstream(self, data: bytes) -> Self:
        self._same("upstream", self.caller.to_upstream, data)
        return self

    def to_downstream(self, data: bytes) -> Self:
        self._same("downstream", self.caller.to_downstream, data)
        return self

    def exchange(self, **fields: object) -> Self:
        """An exchange ended, and these of its fields are so."""
        assert self.caller.exchanges, "no exchange ended"
        exchange = self.caller.exchanges.pop(0)
        found = {name: getattr(exchange, name) for name in fields}
        assert found == fields, f"{exchange}: {found}, expected {fields}"
        return self

    def refused(self, status: int, text: str, *, cause: str | None = None, body: bool = True) -> Self:
        """Downstream is answered so, and its connection is closed after it."""
        answer = self._refusal()
        head, _, said = answer.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1.1 %d " % status), answer
        assert b"server: arca" in lines, answer
        assert b"connection: close" in lines, answer
        assert b"content-length: %d" % (len(text) + 1) in lines, answer
        assert (cause is not None) == any(line.startswith(b"x-arca-cause: ") for line in lines), answer
        if cause is not None:
            assert b"x-arca-cause: " + cause.encode() in lines, answer
        assert said == (text.encode() + b"\n" if body else b""), answer
        return self

    def cut(self) -> Self:
        """Both connections are cut without a word."""
        assert self._refusal() == b"", self.caller.refusal
        return self

    def carried_on(self, fallback: str | None) -> Self:
        """The connection was handed to the opaque engine: because of ``fallback``, or granted by upstream."""
        assert self.caller.handed_over, "the connection was not handed over"
        assert self.caller.fallback == fallback
        return self

    def nothing(self) -> Self:
        """The engine has nothing to say to this."""
        self._nothing_unmentioned()
        return self

    def read_on(self, reading: bool) -> Self:
        """Whether more is to be read from downstream."""
        assert self.caller.codec.pause_downstream is not reading
        return self

    def fin_to_upstream(self, sent: bool) -> Self:
        """Whether downstream's FIN has gone on."""
        assert self.caller.fin_to_upstream is sent
        return self

    def in_flight(self, number: int) -> Self:
        assert self.caller.codec.in_flight == number
        return self

    def _refusal(self) -> bytes:
        assert self.caller.refusal is not None, "nothing was refused"
        return self.caller.refusal

    def _same(self, side: str, said: bytearray, expected: bytes) -> None:
        assert said == expected, f"to {side}:\n{bytes(said)!r}\nexpected:\n{expected!r}"
        said.clear()

    def _nothing_unmentioned(self) -> None:
        self._same("upstream", self.caller.to_upstream, b"")
        self._same("downstream", self.caller.to_downstream, b"")
        assert not self.caller.exchanges, f"exchanges that were not mentioned: {self.caller.exchanges}"
