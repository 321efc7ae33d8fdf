"""What a connection does around its engine, whichever that is: which one it gets, what is told of what still
runs, and what becomes of a request that never gets complete.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.system.arca import FIN, RST, Carrier, verdict
from tests.system.http2_peers import (
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GET,
    GOAWAY,
    HEADERS,
    OK,
    POST,
    PREFACE,
    SETTINGS,
    Http2Peer,
    begin,
    counted,
    data,
    ends,
    frame,
    passes,
    settings,
)
from tests.system.processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.system.processes import Row

SETTINGS_ACK = frame(SETTINGS, 1, 0)
GRPC = [*POST[:3], (b":path", b"/a.Service/Do"), (b"content-type", b"application/grpc")]
GRPC_OK = [(b":status", b"200"), (b"content-type", b"application/grpc")]
GRPC_STATUS = [(b"grpc-status", b"0")]


@pytest.fixture(scope="module")
def carrier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Carrier]:
    limits = "report_running_seconds = 0.5\n[limits]\nhead_timeout_seconds = 1\n"
    with Carrier(tmp_path_factory.mktemp("arca"), limits) as made:
        yield made


@pytest.fixture
def arca(carrier: Carrier) -> Iterator[Carrier]:
    yield carrier
    carrier.assert_nothing_is_left()


def in_flight(arca: Carrier) -> dict[str, float]:
    protocols = ("http/1.1", "http/2", "grpc", "tls", "tcp")
    found = {name: counted(arca, "arca_requests_in_flight", protocol=name) for name in protocols}
    return {name: value for name, value in found.items() if value}


def test_what_runs_is_told_while_it_runs_and_once_more_when_it_ends(arca: Carrier) -> None:
    client, server = ends(arca.connect())
    with client, server:
        begin(client, server)
        passes(client, server, client.head(1, GRPC), data(1, b"\x00\x00\x00\x00\x02hi"))
        passes(server, client, server.head(1, GRPC_OK), data(1, b"\x00\x00\x00\x00\x03yes"))
        until(lambda: len([row for row in arca.logged() if row.get("in_flight")]) >= 2)
        passes(client, server, data(1, b"", END_STREAM))
        passes(server, client, server.head(1, GRPC_STATUS, END_STREAM))
    until(lambda: "in_flight" not in arca.logged()[-1])
    *running, last = [row for row in arca.logged() if row["client"] == client.name]
    for row in running:
        assert (row["in_flight"], row["verdict"], row["protocol"], row["code"]) == (True, None, "grpc", None)
        assert isinstance(row["grpc"], dict)
        assert (row["grpc"]["request_messages"], row["grpc"]["response_messages"]) == (1, 1)
        assert _milliseconds(row) >= 500
        assert isinstance(row["tcp"], dict)
        assert row["tcp"]["upstream"] is not None
        assert [row[key] for key in ("connection", "stream", "request_id")] == [
            last[key] for key in ("connection", "stream", "request_id")
        ]
    assert running == sorted(running, key=_milliseconds)
    assert (last["code"], verdict(last)) == ("OK", ("ok", None))
    assert counted(arca, "arca_requests_total", method="a.Service/Do") == 1


def test_calls_and_other_streams_of_one_connection_are_in_flight_under_their_own_names(arca: Carrier) -> None:
    client, server = ends(arca.connect())
    with client, server:
        begin(client, server)
        passes(
            client,
            server,
            *(client.head(*head) for head in ((1, GRPC, END_STREAM), (3, GET, END_STREAM), (5, GRPC))),
        )
        until(lambda: in_flight(arca) == {"grpc": 2, "http/2": 1})
        passes(server, client, server.head(1, [*GRPC_OK, *GRPC_STATUS], END_STREAM))
        until(lambda: in_flight(arca) == {"grpc": 1, "http/2": 1})
        passes(server, client, server.head(3, OK, END_STREAM))
        until(lambda: in_flight(arca) == {"grpc": 1})
        (pair,) = arca.carried()
        assert (pair["protocol"], pair["in_flight"]) == ("http/2", 1)
    until(lambda: in_flight(arca) == {})


def test_tls_is_in_flight_under_its_name_however_it_was_cut(arca: Carrier) -> None:
    client, server = arca.connect()
    with client, server:
        client.sends(b"\x16\x03")
        server.hears(b"\x16\x03")
        until(lambda: in_flight(arca) == {"tcp": 1})
        client.sends(b"\x01\x00\x30\x01")
        server.hears(b"\x01\x00\x30\x01")
        until(lambda: in_flight(arca) == {"tls": 1})
        (pair,) = arca.carried()
        assert pair["protocol"] == "tls"
    until(lambda: in_flight(arca) == {})


@pytest.mark.parametrize("said", [0, 1, 10, 23])
def test_a_server_that_speaks_first_finds_its_engine_whatever_the_client_has_said(
    arca: Carrier, said: int
) -> None:
    """The preface is held back until it is whole, but for a server that has begun HTTP/2 already."""
    before = counted(arca, "arca_detect_total", protocol="http/2", how="server_first")
    client, server = ends(arca.connect())
    with client, server:
        client.sends(PREFACE[:said])
        if said:
            until(lambda: arca.carried()[0]["protocol"] is None)
        server.sends(settings())
        client.takes(SETTINGS)
        client.sends(PREFACE[said:] + settings() + SETTINGS_ACK)
        server.takes(SETTINGS)
        server.takes(SETTINGS)
        passes(client, server, client.head(1, GET, END_STREAM))
        passes(server, client, server.head(1, OK, END_STREAM))
    (row,) = arca.exchanges(client)
    assert (row["protocol"], row["stream"], row["status"], verdict(row)) == ("http/2", 1, 200, ("ok", None))
    until(lambda: counted(arca, "arca_detect_total", protocol="http/2", how="server_first") == before + 1)


@pytest.mark.parametrize("said", [b"GE", b"PRI * HTTP/2.0\r"])
def test_a_server_that_speaks_first_otherwise_gets_what_was_held(arca: Carrier, said: bytes) -> None:
    client, server = arca.connect()
    with client, server:
        client.sends(said)
        server.sends(b"220 welcome\r\n")
        client.hears(b"220 welcome\r\n")
        server.hears(said)
        client.sends(b"more")
        server.hears(b"more")
    (row,) = arca.exchanges(client)
    assert (row["protocol"], row["request_bytes"]) == ("tcp", len(said) + 4)


def test_an_http2_head_that_never_ends_is_refused_to_both_ends(arca: Carrier) -> None:
    client, server = ends(arca.connect())
    with client, server:
        begin(client, server)
        client.sends(frame(HEADERS, END_HEADERS | END_STREAM, 1, client.block(GET))[:12])
        last = client.finds(GOAWAY)
        assert int.from_bytes(last.payload[4:8]) == ENHANCE_YOUR_CALM
        assert b"head_timeout" in last.payload
        assert client.rest() == FIN
    (row,) = arca.exchanges(client)
    assert (row["protocol"], verdict(row)) == ("http/2", ("client", "stalled"))


def test_a_late_head_is_no_reason_to_cut_a_stream_that_is_being_answered(arca: Carrier) -> None:
    client, server = ends(arca.connect())
    with client, server:
        begin(client, server)
        passes(client, server, client.head(1, GET, END_STREAM))
        late = client.head(3, GET, END_STREAM)
        client.sends(late[:12])
        until(lambda: any(row.get("in_flight") and _milliseconds(row) > 2000 for row in _of(arca, client)))
        passes(server, client, server.head(1, OK), data(1, b"still", END_STREAM))
        assert client.finds(GOAWAY).kind == GOAWAY
    until(lambda: any("in_flight" not in row for row in _of(arca, client)))
    first = next(row for row in _of(arca, client) if "in_flight" not in row)
    assert (first["stream"], verdict(first)) == (1, ("ok", None))


def _of(arca: Carrier, client: Http2Peer) -> list[Row]:
    return [row for row in arca.logged() if row["client"] == client.name]


def _milliseconds(row: Row) -> float:
    duration = row["duration_ms"]
    assert isinstance(duration, float)
    return duration


@pytest.mark.parametrize("said", [PREFACE, PREFACE + settings()[:5], PREFACE + settings()])
def test_a_client_without_a_server_is_reset_though_its_first_frame_comes_in_pieces(
    arca: Carrier, said: bytes
) -> None:
    client = arca.dial(arca.nowhere)
    with client:
        client.sends(said[:10])
        until(lambda: len(arca.carried()) == 1)
        client.sends(said[10:])
        until(lambda: arca.carried() == [] or arca.carried()[0]["protocol"] == "http/2")
        if said[len(PREFACE) :] == settings()[:5]:
            time.sleep(0.3)  # past the first look, which finds a frame that may yet become a request
            client.sends(settings()[5:])
        assert client.heard_end() == RST
    (row,) = arca.exchanges(client)
    assert (row["protocol"], verdict(row)) == ("http/2", ("infrastructure", "connect_refused"))
