"""ARCA's reading of HTTP/1 against that of ``h11`` and ``httptools`` (llhttp), on one corpus.

Where ARCA and an oracle both accept what came, they must agree on every message: its method and target or its
status, and the byte it ends at (which says the length of its body, too). Where one refuses what the other
accepts, the difference stands in a table below with its reason; one that is missing there fails, and so does
one that is no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

import h11
import httptools
import pytest

from protocols.http1 import Http1
from tests.unit.conversation import Caller, fixed_ids
from tests.unit.http1_corpus import REQUESTS, RESPONSES

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

# (method, target, end) or (status, b"", end); end is the offset of the byte after the message.
Message: TypeAlias = tuple[bytes | int, bytes, int]


@dataclass
class Reading:
    messages: list[Message] = field(default_factory=list)
    refused: str | None = None  # why


def arca_requests(data: bytes) -> Reading:
    caller = Caller(Http1(fixed_ids()))
    caller.downstream(data)
    for _ in range(caller.codec.in_flight):
        if not caller.handed_over:
            caller.upstream(OK)
    reading = Reading(refused=caller.fallback)
    end = 0
    for exchange in caller.exchanges:
        while data[end : end + 2] == b"\r\n":
            end += 2
        end += exchange.request_bytes
        if exchange.fault is not None:
            reading.refused = exchange.fault
        elif exchange.request_complete:
            assert exchange.method is not None
            assert exchange.target is not None
            reading.messages.append((exchange.method, exchange.target, end))
    return reading


def arca_response(data: bytes, method: bytes) -> Reading:
    caller = Caller(Http1(fixed_ids()))
    caller.downstream(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
    end = 0
    while end < len(data) and not caller.exchanges:
        caller.upstream(data[end : end + 1])
        end += 1
    caller.upstream_eof()
    exchange = caller.exchanges[0]
    if exchange.fault is not None or caller.fallback is not None:
        return Reading(refused=exchange.fault or caller.fallback)
    return Reading([(exchange.status, b"", end)] if exchange.response_complete else [])


def h11_requests(data: bytes) -> Reading:
    reading = Reading()
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    request: h11.Request | None = None
    try:
        for end in range(1, len(data) + 1):
            connection.receive_data(data[end - 1 : end])
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    break
                if isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.EndOfMessage):
                    assert request is not None
                    reading.messages.append((request.method, request.target, end))
                    connection.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
                    connection.send(h11.EndOfMessage())
                    if connection.our_state is h11.MUST_CLOSE:  # HTTP/1.0
                        return reading
                    connection.start_next_cycle()
    except h11.RemoteProtocolError as error:
        reading.refused = str(error)
    return reading


def h11_response(data: bytes, method: bytes) -> Reading:
    reading = Reading()
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"a")]))
    connection.send(h11.EndOfMessage())
    status = 0
    try:
        for end in range(1, len(data) + 2):
            connection.receive_data(data[end - 1 : end])
            while True:
                event = connection.next_event()
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.EndOfMessage):
                    reading.messages.append((status, b"", min(end, len(data))))
                    return reading
                elif not isinstance(event, h11.Data | h11.InformationalResponse):
                    break
    except h11.RemoteProtocolError as error:
        # An end that comes too early is no refusal of what came.
        if "peer closed connection" not in str(error):
            reading.refused = str(error)
    return reading


class Llhttp:
    """The callbacks of ``httptools``; which message ends where is told by feeding it byte by byte."""

    def __init__(self) -> None:
        self.complete = 0
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_message_complete(self) -> None:
        self.complete += 1


def httptools_requests(data: bytes) -> Reading:
    reading = Reading()
    seen = Llhttp()
    parser = httptools.HttpRequestParser(seen)
    try:
        for end in range(1, len(data) + 1):
            parser.feed_data(data[end - 1 : end])
            if seen.complete > len(reading.messages):
                reading.messages.append((parser.get_method(), seen.url, end))
                seen.url = b""
    except httptools.HttpParserError as error:
        reading.refused = str(error)
    return reading


def httptools_response(data: bytes, method: bytes) -> Reading:
    reading = Reading()
    seen = Llhttp()
    parser = httptools.HttpResponseParser(seen)
    interim = 0
    try:
        for end in range(1, len(data) + 1):
            parser.feed_data(data[end - 1 : end])
            status = parser.get_status_code()
            if seen.complete > interim and status < 200:
                interim = seen.complete
            elif seen.complete > interim:
                reading.messages.append((status, b"", end))
                return reading
    except httptools.HttpParserError as error:
        reading.refused = str(error)
    return reading


READERS = {"h11": (h11_requests, h11_response), "httptools": (httptools_requests, httptools_response)}

# Why one refuses what the other accepts.
BARE_LF = "h11 takes a bare LF for a line end; a parser that does not reads another message"
FOLDED = (
    "h11 unfolds; obs-fold is deprecated and another parser sees a field or the end (RFC 9112 section 5.2)"
)
CONTROL = "h11 takes control characters in values; RFC 9110 section 5.5 calls them invalid"
LIMIT = "a limit of ARCA"
LENGTH_AND_CODING = "h11 lets Transfer-Encoding win; which one wins is what smuggling lives on"
CODING_IN_1_0 = "the oracle does not look at the version; RFC 9112 section 6.1 calls the framing faulty"
ONLY_CHUNKED = "h11 knows no other coding; for ARCA the last one decides (RFC 9112 section 6.3)"
EXTENSION = "h11 skips chunk extensions and does not look at their bytes"
BWS = "the oracle takes no white space before a chunk extension; RFC 9112 section 7.1.1 has it parsed"
EQUAL = "llhttp wants one Content-Length; equal ones are one (RFC 9112 section 6.3)"
HOST = "h11 holds Host against RFC 9112 section 3.2; a missing one is for the server to answer"
TARGET = "the oracle wants a target of ASCII, or that begins as a URL; its bytes do not touch the framing"
METHOD = "llhttp has a list of methods; any token is one (RFC 9110 section 9.1)"
VERSION = "the oracle takes another major version for HTTP/1; ARCA carries it unread, it is not its protocol"
UNTIL_CLOSE = "httptools cannot be told that the connection ended"
HEAD = "httptools cannot be told that the request was a HEAD"

REQUEST_DIFFERENCES: Final[dict[tuple[str, str], str]] = {
    ("h11", "chunked behind gzip"): ONLY_CHUNKED,
    ("h11", "empty line before"): "RFC 9112 section 2.2 asks a server to ignore it; h11 does not",
    ("h11", "empty lines between"): "RFC 9112 section 2.2 asks a server to ignore it; h11 does not",
    ("h11", "no host"): HOST,
    ("h11", "two hosts"): HOST,
    ("h11", "bytes over ascii in a target"): TARGET,
    ("h11", "length and chunked"): LENGTH_AND_CODING,
    ("h11", "chunked and length"): LENGTH_AND_CODING,
    ("h11", "length over 64 bits"): "h11 counts in Python's integers; it wraps to 1 in 64 bits",
    ("h11", "chunked in 1.0"): CODING_IN_1_0,
    ("h11", "chunked by a folded line"): FOLDED,
    ("h11", "folded line"): FOLDED,
    ("h11", "bare lf in the first line"): BARE_LF,
    ("h11", "bare lf in a field"): BARE_LF,
    ("h11", "bare lf at the end"): BARE_LF,
    ("h11", "bare lf everywhere"): BARE_LF,
    ("h11", "control character in a value"): CONTROL,
    ("h11", "delete in a value"): CONTROL,
    ("h11", "101 fields"): LIMIT,
    ("h11", "head too large"): LIMIT,
    ("h11", "line too long"): LIMIT,
    ("h11", "http 2.0"): VERSION,
    (
        "h11",
        "chunk size with a space",
    ): "h11 takes white space behind a chunk size; transparency.md wants only hex",
    ("h11", "chunk size of 17 digits"): LIMIT,
    ("h11", "chunk size over 64 bits"): "h11 counts in Python's integers; it wraps to 1 in 64 bits",
    ("h11", "white space before a chunk extension"): BWS,
    ("h11", "chunk extension with a bare cr"): EXTENSION,
    ("h11", "chunk extension with a nul"): EXTENSION,
    ("h11", "trailer with a bare lf"): BARE_LF,
    ("h11", "trailer folded"): FOLDED,
    ("h11", "end of chunks with a bare lf"): BARE_LF,
    ("httptools", "white space before a chunk extension"): BWS,
    ("httptools", "unknown method"): METHOD,
    ("httptools", "method in lower case"): METHOD,
    (
        "httptools",
        "http 1.2",
    ): "llhttp knows 1.0 and 1.1; a later minor version is read as 1.1 (RFC 9110 section 2.5)",
    ("httptools", "equal lengths"): EQUAL,
    ("httptools", "equal lengths in one"): EQUAL,
    ("httptools", "bytes over ascii in a target"): TARGET,
    ("httptools", "target without a slash"): TARGET,
    ("httptools", "chunked in 1.0"): CODING_IN_1_0,
    ("httptools", "101 fields"): LIMIT,
    ("httptools", "head too large"): LIMIT,
    ("httptools", "line too long"): LIMIT,
    ("httptools", "two spaces in the first line"): "llhttp skips spaces; RFC 9112 section 3 has a single one",
    ("httptools", "http 0.9"): "llhttp reads HTTP/0.9; ARCA carries it unread",
    ("httptools", "http 2.0"): VERSION,
    ("httptools", "chunk size of 17 digits"): LIMIT,
}
RESPONSE_DIFFERENCES: Final[dict[tuple[str, str], str]] = {
    ("h11", "gzip until close"): ONLY_CHUNKED,
    ("h11", "length and chunked"): LENGTH_AND_CODING,
    ("h11", "chunked in 1.0"): CODING_IN_1_0,
    ("h11", "bare lf"): BARE_LF,
    ("h11", "folded line"): FOLDED,
    ("h11", "control character in a value"): CONTROL,
    ("h11", "control character in the reason"): CONTROL,
    ("h11", "http 2.0"): VERSION,
    ("httptools", "1.0 until close"): UNTIL_CLOSE,
    ("httptools", "until close"): UNTIL_CLOSE,
    ("httptools", "gzip until close"): UNTIL_CLOSE,
    ("httptools", "head with a length"): HEAD,
    ("httptools", "head with chunked"): HEAD,
    ("httptools", "equal lengths"): EQUAL,
    ("httptools", "chunked not last"): "llhttp reads until close, others read chunks: two readings",
    ("httptools", "chunked in 1.0"): CODING_IN_1_0,
    ("httptools", "control character in the reason"): "llhttp does not look at the reason's bytes",
    ("httptools", "status under 100"): "RFC 9110 section 15 has 100 to 999",
    ("httptools", "http 2.0"): VERSION,
}


def compare(arca: Reading, other: Reading) -> str | None:
    """What differs."""
    if (arca.refused is None) != (other.refused is None):
        who = "ARCA refuses" if arca.refused is not None else "the oracle refuses"
        return f"{who}: {arca.refused or other.refused}"
    if arca.refused is None and arca.messages != other.messages:
        return f"ARCA reads {arca.messages}, the oracle {other.messages}"
    return None


def test_the_tables_name_nothing_that_is_not_in_the_corpus() -> None:
    assert {name for _, name in REQUEST_DIFFERENCES} <= REQUESTS.keys()
    assert {name for _, name in RESPONSE_DIFFERENCES} <= RESPONSES.keys()


@pytest.mark.parametrize("oracle", READERS)
@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_read_as_the_oracle_reads_them(oracle: str, name: str) -> None:
    data = REQUESTS[name]
    difference = compare(arca_requests(data), READERS[oracle][0](data))
    assert (difference is not None) == ((oracle, name) in REQUEST_DIFFERENCES), difference


@pytest.mark.parametrize("oracle", READERS)
@pytest.mark.parametrize("name", RESPONSES)
def test_responses_are_read_as_the_oracle_reads_them(oracle: str, name: str) -> None:
    data, method = RESPONSES[name], b"HEAD" if name.startswith("head ") else b"GET"
    difference = compare(arca_response(data, method), READERS[oracle][1](data, method))
    assert (difference is not None) == ((oracle, name) in RESPONSE_DIFFERENCES), difference
