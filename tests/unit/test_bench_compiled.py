"""The compiled ends do what the bench says of them; the rows of Thrift and MQTT judge what they should."""

from __future__ import annotations

import os
import socket
import socketserver
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from protocols.detect import Recognised, recognise
from tests.bench import compiled, rows
from tests.bench.load import LoadFigures
from tests.bench.mqtt_packets import SessionFigures, mqtt_server, publish, requires_arrival, run_mqtt
from tests.bench.peers import counted_in
from tests.bench.processes import NotMeasured
from tests.bench.thrift_calls import requires_echo, run_thrift, thrift_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.bench.mqtt_packets import Qos, Version
    from tests.bench.thrift_calls import Transport

SECONDS = 0.1
CORE = min(os.sched_getaffinity(0))
FIGURES = LoadFigures(40_000.0, 20.0, 4.0, 0.1, None, None, "")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ends")


@pytest.fixture(scope="module")
def thrift_port(directory: Path) -> Iterator[int]:
    with thrift_server(directory, CORE) as port:
        yield port


@pytest.fixture(scope="module")
def mqtt_port(directory: Path) -> Iterator[int]:
    with mqtt_server(directory, CORE) as port:
        yield port


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("transport", ["framed", "buffered"])
def test_every_call_comes_back_as_it_was_sent(
    directory: Path, thrift_port: int, transport: Transport, opaque: bool
) -> None:
    requires_echo(transport, opaque)(thrift_port, ids_expected=False)
    report = run_thrift(directory, thrift_port, transport, opaque, SECONDS, CORE)
    assert report.calls > 0
    assert report.faults == ""
    assert 0 < report.p50_ms <= report.p99_ms


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("version", [4, 5])
def test_every_packet_that_was_published_is_seen(
    directory: Path, mqtt_port: int, version: Version, qos: Qos, opaque: bool
) -> None:
    requires_arrival(version, opaque)(mqtt_port, ids_expected=False)
    report = run_mqtt(directory, mqtt_port, version, qos, opaque, SECONDS, CORE)
    assert report.published > 0
    assert (report.p50_ms is None) == (qos == 0)


def test_a_publish_that_should_be_traced_and_is_not_is_other_work(mqtt_port: int) -> None:
    with pytest.raises(NotMeasured, match="without a traceparent"):
        requires_arrival(5, opaque=False)(mqtt_port, ids_expected=True)
    requires_arrival(4, opaque=False)(mqtt_port, ids_expected=True)  # version 3.1.1 has no place for it


