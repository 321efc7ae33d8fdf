"""What the bench makes of HTTP/2: h2load's report, frames cut anywhere, limits of rows, ids that arrived."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.bench import h2load, rows
from tests.bench.load import LoadFigures
from tests.bench.peers import lines_ahead
from tests.bench.processes import NotMeasured
from tests.bench.rpc import CallsReport, MessageFigures
from tests.bench.streams import Connection, HeldFigures, StreamFigures, frame, split_frames
from tests.bench.upstream import require_new_ids

if TYPE_CHECKING:
    from pathlib import Path

REPORT = """\
finished in 994.62ms, 119169.01 req/s, 14.66MB/s
requests: 300000 total, 300000 started, 300000 done, 300000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 300000 2xx, 0 3xx, 0 4xx, 0 5xx
"""
LOST = """\
finished in 994.62ms, 119169.01 req/s, 14.66MB/s
requests: 300000 total, 98536 started, 98528 done, 98528 succeeded, 201472 failed, 201472 errored, 0 timeout
status codes: 98528 2xx, 0 3xx, 0 4xx, 0 5xx
"""
REFUSED = """\
finished in 1.00s, 100304.00 req/s, 16.84MB/s
requests: 300 total, 300 started, 300 done, 100 succeeded, 200 failed, 0 errored, 0 timeout
status codes: 100 2xx, 0 3xx, 150 4xx, 50 5xx
"""

FIGURES = LoadFigures(40_000.0, 10.0, 4.0, 0.1, None, None, "")


def test_a_clean_h2load_report_has_its_figures() -> None:
    report = h2load.parse(REPORT)
    assert (report.requests, report.requests_per_second, report.faults) == (300_000, 119_169.01, "")


def test_requests_that_a_lost_connection_took_along_are_a_fault() -> None:
    report = h2load.parse(LOST)
    assert (report.requests, report.faults) == (98_528, "201472 requests without an answer")


def test_answers_that_refuse_are_not_counted_as_requests_lost() -> None:
    report = h2load.parse(REFUSED)
    assert (report.requests, report.faults) == (100, "200 answers not 2xx")


@pytest.mark.parametrize("missing", range(3))
def test_an_h2load_report_without_a_figure_is_an_error_and_not_a_zero(missing: int) -> None:
    lines = REPORT.splitlines(keepends=True)
    with pytest.raises(ValueError, match="h2load's report"):
        h2load.parse("".join(lines[:missing] + lines[missing + 1 :]))


def test_frames_are_the_same_wherever_the_bytes_are_cut() -> None:
    sent = frame(1, 4, 1, b"\x88") + frame(0, 1, 1, b"a" * 300) + frame(8, 0, 0x80000003, bytes(4))
    whole, rest = split_frames(sent)
    assert [(one.type, one.flags, one.stream, len(one.payload)) for one in whole] == [
        (1, 4, 1, 1),
        (0, 1, 1, 300),
        (8, 0, 3, 4),  # the reserved bit is no part of the stream
    ]
    assert rest == b""
    for cut in range(len(sent)):
        first, rest = split_frames(sent[:cut])
        second, rest = split_frames(rest + sent[cut:])
        assert (first + second, rest) == (whole, b"")


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        (frame(3, 0, 1, b"\0\0\0\x0b"), "stream 1 was reset: 0000000b"),
        (frame(7, 0, 0, bytes(8)), "GOAWAY after 0 answers"),
        (frame(1, 0x5, 1, b"\x8d"), "the answer begins with 8d"),
        (frame(0, 0x1, 1, b"body"), "stream 1 ended without an answer"),
        (b"", "closed after 0 answers"),
    ],
)
def test_an_answer_that_is_none_is_not_measured(heard: bytes, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=_answer_once, args=(listener, heard))
        server.start()
        connection = Connection(listener.getsockname()[1])
        with pytest.raises(NotMeasured, match=said):
            connection.ask(1)
        connection.close()
        server.join(30)


def _answer_once(listener: socket.socket, heard: bytes) -> None:
    """Answers the client's PING, waits for a request, says that and ends."""
    downstream, _ = listener.accept()
    with downstream:
        downstream.sendall(frame(4, 0, 0) + frame(6, 1, 0, bytes(8)))
        received = b""
        while not any(one.type == 1 for one in split_frames(received[24:])[0]):
            received += downstream.recv(65_536)
        downstream.sendall(heard)
        downstream.shutdown(socket.SHUT_WR)
        while downstream.recv(65_536):
            pass


