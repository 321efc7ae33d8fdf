"""First bytes and what they are recognised as; where they become final, and what is held back meanwhile."""

from __future__ import annotations

import io
import socket
from typing import TYPE_CHECKING

import paho.mqtt.client as paho
import pytest
import thriftpy2
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from thrift.protocol.TBinaryProtocol import TBinaryProtocol  # type: ignore[import-untyped]
from thrift.protocol.TCompactProtocol import TCompactProtocol  # type: ignore[import-untyped]
from thrift.protocol.THeaderProtocol import THeaderProtocol  # type: ignore[import-untyped]
from thrift.Thrift import TMessageType  # type: ignore[import-untyped]
from thrift.transport import TTransport  # type: ignore[import-untyped]
from thriftpy2.protocol import TBinaryProtocol as ThriftPyBinary
from thriftpy2.protocol import TCompactProtocol as ThriftPyCompact
from thriftpy2.thrift import TClient
from thriftpy2.transport import TBufferedTransport, TFramedTransport, TMemoryBuffer

from protocols.detect import METHODS, Recognised, recognise, recognise_server
from tests.ports import free_port
from tests.unit.http1_corpus import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Callable

HTTP_1, HTTP_2, TLS, THRIFT, MQTT, TCP, HOLD, PASS = Recognised

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
KIB = 1024

# What is sent, how many of its bytes prove it, what it is, and what is done with the bytes until then.
PROOFS = [
    (b"GET / HTTP/1.1\r\n", 4, HTTP_1, HOLD),
    (b"VERSION-CONTROL / HTTP/1.1\r\n", 16, HTTP_1, HOLD),
    (b"\r\n\r\nPUT / HTTP/1.0\r\n", 8, HTTP_1, HOLD),
    (b"CONNECT a:1 HTTP/1.1\r\n", 8, HTTP_1, HOLD),
    (b"PROPFIND / HTTP/1.1\r\n", 9, HTTP_1, HOLD),
    (b"BREW /pot HTTP/1.1\r\nHost: a\r\n", 20, HTTP_1, HOLD),
    (b"M-SEARCH * HTTP/1.1\r\n", 21, HTTP_1, HOLD),
    (b"PRI / HTTP/1.1\r\n", 16, HTTP_1, HOLD),
    (b"X" * 32 + b" / HTTP/1.0\r\n", 45, HTTP_1, HOLD),
    (PREFACE + b"\x00\x00\x00\x04\x00", 24, HTTP_2, HOLD),
    (b"PRI * HTTP/2.0\r\n\r\nXX", 19, TCP, HOLD),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 6, TLS, PASS),
    (b"\x16\x03\x04\x40\x00\x01\x00", 6, TLS, PASS),
    (b"\x80\x01\x00\x01\x00\x00\x00\x04ping", 8, THRIFT, PASS),
    (b"\x80\x01\x00\x04\x00\x00\x00\x04ping", 8, THRIFT, PASS),
    (b"\x82\x21\x01\x04ping", 2, THRIFT, PASS),
    (b"\x82\x81\x01\x04ping", 2, THRIFT, PASS),
    (b"\x00\x00\x00\x11\x80\x01\x00\x01\x00\x00\x00\x04ping", 12, THRIFT, PASS),
    (b"\x00\xff\xff\xff\x82\x21\x01", 6, THRIFT, PASS),
    (b"\x00\x00\x00\x40\x0f\xff\x00\x00\x00\x00\x00\x01", 6, THRIFT, PASS),
    (b"\x00\x00\x00\x04ping\x01\x00\x00\x00\x07\x00", 9, THRIFT, PASS),
    (b"\x00\x00\x00\x0fa.B_c:d$e-f/ghi", 16, TCP, PASS),
    (b"\x00\x00\x00\x0d\x00\x00\x00\x04ping\x01\x00\x00\x00\x07\x00", 13, THRIFT, PASS),
    (b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", 9, MQTT, PASS),
    (b"\x10\x80\x80\x80\x01\x00\x04MQTT\x05\x02", 12, MQTT, PASS),
    (b"\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x00", 11, MQTT, PASS),
    (b"\x10\x0c\x00\x04MQTT\x84", 9, MQTT, PASS),
    (b"\x10\x0e\x00\x06MQIsdp\x83", 11, MQTT, PASS),  # a bridge of mosquitto's, with 3.1
    (b"\x10\x8c\x00\x00\x04MQTT\x04", 10, MQTT, PASS),  # a length in more bytes than it needs
    (b"\x00\x00\x00\x0d\x80\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00", 12, THRIFT, PASS),
    (b"\x00\x00\x00\x05\x82\x21\x00\x00\x00", 6, THRIFT, PASS),
]

