"""What a worker tells of an exchange: the line of the exchange log, the newest exchanges, the counters."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.exchange import PROTOCOL_NAMES, End, Exchange, MqttPacket, Protocol, Rpc, ThriftCall
from proxy.metrics import METHODS_MAX, Cells
from proxy.telemetry import Connection, Telemetry

# The keys of contract.md, in its order: scripts outside the project read them.
KEYS = [
    "time", "protocol", "direction", "client", "server", "connection", "method", "target", "authority",
    "status", "code", "request_id", "trace_id", "span_id", "parent_id", "request_bytes", "response_bytes",
    "connect_ms", "ttfb_ms", "duration_ms", "tls", "tcp", "verdict",
]  # fmt: skip
VERDICT_KEYS = ["domain", "cause", "origin", "phase", "confidence", "explain", "check", "evidence"]
CONNECTION = Connection("c-1", "10.0.0.1:40000", "[fd00::2]:80", True, 0.0)


def an_exchange(**fields: object) -> Exchange:
    exchange = Exchange(Protocol.HTTP_1_1, 100.0)
    defaults: dict[str, object] = {
        "method": b"GET", "target": b"/", "authority": b"example", "status": 200, "request_id": b"r",
        "trace_id": b"0" * 31 + b"1", "span_id": b"0" * 15 + b"2", "request_bytes": 42,
        "response_bytes": 1234567, "first_byte": 100.0015, "ended": 100.25,
        "request_complete": True, "response_complete": True,
    }  # fmt: skip
    for name, value in (defaults | fields).items():
        setattr(exchange, name, value)
    return exchange


def a_call(**fields: object) -> Exchange:
    """A gRPC call that came to its end; ``rpc_*`` are the fields of its Rpc."""
    rpc = Rpc()
    rpc.status, rpc.message, rpc.timeout, rpc.first_message = 0, b"", 1.5, 100.2
    rpc.request_messages, rpc.response_messages = 1, 2
    for name in [name for name in fields if name.startswith("rpc_")]:
        setattr(rpc, name.removeprefix("rpc_"), fields.pop(name))
    return an_exchange(**{
        "protocol": Protocol.GRPC, "method": b"a.Service/Do", "target": b"/a.Service/Do", "stream": 7,
        "code": "OK", "rpc": rpc,
    } | fields)  # fmt: skip


def a_thrift_call(**fields: object) -> Exchange:
    """``thrift_*`` are the fields of its details."""
    call = ThriftCall()
    call.transport, call.encoding, call.sequence = "framed", "compact", 7
    for name in [name for name in fields if name.startswith("thrift_")]:
        setattr(call, name.removeprefix("thrift_"), fields.pop(name))
    return an_exchange(**{
        "protocol": Protocol.THRIFT, "method": b"Calculator:add", "target": None, "authority": None,
        "status": 0, "thrift": call,
    } | fields)  # fmt: skip


def a_packet(method: bytes, **fields: object) -> Exchange:
    """``mqtt_*`` are the fields of its details."""
    packet = MqttPacket()
    packet.version, packet.client_id = 5, b"kitchen"
    for name in [name for name in fields if name.startswith("mqtt_")]:
        setattr(packet, name.removeprefix("mqtt_"), fields.pop(name))
    return an_exchange(**{
        "protocol": Protocol.MQTT, "method": method, "target": None, "authority": None, "status": 0,
        "mqtt": packet,
    } | fields)  # fmt: skip


def line_of(exchange: Exchange) -> dict[str, object]:
    blocks: list[bytes] = []
    telemetry = Telemetry(Cells(), blocks.append)
    telemetry.record(exchange, CONNECTION, None)
    telemetry.flush()
    (line,) = b"".join(blocks).splitlines()
    read: dict[str, object] = json.loads(line)
    return read


def test_the_line_has_the_keys_of_the_contract_in_their_order() -> None:
    line = line_of(an_exchange())
    assert list(line) == KEYS
    verdict = line["verdict"]
    assert isinstance(verdict, dict)
    assert list(verdict) == VERDICT_KEYS


def test_a_grpc_call_says_more_before_the_facts_of_its_connection() -> None:
    line = line_of(a_call())
    at = KEYS.index("tls")
    assert list(line) == [*KEYS[:at], "stream", "grpc", *KEYS[at:]]
    assert (line["protocol"], line["method"], line["target"]) == ("grpc", "a.Service/Do", "/a.Service/Do")
    assert (line["status"], line["code"], line["stream"]) == (200, "OK", 7)
    assert line["grpc"] == {
        "message": "", "timeout_ms": 1500.0, "request_messages": 1, "response_messages": 2,
        "compressed": False, "first_message_ms": 200.0, "web": False,
    }  # fmt: skip
    assert list(line["grpc"]) == [
        "message", "timeout_ms", "request_messages", "response_messages", "compressed", "first_message_ms",
        "web",
    ]  # fmt: skip


def test_what_a_grpc_call_did_not_say_is_null() -> None:
    line = line_of(
        a_call(rpc_timeout=-1.0, rpc_first_message=-1.0, rpc_message=None, rpc_web=True, rpc_compressed=True)
    )
    assert isinstance(line["grpc"], dict)
    assert [line["grpc"][key] for key in ("message", "timeout_ms", "first_message_ms")] == [None] * 3
    assert (line["grpc"]["web"], line["grpc"]["compressed"]) == (True, True)


def test_a_thrift_call_says_more_before_the_facts_of_its_connection() -> None:
    line = line_of(a_thrift_call())
    at = KEYS.index("tls")
    assert list(line) == [*KEYS[:at], "thrift", *KEYS[at:]]
    assert (line["protocol"], line["method"], line["code"]) == ("thrift", "Calculator:add", None)
    assert list(line["thrift"].items()) == [  # type: ignore[attr-defined]
        ("transport", "framed"), ("encoding", "compact"), ("oneway", False), ("sequence", 7),
        ("exception_type", None), ("exception_field", None), ("message", None),
    ]  # fmt: skip


@pytest.mark.parametrize("sequence", [0, -1, -(2**31), 2**31 - 1])
def test_a_thrift_exception_is_told_with_its_type_and_words(sequence: int) -> None:
    line = line_of(
        a_thrift_call(
            code="UNKNOWN", failed=True, thrift_exception_type=0, thrift_message=b"no\x1b",
            thrift_oneway=True, thrift_sequence=sequence,
        )
    )  # fmt: skip
    assert line["code"] == "UNKNOWN"
    said = line["thrift"]
    assert isinstance(said, dict)
    assert (said["exception_type"], said["exception_field"]) == (0, None)
    assert (said["message"], said["sequence"], said["oneway"]) == ("no\x1b", sequence, True)
    declared = line_of(a_thrift_call(code="exception_2", failed=True, thrift_exception_field=2))["thrift"]
    assert isinstance(declared, dict)
    assert (declared["exception_type"], declared["exception_field"]) == (None, 2)


@pytest.mark.parametrize("number", [-2, -77, -(2**31)])
def test_the_number_of_a_thrift_exception_may_be_negative(number: int) -> None:
    exchange = a_thrift_call(code=str(number), failed=True, thrift_exception_type=number)
    said = line_of(exchange)["thrift"]
    assert isinstance(said, dict)
    assert (said["exception_type"], said["exception_field"]) == (number, None)
    assert [labels[1] for labels in counted_codes([exchange])] == ["_other"]


MQTT_LINES: list[tuple[Exchange, dict[str, object]]] = [
    (
        a_packet(b"PUBLISH", by_upstream=True, mqtt_client_id=None),
        {"client_id": None, "sender": "server", "qos": 0, "retain": False, "duplicate": False},
    ),
    (
        a_packet(
            b"PUBLISH", mqtt_packet_id=9, mqtt_qos=2, mqtt_retain=True, mqtt_duplicate=True, mqtt_reason=0x97,
            mqtt_reason_string=b"full",
        ),
        {"packet_id": 9, "qos": 2, "retain": True, "duplicate": True, "reason": 151, "reason_string": "full"},
    ),
    (
        a_packet(b"CONNECT", mqtt_keep_alive=60, mqtt_clean_start=True),
        {"keep_alive_seconds": 60, "clean_start": True, "session_present": None, "will_topic": None},
    ),
    (
        a_packet(
            b"CONNECT", mqtt_keep_alive=0, mqtt_session_present=1, mqtt_will_topic=b"gone", mqtt_reason=0
        ),
        {
            "reason": 0, "keep_alive_seconds": 0, "clean_start": False, "session_present": True,
            "will_topic": "gone",
        },
    ),
    (
        a_packet(b"SUBSCRIBE", mqtt_packet_id=1, mqtt_filters=3, mqtt_filters_refused=1, mqtt_reason=128),
        {"packet_id": 1, "reason": 128, "filters": 3, "filters_refused": 1},
    ),
    (
        a_packet(b"PINGREQ", mqtt_keep_alive=60, mqtt_silence=90.25, end=End.KEEPALIVE_MISSED),
        {"keep_alive_seconds": 60, "silence_ms": 90250.0},
    ),
    (a_packet(b"DISCONNECT", mqtt_will_topic=b"gone"), {"will_topic": "gone"}),
]  # fmt: skip


@pytest.mark.parametrize(("packet", "says"), MQTT_LINES)
def test_a_packet_of_mqtt_says_what_its_type_has(packet: Exchange, says: dict[str, object]) -> None:
    line = line_of(packet)
    at = KEYS.index("tls")
    assert list(line) == [*KEYS[:at], "mqtt", *KEYS[at:]]
    common: dict[str, object] = {"version": 5, "client_id": "kitchen", "sender": "client"}
    assert list(line["mqtt"].items()) == list((common | says).items())  # type: ignore[attr-defined]


NO_IDS: dict[str, object] = {"request_id": None, "trace_id": None, "span_id": None}
# What stands in a line between "connection" and "tls", byte for byte.
BARE = b'"request_id":null,"trace_id":null,"span_id":null,"parent_id":null,'
TRACED = (
    b'"request_id":"r","trace_id":"00000000000000000000000000000001","span_id":"0000000000000002",'
    b'"parent_id":null,'
)
COUNTED = b'"request_bytes":42,"response_bytes":1234567,'
TIMED = b'"connect_ms":null,"ttfb_ms":1.500,"duration_ms":250.000'
WHOLE_LINES: list[tuple[Exchange, bytes]] = [
    (
        an_exchange(),
        b'"protocol":"http/1.1","method":"GET","target":"/","authority":"example","status":200,"code":null,'
        + TRACED + COUNTED + TIMED,
    ),
    (
        an_exchange(protocol=Protocol.HTTP_2, stream=3, parent_id=b"p", connect=0.0005, authority=None),
        b'"protocol":"http/2","method":"GET","target":"/","authority":null,"status":200,"code":null,'
        + TRACED.replace(b"null", b'"p"') + COUNTED + TIMED.replace(b"null", b"0.500") + b',"stream":3',
    ),
    (
        a_call(),
        b'"protocol":"grpc","method":"a.Service/Do","target":"/a.Service/Do","authority":"example",'
        b'"status":200,"code":"OK",' + TRACED + COUNTED + TIMED
        + b',"stream":7,"grpc":{"message":"","timeout_ms":1500.000,"request_messages":1,'
        b'"response_messages":2,"compressed":false,"first_message_ms":200.000,"web":false}',
    ),
    (
        a_thrift_call(**NO_IDS),
        b'"protocol":"thrift","method":"Calculator:add","target":null,"authority":null,"status":null,'
        b'"code":null,' + BARE + COUNTED + TIMED
        + b',"thrift":{"transport":"framed","encoding":"compact","oneway":false,"sequence":7,'
        b'"exception_type":null,"exception_field":null,"message":null}',
    ),
    (
        a_packet(b"PUBLISH", target=b"a/b", first_byte=-1.0, **NO_IDS),
        b'"protocol":"mqtt","method":"PUBLISH","target":"a/b","authority":null,"status":null,"code":null,'
        + BARE + COUNTED + b'"connect_ms":null,"ttfb_ms":null,"duration_ms":250.000'
        b',"mqtt":{"version":5,"client_id":"kitchen","sender":"client","qos":0,"retain":false,'
        b'"duplicate":false}',
    ),
    (
        a_packet(
            b"CONNECT", code="Success", mqtt_reason=0, mqtt_keep_alive=60, mqtt_session_present=0, **NO_IDS
        ),
        b'"protocol":"mqtt","method":"CONNECT","target":null,"authority":null,"status":null,'
        b'"code":"Success",' + BARE + COUNTED + TIMED
        + b',"mqtt":{"version":5,"client_id":"kitchen","sender":"client","reason":0,"keep_alive_seconds":60,'
        b'"clean_start":false,"session_present":false,"will_topic":null}',
    ),
    (
        an_exchange(protocol=Protocol.TCP, method=None, target=None, authority=None, status=0, **NO_IDS),
        b'"protocol":"tcp","method":null,"target":null,"authority":null,"status":null,"code":null,'
        + BARE + COUNTED + TIMED,
    ),
]  # fmt: skip
ENDS = b'"direction":"inbound","client":"10.0.0.1:40000","server":"[fd00::2]:80","connection":"c-1",'
HEALTHY = (
    b'"verdict":{"domain":"ok","cause":null,"origin":null,"phase":null,"confidence":1.0,"explain":null,'
    b'"check":null,"evidence":[]}}\n'
)


@pytest.mark.parametrize(("exchange", "says"), WHOLE_LINES)
@pytest.mark.parametrize(
    ("tcp", "facts"), [(None, b"null"), ({"downstream": {"rtt_ms": 1.5}}, b'{"downstream":{"rtt_ms":1.5}}')]
)
def test_a_line_is_the_same_to_the_byte_for_every_protocol(
    exchange: Exchange, says: bytes, tcp: dict[str, object] | None, facts: bytes
) -> None:
    blocks: list[bytes] = []
    telemetry = Telemetry(Cells(), blocks.append)
    telemetry.record(exchange, CONNECTION, tcp)
    telemetry.record_running(exchange, CONNECTION, tcp, 100.25)
    telemetry.flush()
    protocol, comma, rest = says.partition(b",")
    said = protocol + comma + ENDS + rest
    ended, running = b"".join(blocks).splitlines(keepends=True)
    begin = len(b'{"time":"2026-11-22T16:08:17.195731Z"')
    assert re.fullmatch(rb'\{"time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"', ended[:begin])
    assert ended[begin:] == b"," + said + b',"tls":null,"tcp":' + facts + b"," + HEALTHY
    assert running[begin:] == (
        b"," + said + b',"in_flight":true,"tls":null,"tcp":' + facts + b',"verdict":null}\n'
    )
    (newest,) = telemetry.newest(1)
    assert newest[begin:] == ended[begin:]


def test_the_longest_numbers_and_words_leave_a_whole_line() -> None:
    """Room is made for all that has a fixed length at once: here all of it is as long as it can be."""
    longest: dict[str, object] = {
        "status": 2**31 - 1, "stream": 2**32 - 1, "request_bytes": 2**64 - 1, "response_bytes": 2**64 - 1,
        "connect": 1e13, "first_byte": 1e13, "ended": 1e13, "target": b"\x00" * 70_000,
    }  # fmt: skip
    numbers = ("version", "packet_id", "qos", "reason", "keep_alive", "filters", "filters_refused")
    packet = a_packet(
        b"PUBLISH", **longest, **{f"mqtt_{name}": 2**31 - 1 for name in numbers}, mqtt_silence=1e13
    )
    call = a_call(
        **longest, rpc_timeout=1e13, rpc_first_message=1e13, rpc_request_messages=2**64 - 1,
        rpc_response_messages=2**64 - 1,
    )  # fmt: skip
    for exchange in (packet, call):
        line = line_of(exchange)
        assert (line["request_bytes"], line["target"]) == (2**64 - 1, "\x00" * 70_000)
        assert line["duration_ms"] == pytest.approx(1e16)


@pytest.mark.parametrize("special", [0x00, 0x1F, 0x22, 0x5C, 0x7F, 0x80, 0xFF])
def test_a_byte_that_needs_an_escape_is_found_wherever_it_stands(special: int) -> None:
    for length in range(1, 26):
        for at in range(length):
            target = bytearray(b" ~!#[]@A}/09azAZ !~|^_`{"[:length].ljust(length, b"x"))
            target[at] = special
            telemetry = Telemetry(Cells(), None)
            telemetry.record(an_exchange(target=bytes(target)), CONNECTION, None)
            (line,) = telemetry.newest(1)
            assert json.loads(line)["target"] == bytes(target).decode("latin-1")
            assert all(0x20 <= byte < 0x7F for byte in line.rstrip(b"\n"))


@pytest.mark.parametrize("count", [10**n + less for n in range(20) for less in (-1, 0)])
def test_byte_counts_are_exact_where_a_digit_more_begins(count: int) -> None:
    assert line_of(an_exchange(request_bytes=count))["request_bytes"] == count


def test_http_2_without_grpc_has_its_stream_and_no_more() -> None:
    line = line_of(an_exchange(protocol=Protocol.HTTP_2, stream=2**31 - 1))
    at = KEYS.index("tls")
    assert list(line) == [*KEYS[:at], "stream", *KEYS[at:]]
    assert line["stream"] == 2**31 - 1


@pytest.mark.parametrize(
    "call", [an_exchange(protocol=Protocol.HTTP_2, stream=3, ended=-1.0), a_call(ended=-1.0)]
)
def test_a_running_exchange_is_a_line_without_a_verdict_that_is_counted_nowhere(call: Exchange) -> None:
    blocks: list[bytes] = []
    cells = Cells()
    telemetry = Telemetry(cells, blocks.append)
    telemetry.record_running(call, CONNECTION, None, 162.5)
    telemetry.flush()
    line = json.loads(b"".join(blocks))
    at = KEYS.index("tls")
    expected = [*KEYS[:at], "stream", "grpc", "in_flight", *KEYS[at:]]
    assert list(line) == [key for key in expected if key != "grpc" or call.rpc is not None]
    assert (line["in_flight"], line["verdict"], line["duration_ms"]) == (True, None, 62500.0)
    assert (line["request_bytes"], line["response_bytes"]) == (42, 1234567)
    assert cells.changes() == []
    assert telemetry.newest(10) == []


def test_a_running_exchange_costs_nothing_where_nobody_reads() -> None:
    telemetry = Telemetry(Cells(), None)
    telemetry.record_running(a_call(), CONNECTION, None, 162.5)
    assert telemetry.newest(10) == []


def test_a_healthy_exchange() -> None:
    line = line_of(an_exchange())
    assert (line["protocol"], line["direction"]) == ("http/1.1", "inbound")
    assert (line["client"], line["server"]) == ("10.0.0.1:40000", "[fd00::2]:80")
    assert (line["request_bytes"], line["response_bytes"]) == (42, 1234567)
    assert (line["connect_ms"], line["ttfb_ms"], line["duration_ms"]) == (None, 1.5, 250.0)
    assert line["parent_id"] is None
    assert line["verdict"] == {
        "domain": "ok", "cause": None, "origin": None, "phase": None, "confidence": 1.0, "explain": None,
        "check": None, "evidence": [],
    }  # fmt: skip


def test_a_failed_exchange_carries_its_verdict_and_evidence() -> None:
    verdict = line_of(an_exchange(status=503))["verdict"]
    assert isinstance(verdict, dict)
    assert (verdict["domain"], verdict["cause"], verdict["origin"]) == (
        "application",
        "status_5xx",
        "upstream",
    )
    assert verdict["evidence"] == [{"source": "wire", "name": "status", "value": 503, "at_ms": 250.0}]


def test_the_time_is_the_start_in_rfc_3339_with_microseconds() -> None:
    before = time.time()
    text = line_of(an_exchange(started=time.monotonic()))["time"]
    assert isinstance(text, str)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
    seconds = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(before))
    later = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(before + 1))
    assert text.startswith((seconds, later))


def test_an_opaque_connection_has_no_method_and_no_status() -> None:
    line = line_of(an_exchange(protocol=Protocol.TCP, method=None, target=None, authority=None, status=0))
    assert (line["protocol"], line["method"], line["target"], line["status"]) == ("tcp", None, None, None)


@given(st.binary(max_size=200))
def test_any_bytes_of_the_wire_make_one_line_of_json(target: bytes) -> None:
    """Nothing that a client sends ends a line early or breaks the JSON; UTF-8 stays readable."""
    written = line_of(an_exchange(target=target, authority=target, request_id=target))["target"]
    try:
        expected = target.decode()
    except UnicodeDecodeError as error:
        cut_off = error.reason == "unexpected end of data"
        expected = target.decode("utf-8", "replace") if cut_off else target.decode("latin-1")
    assert written == expected


@pytest.mark.parametrize(
    ("method", "label"),
    [(b"get", "get"), ("größe".encode(), "größe"), (b"\x1b[2J", "_other"), ("\x9b2J".encode(), "_other")],
)
def test_a_method_that_a_terminal_would_obey_is_no_label(method: bytes, label: str) -> None:
    cells = Cells()
    Telemetry(cells, None).record(a_thrift_call(method=method), CONNECTION, None)
    assert cells.counter("arca_requests_total", "thrift", "inbound", label, "", "ok", "").change() == 1


@pytest.mark.parametrize(
    "target", [b"/\x7f\x1b[2J", "/\x9b2J".encode(), "/\u202etxt\x7f".encode(), b"/\xff\x9b"]
)
def test_nothing_that_a_terminal_obeys_is_written_as_it_came(target: bytes) -> None:
    telemetry = Telemetry(Cells(), None)
    telemetry.record(an_exchange(target=target), CONNECTION, None)
    (line,) = telemetry.newest(1)
    assert all(0x20 <= byte < 0x7F for byte in line.rstrip(b"\n"))


@pytest.mark.parametrize("text", ["n\u00e4rrisch \u202etxt\x1b[2J\x7f \u009b\nend", "del\x7f"])
def test_a_grpc_message_reaches_no_terminal_as_it_came_and_stays_readable(text: str) -> None:
    message = text.encode()
    telemetry = Telemetry(Cells(), None)
    telemetry.record(a_call(rpc_status=2, code="UNKNOWN", rpc_message=message), CONNECTION, None)
    (line,) = telemetry.newest(1)
    assert all(0x20 <= byte < 0x7F for byte in line.rstrip(b"\n"))
    read = json.loads(line)
    assert read["grpc"]["message"] == message.decode()
    assert text[:3] in read["verdict"]["explain"]


@given(st.integers(0, 2**64 - 1))
def test_byte_counts_are_exact(count: int) -> None:
    assert line_of(an_exchange(request_bytes=count))["request_bytes"] == count


@given(st.floats(0, 1e6))
def test_durations_keep_their_microseconds(seconds: float) -> None:
    duration = line_of(an_exchange(started=0.0, first_byte=0.0, ended=seconds))["duration_ms"]
    assert isinstance(duration, float)
    assert abs(duration - seconds * 1000) <= 0.0006


def test_lines_are_handed_over_in_blocks_of_whole_lines() -> None:
    blocks: list[bytes] = []
    telemetry = Telemetry(Cells(), blocks.append)
    for _ in range(300):
        telemetry.record(an_exchange(), CONNECTION, None)
    assert blocks, "64 KiB were full before"
    telemetry.flush()
    assert all(block.endswith(b"\n") for block in blocks)
    assert sum(block.count(b"\n") for block in blocks) == 300


class Reader:
    """A log whose reader can stop reading: what it is handed then would be lost."""

    def __init__(self) -> None:
        self.full = False
        self.asked = 0
        self.lines: list[bytes] = []

    def take(self, block: bytes) -> None:
        assert not self.full
        self.lines += block.splitlines()

    def is_full(self) -> bool:
        self.asked += 1
        return self.full


def dropped(cells: Cells) -> float:
    return cells.counter("arca_dropped_records_total", "exchanges").value


def test_what_a_full_log_would_lose_is_counted_and_still_remembered() -> None:
    reader, cells = Reader(), Cells()
    telemetry = Telemetry(cells, reader.take, reader.is_full)
    reader.full = True
    for number in range(1000):
        telemetry.record(an_exchange(target=b"/%d" % number), CONNECTION, None)
    telemetry.record_running(an_exchange(), CONNECTION, None, 101.0)
    telemetry.flush()
    assert (reader.lines, dropped(cells)) == ([], 1001)
    assert reader.asked < 20, "the log was asked for every line"
    assert json.loads(telemetry.newest(1)[0])["target"] == "/999"
    assert cells.counter("arca_requests_total", "http/1.1", "inbound", "GET", "200", "ok", "").value == 1000


def test_lines_go_on_when_the_log_has_room_again() -> None:
    reader, cells = Reader(), Cells()
    telemetry = Telemetry(cells, reader.take, reader.is_full)
    reader.full = True
    telemetry.record(an_exchange(), CONNECTION, None)
    telemetry.flush()
    reader.full = False
    telemetry.record(an_exchange(target=b"/again"), CONNECTION, None)
    telemetry.flush()
    assert [json.loads(line)["target"] for line in reader.lines] == ["/again"]
    assert dropped(cells) == 1


def test_under_load_a_log_with_room_again_is_found_before_the_next_flush() -> None:
    reader, cells = Reader(), Cells()
    telemetry = Telemetry(cells, reader.take, reader.is_full)
    reader.full = True
    telemetry.record(an_exchange(), CONNECTION, None)
    reader.full = False
    for _ in range(1000):
        telemetry.record(an_exchange(), CONNECTION, None)
    lost = dropped(cells)
    assert 1 <= lost <= 200
    telemetry.flush()
    assert len(reader.lines) + lost == 1001


def test_lines_that_wait_while_the_log_fills_are_counted() -> None:
    reader, cells = Reader(), Cells()
    telemetry = Telemetry(cells, reader.take, reader.is_full)
    for _ in range(5):
        telemetry.record(an_exchange(), CONNECTION, None)
    reader.full = True
    telemetry.flush()
    assert (reader.lines, dropped(cells)) == ([], 5)
    reader.full = False
    telemetry.flush()
    assert (reader.lines, dropped(cells)) == ([], 5)


@given(st.lists(st.sampled_from(["record", "fill", "drain", "flush"]), max_size=60), st.integers(1, 150))
def test_every_line_is_handed_over_or_counted_as_dropped(steps: list[str], at_once: int) -> None:
    reader, cells = Reader(), Cells()
    telemetry = Telemetry(cells, reader.take, reader.is_full)
    recorded = 0
    for step in steps:
        if step == "record":
            for _ in range(at_once):
                telemetry.record(an_exchange(), CONNECTION, None)
            recorded += at_once
        elif step == "flush":
            telemetry.flush()
        else:
            reader.full = step == "fill"
    telemetry.flush()
    assert len(reader.lines) + dropped(cells) == recorded


def test_the_newest_exchanges_are_remembered_up_to_a_bound_without_a_log() -> None:
    telemetry = Telemetry(Cells(), None)
    for number in range(1000):
        telemetry.record(an_exchange(target=b"/%d" % number), CONNECTION, None)
    targets = [json.loads(line)["target"] for line in telemetry.newest(3)]
    assert targets == ["/997", "/998", "/999"]
    assert len(telemetry.newest(1000)) == 512
    assert telemetry.newest(0) == []


def test_every_exchange_is_counted_by_what_became_of_it() -> None:
    cells = Cells()
    telemetry = Telemetry(cells, None)
    for _ in range(3):
        telemetry.record(an_exchange(), CONNECTION, None)
    telemetry.record(an_exchange(end=End.UPSTREAM_FIN, status=0, first_byte=-1.0), CONNECTION, None)
    counted = cells.counter
    assert counted("arca_requests_total", "http/1.1", "inbound", "GET", "200", "ok", "").value == 3
    early = ("http/1.1", "inbound", "GET", "", "application", "closed_early")
    assert counted("arca_requests_total", *early).value == 1
    assert counted("arca_request_bytes_total", "http/1.1", "inbound").value == 4 * 42


def test_healthy_exchanges_of_several_kinds_in_turn_are_each_counted_as_theirs() -> None:
    kinds = [
        an_exchange(),
        an_exchange(method=b"PUT"),
        an_exchange(method=None),
        an_exchange(status=204),
        a_packet(b"PUBLISH"),
        a_packet(b"PUBLISH", code="Success", mqtt_reason=0),
        a_thrift_call(),
        an_exchange(status=404),
    ]
    turns = [kinds[(n * n + n // 3) % len(kinds)] for n in range(200)]
    cells = Cells()
    telemetry = Telemetry(cells, None)
    outbound = Connection("c-2", "10.0.0.1:40000", "10.0.0.2:80", False, 0.0)
    expected: dict[tuple[str, str, str, str], int] = {}
    for n, exchange in enumerate(turns):
        connection, direction = (CONNECTION, "inbound") if n % 3 else (outbound, "outbound")
        telemetry.record(exchange, connection, None)
        method = "" if exchange.method is None else exchange.method.decode()
        code = str(exchange.status) if exchange.status else exchange.code or ""
        key = (PROTOCOL_NAMES[exchange.protocol], direction, method, code)
        expected[key] = expected.get(key, 0) + 1
    assert {labels[:4]: value for number, labels, value in cells.changes() if number == 0} == expected


def test_grpc_calls_are_counted_by_full_method_and_the_name_of_their_status() -> None:
    cells = Cells()
    telemetry = Telemetry(cells, None)
    for status, code in ((0, "OK"), (14, "UNAVAILABLE"), (5, "NOT_FOUND"), (14, "UNAVAILABLE")):
        telemetry.record(a_call(rpc_status=status, code=code), CONNECTION, None)
    telemetry.record(a_call(end=End.DOWNSTREAM_RST_STREAM, rpc_status=-1, code=None), CONNECTION, None)
    found = {labels[2:]: value for number, labels, value in cells.changes() if number == 0}
    assert found == {
        ("a.Service/Do", "OK", "ok", ""): 1,
        ("a.Service/Do", "UNAVAILABLE", "application", "grpc_status"): 2,
        ("a.Service/Do", "NOT_FOUND", "application", "grpc_status"): 1,
        ("a.Service/Do", "", "client", "canceled"): 1,
    }


def test_grpc_statuses_that_nobody_defined_do_not_grow_the_counters() -> None:
    cells = Cells()
    telemetry = Telemetry(cells, None)
    for status in range(17, 1017):
        telemetry.record(a_call(rpc_status=status, code=str(status)), CONNECTION, None)
    found = {labels[3]: value for number, labels, value in cells.changes() if number == 0}
    assert found == {"_other": 1000}


def counted_codes(exchanges: list[Exchange]) -> dict[tuple[str, ...], object]:
    """``arca_requests_total`` by method, code, domain and cause."""
    cells = Cells()
    telemetry = Telemetry(cells, None)
    for exchange in exchanges:
        telemetry.record(exchange, CONNECTION, None)
    return {labels[2:]: value for number, labels, value in cells.changes() if number == 0}


def test_thrift_calls_are_counted_by_method_and_exception() -> None:
    assert counted_codes([
        a_thrift_call(),
        a_thrift_call(),
        a_thrift_call(code="UNKNOWN", failed=True, thrift_exception_type=0),
        a_thrift_call(code="INTERNAL_ERROR", failed=True, thrift_exception_type=6),
        a_thrift_call(code="exception_1", failed=True, thrift_exception_field=1),
        a_thrift_call(code="exception_64", failed=True, thrift_exception_field=64),
    ]) == {
        ("Calculator:add", "", "ok", ""): 2,
        ("Calculator:add", "UNKNOWN", "application", "thrift_exception"): 1,
        ("Calculator:add", "INTERNAL_ERROR", "application", "thrift_exception"): 1,
        ("Calculator:add", "exception_1", "application", "thrift_exception"): 1,
        ("Calculator:add", "exception_64", "application", "thrift_exception"): 1,
    }  # fmt: skip


def test_exceptions_that_nobody_defined_do_not_grow_the_counters() -> None:
    found = counted_codes(
        [
            a_thrift_call(code=str(kind), failed=True, thrift_exception_type=kind)
            for kind in [11, 12, 61, 62, 63, 64, 2**31 - 1, -2, -65, -(2**31)]
        ]
        + [
            a_thrift_call(code=f"exception_{field}", failed=True, thrift_exception_field=field)
            for field in [65, 66, 2**15 - 1, -1, -(2**15)]
        ]
    )
    assert {labels[1]: value for labels, value in found.items()} == {"_other": 15}


def test_packets_are_counted_by_type_and_the_name_of_their_reason() -> None:
    found = counted_codes([
        a_packet(b"PUBLISH"),
        a_packet(b"PUBLISH", code="Success", mqtt_reason=0),
        a_packet(b"PUBLISH", code="Not authorized", failed=True, mqtt_reason=0x87),
        a_packet(b"CONNECT", code="Not authorized", failed=True, mqtt_reason=5, mqtt_version=4),
        a_packet(b"CONNECT", code="0x05", failed=True, mqtt_reason=5, mqtt_version=5),
        a_packet(b"PUBLISH", code="0x9f", failed=True, mqtt_reason=0x9F),
        a_packet(b"PUBLISH", code="0xff", failed=True, mqtt_reason=0xFF),
    ])  # fmt: skip
    assert found == {
        ("PUBLISH", "", "ok", ""): 1,
        ("PUBLISH", "Success", "ok", ""): 1,
        ("PUBLISH", "Not authorized", "application", "mqtt_refused"): 1,
        ("CONNECT", "Not authorized", "application", "mqtt_refused"): 1,
        ("CONNECT", "_other", "application", "mqtt_refused"): 1,
        ("PUBLISH", "_other", "application", "mqtt_refused"): 2,
    }


def test_the_same_cause_counts_for_whose_it_was() -> None:
    cells = Cells()
    telemetry = Telemetry(cells, None)
    for end, status in ((End.UPSTREAM_FAULT, 200), (End.DOWNSTREAM_FAULT, 200)):
        telemetry.record(an_exchange(end=end, status=status, fault="x"), CONNECTION, None)
    for domain in ("application", "client"):
        labels = ("http/1.1", "inbound", "GET", "200", domain, "protocol_error")
        assert cells.counter("arca_requests_total", *labels).value == 1


def test_hostile_methods_do_not_grow_the_counters_without_bound() -> None:
    cells = Cells()
    telemetry = Telemetry(cells, None)
    for number in range(10_000):
        telemetry.record(an_exchange(method=b"M%d" % number), CONNECTION, None)
    methods = {labels[2] for number, labels, _ in cells.changes() if number == 0}
    assert len(methods) <= METHODS_MAX + 1
    assert "_other" in methods