def test_the_sink_tells_the_properties_that_came(mqtt_port: int) -> None:
    traceparent = b"\x26\x00\x0btraceparent\x00\x0200"
    body = b"\x00\x04seen" + bytes([len(traceparent)]) + traceparent + b"?"
    with closing(socket.create_connection(("127.0.0.1", mqtt_port), timeout=10)) as client:
        client.sendall(b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01a" + bytes([0x30, len(body)]) + body)
        expected = b"\x20\x03\x00\x00\x00" + publish(5, b"seen", b"1 " + traceparent.hex().encode())
        assert client.recv(len(expected), socket.MSG_WAITALL) == expected


class _LosesPackets(socketserver.BaseRequestHandler):
    """An MQTT server that acknowledges nothing and has seen less than was sent."""

    def handle(self) -> None:
        self.request.recv(65_536)
        self.request.sendall(b"\x20\x02\x00\x00")
        last = b""
        while not last.endswith(publish(4, b"seen", b"?")):
            received = self.request.recv(65_536)
            if not received:
                return
            last = (last + received)[-64:]
        self.request.sendall(publish(4, b"seen", b"1 "))


class _AnswersOtherwise(socketserver.BaseRequestHandler):
    """A Thrift server whose replies are well-formed, and say something else than the calls."""

    def handle(self) -> None:
        while received := bytearray(self.request.recv(65_536)):
            received[3], received[18] = 2, 0  # a reply; the result of it
            received[-2] ^= 1
            self.request.sendall(received)


@contextmanager
def _server(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(30)


def test_packets_that_did_not_arrive_are_not_measured(directory: Path) -> None:
    with _server(_LosesPackets) as port, pytest.raises(NotMeasured, match="number of packets that arrived"):
        run_mqtt(directory, port, 4, 0, False, SECONDS, CORE)


def test_answers_that_say_something_else_are_a_fault(directory: Path) -> None:
    with _server(_AnswersOtherwise) as port:
        report = run_thrift(directory, port, "buffered", False, SECONDS, CORE)
        assert report.wrong == report.calls
        assert report.faults == f"{report.calls} answers differ from what was sent"
        with pytest.raises(NotMeasured, match="a call is answered with"):
            requires_echo("buffered", False)(port, ids_expected=False)


def test_the_byte_before_opaque_bytes_is_of_no_protocol() -> None:
    assert recognise(compiled.OPAQUE) is Recognised.TCP


def test_ends_that_cannot_be_compiled_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no_ends.c").write_text("int main(void) { return none; }")
    monkeypatch.setattr(compiled, "_SOURCES", tmp_path)
    with pytest.raises(NotMeasured, match=r"gcc: .*none"):
        compiled.ends(tmp_path, "no")


def test_counters_are_summed_by_protocol() -> None:
    metrics = """\
# TYPE arca_requests_total counter
arca_requests_total{protocol="thrift",code="200"} 3
arca_requests_total{protocol="tcp",code=""} 4
arca_requests_total_other{protocol="thrift"} 5
"""
    assert counted_in(metrics, "arca_requests_total", "thrift") == 3
    assert counted_in(metrics, "arca_requests_total") == 7
    assert counted_in(metrics, "arca_connections_total") == 0


def _of(cpu_us: float) -> list[LoadFigures | None]:
    return [replace(FIGURES, cpu_us=cpu_us)]


@pytest.mark.parametrize(
    ("ours", "opaque", "envoy", "met"),
    [(24.0, 12.0, 40.0, [True, True]), (24.1, 12.0, 40.0, [False, False]), (24.0, 14.0, 39.0, [True, False])],
)
def test_thrift_is_judged_by_what_reading_adds_and_by_envoys(
    ours: float, opaque: float, envoy: float, met: list[bool]
) -> None:
    judged = rows.thrift_rows("g", _of(ours), _of(opaque), _of(envoy))
    assert [row.met for row in judged] == met
    assert [row.value for row in judged] == pytest.approx([ours - opaque, ours / envoy])


def test_what_was_not_measured_is_not_judged() -> None:
    assert rows.thrift_rows("g", _of(20.0), [None], [None]) == []
    assert len(rows.thrift_rows("g", _of(20.0), [None], _of(40.0))) == 1
    assert rows.mqtt_rows("g", 0, [None], _of(1.0)) == []


def test_a_publish_and_its_acknowledgement_are_two_packets() -> None:
    (row,) = rows.mqtt_rows("g", 0, _of(8.0), _of(0.0))
    assert (row.value, row.met, row.result) == (8.0, True, "+8.0 µs per packet")
    (row,) = rows.mqtt_rows("g", 0, _of(9.0), _of(0.0))
    assert (row.value, row.met) == (9.0, False)
    (row,) = rows.mqtt_rows("g", 1, _of(17.0), _of(1.0))
    assert (row.value, row.met) == (8.0, True)
    assert row.result == "+8.0 µs per packet, +16.0 per PUBLISH with its PUBACK"


def test_sessions_have_a_limit_of_memory_and_of_number() -> None:
    assert rows.sessions_row(SessionFigures(2_000, 14.0)).met is True
    assert rows.sessions_row(SessionFigures(2_000, 14.1)).met is False
    assert rows.sessions_row(SessionFigures(1_999, 14.0)).met is False