# What can only be opaque, and the byte that says so.
OPAQUE = [
    (b"hello", 1),
    (b"\xff", 1),
    (b" GET / HTTP/1.1\r\n", 1),
    (b"get / HTTP/1.1\r\n", 1),
    (b"SSH-2.0-OpenSSH_9.2p1\r\n", 6),
    (b"GET\t/ HTTP/1.1\r\n", 4),
    (b"GET/ HTTP/1.1\r\n", 4),
    (b"AMQP\x00\x00\x09\x01", 5),
    (b"\r\r", 2),
    (b"\rGET", 2),
    (b"\n", 1),
    (b"\r\n" * 33, 66),
    (b"X" * 33, 33),
    (b"1GET", 1),
    (b"SET key value\r\n", 9),
    (b"PING\r\n", 5),
    (b"INVITE sip:a SIP/2.0\r\n", 14),
    (b"BREW  / HTTP/1.1\r\n", 6),
    (b"BREW /\tx HTTP/1.1\r\n", 7),
    (b"BREW / HTTP/2.0\r\n", 13),
    (b"BREW / HTTP/1.x", 15),
    (b"BREW / HTTP/1.1\n", 16),
    (b"BREW / HTTP/1.1\rX", 17),
    (b"BREW / HTTP/1.10", 16),
    (b"BREW /" + b"a" * 9000, 8193),
    (b"\x16\x02", 2),
    (b"\x16\x03\x05", 3),
    (b"\x16\x03\x01\x00\x00", 5),
    (b"\x16\x03\x01\x40\x01", 5),
    (b"\x16\x03\x01\x02\x00\x02", 6),
    (b"\x80\x02", 2),
    (b"\x80\x01\x01", 3),
    (b"\x80\x01\x00\x00", 4),
    (b"\x80\x01\x00\x05", 4),
    (b"\x80\x01\x00\x02\x00\x00\x00\x04ping", 4),  # a reply, which no client sends
    (b"\x80\x01\x00\x04\x08\x00\x00\x00", 8),  # memcached's binary protocol: SET, a key of four bytes
    (b"\x80\x2e\x01\x03\x01", 2),  # an SSL 2 ClientHello
    (b"\x82\x01", 2),
    (b"\x82\xa1", 2),
    (b"\x82\x22", 2),
    (b"\x82\x61a", 2),  # CBOR: an array of two, the first a text of one letter
    (b"\x01\x00\x00\x00", 1),
    (b"\x00\x00\x00\x00\x80", 5),
    (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", 5),  # PostgreSQL's SSLRequest
    (b"\x00\x00\x00\x2a\x00\x03\x00\x00user\x00", 8),  # PostgreSQL's StartupMessage
    (b"\x00\x00\x00\x1f\x00\x12\x00\x03\x00\x00\x00\x01", 8),  # Kafka, ApiVersions
    (b"\x00\x00\x00\x40\x00\x00\x00\x03\x00\x00\x00\x01", 9),  # Kafka, Produce
    (b"\x00\x00\x00\x2c\x00\x00\x00\x00\x00\x00\x00\x00", 8),  # ZooKeeper
    (b"\x00\x1d\xab\xcd\x01\x00\x00\x01", 5),  # DNS
    (b"\x00\x00\x00\x54\xffSMB", 5),
    (b"\x00\x00\x00\x40\x0f\xfe", 6),
    (b"\x00\x00\x00\x00\x0f", 5),
    (b"\x00\x00\x00\x04ping\x05", 9),
    (b"\x00\x00\x00\x04pi\x00", 7),
    (b"\x00\x00\x01\x00p", 5),
    (b"\x00\x00\x00\x0c\x00\x00\x00\x04ping", 8),  # the name fits, type and sequence id do not
    (b"\x00\x00\x00\x0c\x80\x01\x00\x01", 5),
    (b"\x00\x00\x00\x04\x82\x21", 5),
    (b"\x00\x00\x00\x0d\x0f\xff", 5),
    (b"\x10\x80\x80\x80\x80", 5),
    (b"\x10\x0b\x00\x04MQTT", 2),
    (b"\x10\x80\x00\x00\x04MQTT", 3),
    (b"\x10\x0c\x00\x05", 4),
    (b"\x10\x0c\x00\x04MQTX", 8),
    (b"\x10\x0c\x00\x04MQTT\x06", 9),
    (b"\x10\x0e\x00\x06MQIsdp\x04", 11),
    (b"\x30\x05", 1),
]


@pytest.mark.parametrize(("sent", "proof", "found", "meanwhile"), PROOFS)
def test_a_protocol_is_proven_by_its_fewest_bytes(
    sent: bytes, proof: int, found: Recognised, meanwhile: Recognised
) -> None:
    assert recognise(sent) is found
    assert recognise(sent[:proof]) is found
    assert [recognise(sent[:n]) for n in range(1, proof)] == [meanwhile] * (proof - 1)


@pytest.mark.parametrize(("sent", "proof"), OPAQUE)
def test_bytes_that_can_only_be_opaque_are_not_held(sent: bytes, proof: int) -> None:
    assert recognise(sent[:proof]) is TCP
    assert recognise(sent) is TCP
    if proof > 1:
        assert recognise(sent[: proof - 1]) in (HOLD, PASS)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_registered_method_and_a_space_are_enough(method: bytes) -> None:
    assert recognise(method + b" ") is HTTP_1
    assert recognise(method) is HOLD


def test_nothing_is_undecided() -> None:
    assert recognise(b"") is HOLD


def test_the_longest_lines_that_can_still_become_http_are_held() -> None:
    line = b"BREW /" + b"a" * (8 * KIB - 16) + b" HTTP/1.1\r\n"
    assert len(line) == 8 * KIB + 1
    assert recognise(line[:-1]) is HOLD
    assert recognise(line) is HTTP_1
    assert recognise(b"\r\n" * 32 + line) is HTTP_1


@pytest.mark.parametrize(
    "name", [n for n in REQUESTS if not n.startswith(("garbage", "tab", "method in lower"))]
)
def test_whatever_begins_like_http_goes_to_its_engine(name: str) -> None:
    # Also what is hostile: the engine is strict, the detection generous.
    assert recognise(REQUESTS[name]) is HTTP_1


@pytest.mark.parametrize(
    "greeting",
    [
        b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
        b"\x00\x00\x18\x04\x00\x00\x00\x00\x00\x00\x04\x00\x40\x00\x00\x00\x05\x00\x40",  # grpc's, cut
        b"\x00\x3f\xfc\x04\x00\x00\x00\x00\x00",
    ],
)
def test_a_server_that_begins_with_settings_speaks_http_2(greeting: bytes) -> None:
    assert recognise_server(greeting) is HTTP_2
    assert [recognise_server(greeting[:n]) for n in range(9)] == [TCP] * 9


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"\x00\x00\x05\x04\x00\x00\x00\x00\x00",  # no setting is 5 bytes
        b"\x00\x40\x02\x04\x00\x00\x00\x00\x00",  # above 16,384
        b"\x00\x00\x00\x04\x01\x00\x00\x00\x00",  # ACK of what nobody sent yet
        b"\x00\x00\x00\x04\x00\x00\x00\x00\x01",  # on a stream
        b"\x00\x00\x06\x04\x00\x80\x00\x00\x00",  # the reserved bit, which is never sent set
        b"\x00\x00\x08\x06\x00\x00\x00\x00\x00",  # PING
        b"\x4a\x00\x00\x00\x0a8.0.36\x00",  # MySQL
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"220 mail.example ESMTP\r\n",
        b"HTTP/1.1 408 Request Timeout\r\n",
    ],
)
def test_any_other_server_that_speaks_first_is_opaque(greeting: bytes) -> None:
    assert recognise_server(greeting) is TCP


