"""The exchange log loses lines rather than time: whatever its reader does, ``put`` returns at once."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from proxy.exchange_log import WAITING_MAX, ExchangeLog, ExchangeLogError

if TYPE_CHECKING:
    from pathlib import Path

LINE = b'{"n":1}\n'


class Lost:
    def __init__(self) -> None:
        self.lines = 0

    def __call__(self, lines: int) -> None:
        self.lines += lines


def test_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "exchanges.jsonl"
    path.write_bytes(b"before\n")
    log = ExchangeLog(str(path), Lost())
    log.put(LINE * 2)
    log.put(LINE)
    log.close(5)
    assert path.read_bytes() == b"before\n" + LINE * 3


def test_after_reopening_lines_go_to_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "exchanges.jsonl"
    log = ExchangeLog(str(path), Lost())
    log.put(b"first\n")
    wait_for(lambda: path.read_bytes() == b"first\n")
    path.rename(tmp_path / "rotated")
    log.reopen(str(path))
    log.put(b"second\n")
    log.close(5)
    assert (tmp_path / "rotated").read_bytes() == b"first\n"
    assert path.read_bytes() == b"second\n"


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExchangeLogError, match="nowhere/x cannot be opened: No such file or directory"):
        ExchangeLog(str(tmp_path / "nowhere" / "x"), Lost())
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ExchangeLogError, match="nobody reads this pipe"):
        ExchangeLog(str(tmp_path / "fifo"), Lost())


def test_a_failed_reopening_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "exchanges.jsonl"
    log = ExchangeLog(str(path), Lost())
    with pytest.raises(ExchangeLogError):
        log.reopen(str(tmp_path / "nowhere" / "x"))
    log.put(LINE)
    log.close(5)
    assert path.read_bytes() == LINE


def test_a_reader_that_stops_reading_costs_lines_and_no_time(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    lost = Lost()
    log = ExchangeLog(str(fifo), lost)
    block = LINE * (1024 * 1024 // len(LINE))
    began = time.monotonic()
    for _ in range(2 * WAITING_MAX // len(block)):
        log.put(block)
    assert time.monotonic() - began < 1
    assert lost.lines > 0
    os.close(reader)
    log.close(5)


def test_a_reader_that_goes_away_costs_lines_and_the_log_goes_on(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    lost = Lost()
    log = ExchangeLog(str(fifo), lost)
    os.close(reader)
    log.put(LINE * 3)
    wait_for(lambda: lost.lines == 3)
    path = tmp_path / "file"
    log.reopen(str(path))
    log.put(LINE)
    log.close(5)
    assert path.read_bytes() == LINE


def test_a_full_disk_costs_lines_and_no_broken_one(tmp_path: Path) -> None:
    lost = Lost()
    log = ExchangeLog("/dev/full", lost)
    log.put(LINE * 2)
    wait_for(lambda: lost.lines == 2)
    log.close(5)


def test_a_pipe_that_takes_little_at_a_time_gets_every_line_whole(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    received = bytearray()
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)

    def read() -> None:
        while data := os.read(reader, 1000):
            received.extend(data)

    log = ExchangeLog(str(fifo), Lost())
    thread = threading.Thread(target=read)
    thread.start()
    log.put(LINE * 100_000)
    log.close(10)
    thread.join(10)
    os.close(reader)
    assert bytes(received) == LINE * 100_000


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