def test_calls_that_failed_or_came_back_changed_are_faults() -> None:
    assert CallsReport(100, 2.0, 1.0, 2.0, [], 0).faults == ""
    report = CallsReport(100, 2.0, 1.0, 2.0, ["UNAVAILABLE x", "CANCELLED y"], 3)
    assert report.requests_per_second == 50.0
    assert report.faults == (
        "2 calls failed, the first with UNAVAILABLE x, 3 answers differ from what was sent"
    )


def test_percentiles_that_a_load_generator_does_not_tell_stay_empty() -> None:
    row = rows.load_row("h2", "arca", [FIGURES, None, replace(FIGURES, cpu_us=12.0)])
    assert (row.cpu_us, row.p50_ms, row.p99_ms) == (11.0, None, None)


@pytest.mark.parametrize(
    ("peer", "theirs", "met"), [("haproxy", 8.0, True), ("haproxy", 7.9, False), ("envoy", 19.9, False)]
)
def test_the_limit_of_a_cpu_ratio_is_the_peers(peer: str, theirs: float, met: bool) -> None:
    (row,) = rows.cpu_ratio_rows("g", peer, [FIGURES], [replace(FIGURES, cpu_us=theirs)])
    assert row.value == pytest.approx(10.0 / theirs)
    assert row.met is met


def test_a_ratio_without_a_round_in_common_has_no_row() -> None:
    assert rows.cpu_ratio_rows("g", "envoy", [FIGURES, None], [None, FIGURES]) == []


def test_only_arcas_calls_have_a_limit() -> None:
    relay = [replace(FIGURES, cpu_us=40.0)]
    row = rows.unary_row("g", "arca", [replace(FIGURES, cpu_us=60.0)], relay)
    assert (row.met, row.result) == (True, "+20.0 µs to passing bytes only")
    row = rows.unary_row("g", "arca", [replace(FIGURES, cpu_us=60.1)], [None])
    assert (row.met, row.result) == (False, "")
    assert rows.unary_row("g", "haproxy", [FIGURES], relay).met is None


def test_rows_of_streams_and_messages_say_when_a_limit_is_passed() -> None:
    assert rows.streams_row(StreamFigures(100_000, 1_023)).met is True
    assert rows.streams_row(StreamFigures(100_000, 1_024)).met is False
    assert rows.held_row(HeldFigures(1_000, 1_000, 2.0)).met is True
    assert rows.held_row(HeldFigures(1_000, 999, 2.0)).met is False
    assert rows.held_row(HeldFigures(500, 500, 2.0)).met is False
    assert rows.messages_row(MessageFigures(8, 8, 65_535)).met is True
    assert rows.messages_row(MessageFigures(8, 8, 65_536)).met is False
    assert rows.messages_row(MessageFigures(8, 7, 0)).met is False


def test_records_are_counted_once_as_the_log_grows(tmp_path: Path) -> None:
    path = tmp_path / "exchanges.jsonl"
    path.write_bytes(b"{}\n{}\n{")
    with path.open("rb") as log:
        assert lines_ahead(log) == 2
        assert lines_ahead(log) == 0
        with path.open("ab") as more:
            more.write(b"}\n{}\n")
        assert lines_ahead(log) == 2


IDS = "0b6e7e40-7c5a 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("arrived", "said"),
    [
        ([" "], "did not get X-Request-ID and traceparent"),
        ([IDS.replace("b7ad6b7169203331", "0" * 16)], "did not get"),
        ([IDS, IDS], "the same ids"),
    ],
)
def test_a_proxy_that_adds_no_new_ids_does_not_do_the_same_work(arrived: list[str], said: str) -> None:
    with pytest.raises(NotMeasured, match=said):
        require_new_ids(arrived)


def test_new_ids_on_each_request_are_the_work() -> None:
    require_new_ids([IDS, IDS.replace("0b6e", "1c7f")])