def thriftpy2_call(protocol: type, transport: type) -> bytes:
    """What thriftpy2 sends for ``ping()``."""
    service = thriftpy2.load_fp(io.StringIO("service Calculator { void ping() }"), "calculator_thrift")
    memory = TMemoryBuffer()  # type: ignore[no-untyped-call]
    TClient(service.Calculator, protocol(transport(memory)))._send("ping")
    return bytes(memory.getvalue())  # type: ignore[no-untyped-call]


def apache_call(send: Callable[[object], TBinaryProtocol], kind: int) -> bytes:
    """What Apache's library sends for ``Calculator:ping`` with no argument."""
    memory = TTransport.TMemoryBuffer()
    protocol = send(memory)
    protocol.writeMessageBegin("Calculator:ping", kind, 1)
    protocol.writeStructBegin("ping_args")
    protocol.writeFieldStop()
    protocol.writeStructEnd()
    protocol.writeMessageEnd()
    protocol.trans.flush()
    return bytes(memory.getvalue())


APACHE: dict[str, Callable[[object], TBinaryProtocol]] = {
    "buffered binary": TBinaryProtocol,
    "buffered binary old": lambda memory: TBinaryProtocol(memory, strictWrite=False),
    "buffered compact": TCompactProtocol,
    "framed binary": lambda memory: TBinaryProtocol(TTransport.TFramedTransport(memory)),
    "framed binary old": lambda memory: TBinaryProtocol(
        TTransport.TFramedTransport(memory), strictWrite=False
    ),
    "framed compact": lambda memory: TCompactProtocol(TTransport.TFramedTransport(memory)),
    "header": lambda memory: THeaderProtocol(memory, {}),
}


