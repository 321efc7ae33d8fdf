"""``Upgrade: h2c`` (RFC 7540 section 3.2): the request that asks in HTTP/1 is answered as stream 1 of HTTP/2.

Both ends are the library h2, so that what they understand is what HTTP/2 says, not what this project thinks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import pytest

from protocols.exchange import End, Protocol
from protocols.http1 import Http1
from tests.unit.conversation import ADDED, GIVEN_BACK, REQUEST_ID, Caller, Conversation, fixed_ids

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
SWITCHING_SENT = SWITCHING[:-2] + GIVEN_BACK + b"\r\n"
ASKING = b"GET /first HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
OK_SENT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + GIVEN_BACK + b"\r\nok"


def connection(*, client: bool) -> h2.connection.H2Connection:
    config = h2.config.H2Configuration(client_side=client, header_encoding="utf-8")
    return h2.connection.H2Connection(config)


@dataclass
class Upgrade:
    """A client and a server with the engine between them; ``piece`` octets are carried at a time."""

    piece: int = 1 << 20
    caller: Caller = field(default_factory=lambda: Caller(Http1(fixed_ids())))
    client: h2.connection.H2Connection = field(default_factory=lambda: connection(client=True))
    server: h2.connection.H2Connection = field(default_factory=lambda: connection(client=False))
    client_events: list[h2.events.Event] = field(default_factory=list)
    server_events: list[h2.events.Event] = field(default_factory=list)

    def ask(self, head: bytes = ASKING, body: bytes = b"") -> None:
        settings = self.client.initiate_upgrade_connection()
        assert settings is not None
        sent = head + b"HTTP2-Settings: " + settings + b"\r\n"
        self._downstream(sent + b"\r\n" + body)
        assert self._taken_upstream() == sent + ADDED + b"\r\n" + body
        self.server.initiate_upgrade_connection(settings)

    def grant(self) -> None:
        """101, with the server's preface in the same breath; then the client's, and acknowledgements."""
        self._upstream(SWITCHING + self.server.data_to_send())
        granted = self._taken_downstream()
        assert granted.startswith(SWITCHING_SENT)
        self.client_events += self.client.receive_data(granted[len(SWITCHING_SENT) :])
        self.talk()

    def talk(self) -> None:
        """Carry what the two have to say until they are silent."""
        while True:
            request, response = self.client.data_to_send(), self.server.data_to_send()
            if not request and not response:
                return
            self._downstream(request)
            self._upstream(response)
            self.server_events += self.server.receive_data(self._taken_upstream())
            self.client_events += self.client.receive_data(self._taken_downstream())

    def answer(self, stream: int, status: str = "200") -> None:
        self.server.send_headers(stream, [(":status", status), ("server", "x")])
        self.server.send_data(stream, b"hello", end_stream=True)
        self.talk()

    def _downstream(self, data: bytes) -> None:
        for i in range(0, len(data), self.piece):
            self.caller.downstream(data[i : i + self.piece])

    def _upstream(self, data: bytes) -> None:
        for i in range(0, len(data), self.piece):
            self.caller.upstream(data[i : i + self.piece])

    def _taken_upstream(self) -> bytes:
        taken = bytes(self.caller.to_upstream)
        self.caller.to_upstream.clear()
        return taken

    def _taken_downstream(self) -> bytes:
        taken = bytes(self.caller.to_downstream)
        self.caller.to_downstream.clear()
        return taken


def headers_of(
    events: list[h2.events.Event],
    kind: type[h2.events.RequestReceived | h2.events.ResponseReceived],
    stream: int,
) -> dict[str, str]:
    [found] = [event for event in events if isinstance(event, kind) and event.stream_id == stream]
    return {str(name): str(value) for name, value in found.headers}


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
def test_the_request_that_asked_is_stream_1_and_ends_with_its_response(piece: int) -> None:
    upgrade = Upgrade(piece)
    upgrade.ask()
    upgrade.grant()
    assert upgrade.caller.fallback is None
    assert upgrade.caller.codec.protocol_name() == "http/2"
    assert upgrade.caller.codec.in_flight == 1
    assert upgrade.caller.exchanges == []

    upgrade.answer(1, "404")
    [exchange] = upgrade.caller.exchanges
    assert (exchange.protocol, exchange.stream, exchange.end) == (Protocol.HTTP_2, 1, End.COMPLETE)
    assert (exchange.method, exchange.target, exchange.authority) == (b"GET", b"/first", b"a")
    assert (exchange.status, exchange.request_id) == (404, REQUEST_ID)
    assert exchange.request_complete
    assert exchange.response_complete
    # The 101 was no answer: it has its bytes and not its time in the exchange.
    assert exchange.response_bytes > len(SWITCHING) + 5
    assert exchange.started < exchange.first_byte <= exchange.ended
    assert upgrade.caller.codec.in_flight == 0
    headers = headers_of(upgrade.client_events, h2.events.ResponseReceived, 1)
    assert headers == {":status": "404", "server": "x", "x-request-id": REQUEST_ID.decode()}


def test_streams_behind_it_are_exchanges_of_http_2() -> None:
    upgrade = Upgrade()
    upgrade.ask()
    upgrade.grant()
    upgrade.client.send_headers(
        3, [(":method", "GET"), (":scheme", "http"), (":path", "/next"), (":authority", "a")], end_stream=True
    )
    upgrade.talk()
    assert upgrade.caller.codec.in_flight == 2
    assert (
        headers_of(upgrade.server_events, h2.events.RequestReceived, 3)["x-request-id"] == REQUEST_ID.decode()
    )
    upgrade.answer(3)
    upgrade.answer(1)
    told = [(exchange.stream, exchange.target, exchange.status) for exchange in upgrade.caller.exchanges]
    assert told == [(3, b"/next", 200), (1, b"/first", 200)]


def test_a_request_with_a_body_is_upgraded_when_it_was_complete() -> None:
    upgrade = Upgrade()
    upgrade.ask(ASKING.replace(b"GET", b"POST") + b"Content-Length: 4\r\n", b"body")
    upgrade.grant()
    upgrade.answer(1)
    [exchange] = upgrade.caller.exchanges
    assert (exchange.protocol, exchange.method, exchange.status) == (Protocol.HTTP_2, b"POST", 200)


def test_a_stream_that_is_under_way_ends_as_the_connection_does() -> None:
    upgrade = Upgrade()
    upgrade.ask()
    upgrade.grant()
    upgrade.caller.end(End.DOWNSTREAM_RST)
    [exchange] = upgrade.caller.exchanges
    assert (exchange.protocol, exchange.end, exchange.status) == (Protocol.HTTP_2, End.DOWNSTREAM_RST, 0)
    assert exchange.first_byte == -1


def test_an_eager_preface_waits_for_the_101_and_goes_on_behind_it() -> None:
    upgrade = Upgrade()
    upgrade.ask()
    preface = upgrade.client.data_to_send()
    assert preface.startswith(b"PRI * HTTP/2.0")
    upgrade.caller.downstream(preface)
    assert upgrade.caller.to_upstream == b""
    assert upgrade.caller.codec.pause_downstream
    upgrade.caller.upstream(SWITCHING)
    assert upgrade.caller.to_upstream == preface
    assert not upgrade.caller.codec.pause_downstream


def test_earlier_requests_on_the_connection_are_answered_first() -> None:
    plain = b"GET / HTTP/1.1\r\nHost: a\r\n"
    (
        Conversation()
        .downstream(plain + b"\r\n" + ASKING + b"\r\n")
        .to_upstream(plain + ADDED + b"\r\n" + ASKING + ADDED + b"\r\n")
        .upstream(OK + SWITCHING)
        .to_downstream(OK_SENT + SWITCHING_SENT)
        .exchange(status=200, protocol=Protocol.HTTP_1_1, target=b"/")
        .in_flight(1)
        .carried_on(None)
        .ended(End.UPSTREAM_RST)
        .exchange(protocol=Protocol.HTTP_2, stream=1, target=b"/first", end=End.UPSTREAM_RST)
    )


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        (b"Upgrade: h2c", b"Upgrade: h2c"),
        (b"Upgrade: H2C", b"upgrade:h2c "),
        (b"Upgrade: websocket , h2c", b"Upgrade: h2c"),
        (b"Upgrade: a,, h2c\t,b", b"Upgrade: h2c"),
        (b"Upgrade: websocket\r\nUpgrade: h2c\r\nUpgrade: a", b"Upgrade: h2c"),
    ],
)
def test_h2c_may_be_one_of_several_that_are_asked_for(asked: bytes, granted: bytes) -> None:
    request = b"GET / HTTP/1.1\r\n" + asked + b"\r\n"
    response = b"HTTP/1.1 101 S\r\n" + granted + b"\r\n"
    talk = Conversation().downstream(request + b"\r\n").to_upstream(request + ADDED + b"\r\n")
    talk.upstream(response + b"\r\n").to_downstream(response + GIVEN_BACK + b"\r\n").in_flight(1)
    talk.ended(End.DRAINED).exchange(protocol=Protocol.HTTP_2, stream=1, end=End.DRAINED)


@pytest.mark.parametrize(
    ("asked", "granted", "protocol"),
    [
        (b"Upgrade: h2c, websocket", b"Upgrade: websocket", Protocol.WEBSOCKET),
        (b"Upgrade: h2c", b"Upgrade: x", Protocol.TCP),
        (b"Upgrade: h2c", b"X: h2c", Protocol.TCP),
        (b"Upgrade: x", b"Upgrade: h2c", Protocol.TCP),
        (b"Upgrade: h2", b"Upgrade: h2", Protocol.TCP),
        (b"Upgrade: h2cc, xh2c, h2c/1", b"Upgrade: h2c", Protocol.TCP),
    ],
)
def test_what_was_not_asked_for_and_granted_as_h2c_is_opaque(
    asked: bytes, granted: bytes, protocol: Protocol
) -> None:
    request = b"GET / HTTP/1.1\r\n" + asked + b"\r\n"
    response = b"HTTP/1.1 101 S\r\n" + granted + b"\r\n"
    talk = Conversation().downstream(request + b"\r\n").to_upstream(request + ADDED + b"\r\n")
    talk.upstream(response + b"\r\n").to_downstream(response + GIVEN_BACK + b"\r\n")
    talk.carried_on(None).exchange(status=101, protocol=Protocol.HTTP_1_1, end=End.COMPLETE)
    talk.ended(End.DOWNSTREAM_FIN).exchange(protocol=protocol, end=End.COMPLETE)


def test_an_upgrade_that_is_granted_before_its_body_is_complete_is_opaque() -> None:
    # The rest of the body is still HTTP/1 when the server already speaks HTTP/2.
    request = b"POST / HTTP/1.1\r\nUpgrade: h2c\r\nContent-Length: 4\r\n"
    talk = Conversation().downstream(request + b"\r\nbo").to_upstream(request + ADDED + b"\r\nbo")
    talk.upstream(SWITCHING).to_downstream(SWITCHING_SENT).carried_on(None).exchange(status=101)
    talk.downstream(b"dyPRI").to_upstream(b"dyPRI").ended(End.DOWNSTREAM_FIN).exchange(protocol=Protocol.TCP)


def test_a_declined_h2c_leaves_no_trace_in_the_requests_behind_it() -> None:
    other = b"GET / HTTP/1.1\r\nUpgrade: x\r\n"
    talk = Conversation().downstream(ASKING + b"\r\n").to_upstream(ASKING + ADDED + b"\r\n")
    talk.upstream(OK).to_downstream(OK_SENT).exchange(status=200, protocol=Protocol.HTTP_1_1)
    talk.downstream(other + b"\r\n").to_upstream(other + ADDED + b"\r\n")
    talk.upstream(SWITCHING).to_downstream(SWITCHING_SENT).carried_on(None).exchange(status=101)
    talk.ended(End.DOWNSTREAM_FIN).exchange(protocol=Protocol.TCP)


def test_what_follows_a_granted_h2c_and_is_not_http_2_is_carried_on_and_counted() -> None:
    talk = Conversation().downstream(ASKING + b"\r\n").to_upstream(ASKING + ADDED + b"\r\n")
    talk.upstream(SWITCHING).to_downstream(SWITCHING_SENT)
    talk.downstream(b"GET / HTTP/1.1\r\n\r\n").to_upstream(b"GET / HTTP/1.1\r\n\r\n").carried_on("not_http2")
    talk.exchange(protocol=Protocol.HTTP_2, stream=1, end=End.UNREADABLE)
    talk.ended(End.DOWNSTREAM_FIN).exchange(protocol=Protocol.TCP)


def test_a_strict_engine_of_http_1_makes_a_strict_one_of_http_2() -> None:
    caller = Caller(Http1(fixed_ids(), strict=True))
    caller.downstream(ASKING + b"\r\n")
    caller.upstream(SWITCHING)
    caller.downstream(b"GET / HTTP/1.1\r\n\r\n")
    assert caller.refusal is not None
    [exchange] = caller.exchanges
    assert (exchange.stream, exchange.end) == (1, End.DOWNSTREAM_FAULT)