@pytest.mark.parametrize("kind", [TMessageType.CALL, TMessageType.ONEWAY])
@pytest.mark.parametrize("name", APACHE)
def test_what_apaches_thrift_sends_is_thrift(name: str, kind: int) -> None:
    proven_and_passed(apache_call(APACHE[name], kind), THRIFT)


@pytest.mark.parametrize("transport", [TBufferedTransport, TFramedTransport])
@pytest.mark.parametrize("protocol", [ThriftPyBinary, ThriftPyCompact])
def test_what_thriftpy2_sends_is_thrift(protocol: type, transport: type) -> None:
    proven_and_passed(thriftpy2_call(protocol, transport), THRIFT)


@pytest.mark.parametrize("version", [paho.MQTTv31, paho.MQTTv311, paho.MQTTv5])
@pytest.mark.parametrize("will", [b"", b"x" * 20_000])
def test_what_paho_sends_is_mqtt(version: int, will: bytes) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as listening:
        client = paho.Client(CallbackAPIVersion.VERSION2, "door", protocol=MQTTProtocolVersion(version))
        client.will_set("gone", will)
        client.connect(*listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            while client.want_write():
                client.loop_write()
            sent = accepted.recv(1000)
        client.disconnect()
    proven_and_passed(sent, MQTT)


def proven_and_passed(sent: bytes, found: Recognised) -> None:
    """However few bytes came, they go on until they prove it."""
    answers = [recognise(sent[:n]) for n in range(1, len(sent) + 1)]
    assert answers[-1] is found
    assert set(answers) == {PASS, found}


SEEDS = [sent for sent, *_ in PROOFS] + [sent for sent, _ in OPAQUE if len(sent) < 100]
alphabet = st.sampled_from(
    [b"\r", b"\n", b" ", b"\x00", b"\x01", b"\x80", b"\x82", b"A", b"a", b"1", b"/", b"\x04"]
)


@st.composite
def first_bytes(draw: st.DrawFn) -> bytes:
    seed = draw(st.sampled_from(SEEDS) | st.binary(max_size=30))
    at = draw(st.integers(0, len(seed)))
    return seed[:at] + b"".join(draw(st.lists(alphabet, max_size=4))) + seed[at + draw(st.integers(0, 2)) :]


@settings(max_examples=2000, deadline=None, derandomize=True, database=None)
@given(first_bytes(), st.binary(max_size=12))
def test_once_decided_whatever_follows_changes_nothing(sent: bytes, more: bytes) -> None:
    answers = [recognise((sent + more)[:n]) for n in range(1, len(sent + more) + 1)]
    undecided = [answer for answer in answers if answer in (HOLD, PASS)]
    decided = answers[len(undecided) :]
    assert answers == undecided + decided
    assert len(set(undecided)) <= 1  # bytes that went on are never called back
    assert len(set(decided)) <= 1


@pytest.mark.parametrize("fill", [b"A", b"\x00", b"\xff", b"\r\n", b"A "])
def test_nothing_is_undecided_for_long(fill: bytes) -> None:
    for first in range(256):
        assert recognise(bytes([first]) + fill * 9000) not in (HOLD, PASS)
