"""The control channel: every message arrives whole, in order, and neither side ever waits."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

import msgspec
import pytest
import uvloop

from protocols.exchange import Exchange, Protocol
from proxy import channel
from proxy.channel import (
    FRAME_MAX,
    WAITING_MAX,
    Answer,
    Ask,
    Channel,
    ChannelError,
    Configure,
    Counters,
    Drain,
    Drained,
    FromSupervisor,
    FromWorker,
    Lines,
    LogLevel,
    Ready,
    Server,
    Start,
)
from proxy.metrics import Cells
from proxy.settings import Settings
from proxy.telemetry import Connection, Telemetry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FROM_WORKER: list[FromWorker] = [
    Ready(1),
    Counters([(0, ("http/1.1", "inbound", "GET", "200", "ok", ""), 3.0), (9, (), [0.5, 30.0, 2.0])]),
    Lines(b"{}\n"),
    Answer(7, b"[]"),
    Drained(),
]
FROM_SUPERVISOR: list[FromSupervisor] = [
    Start(
        Settings(), ["127.0.0.0/8"], [Server(3, ("::", 1), None), Server(4, ("::", 2), ("::1", 3))], 9, None
    ),
    Configure(Settings(slow=0.5), []),
    Ask(7, "exchanges", 100),
    LogLevel("debug"),
    Drain(1.5),
]


class Ends:
    """Both ends, and what each has heard."""

    def __init__(self) -> None:
        self.heard_by_supervisor: list[FromWorker] = []
        self.heard_by_worker: list[FromSupervisor] = []
        self.losses: list[Exception | None] = []
        self.supervisor: Channel[FromWorker] = channel.to_worker(
            self.heard_by_supervisor.append, self.losses.append
        )
        self.worker: Channel[FromSupervisor] = channel.to_supervisor(
            self.heard_by_worker.append, self.losses.append
        )


def converse(talk: Callable[[Ends], Awaitable[None]]) -> Ends:
    async def life() -> Ends:
        ends = Ends()
        one, other = socket.socketpair()
        await channel.connect(ends.supervisor, one)
        await channel.connect(ends.worker, other)
        await talk(ends)
        return ends

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(life())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def test_every_message_arrives_as_it_was_sent() -> None:
    async def talk(ends: Ends) -> None:
        for message in FROM_WORKER:
            ends.worker.send(message)
        for order in FROM_SUPERVISOR:
            ends.supervisor.send(order)
        await until(lambda: len(ends.heard_by_supervisor) == 5 and len(ends.heard_by_worker) == 5)

    ends = converse(talk)
    assert ends.heard_by_supervisor == FROM_WORKER
    assert ends.heard_by_worker == FROM_SUPERVISOR


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_any_chunking_gives_the_same_messages(size: int) -> None:
    heard: list[FromWorker] = []
    end = channel.to_worker(heard.append, lambda error: None)
    stream = b"".join(framed(msgspec.msgpack.encode(message)) for message in FROM_WORKER)
    for at in range(0, len(stream), size):
        end.data_received(stream[at : at + size])
    assert heard == FROM_WORKER


def test_a_message_of_megabytes_arrives() -> None:
    payload = b"x" * (8 * 1024 * 1024)

    async def talk(ends: Ends) -> None:
        ends.worker.send(Answer(1, payload))
        await until(lambda: bool(ends.heard_by_supervisor))

    assert converse(talk).heard_by_supervisor == [Answer(1, payload)]


def test_a_message_over_the_limit_is_not_sent() -> None:
    async def talk(ends: Ends) -> None:
        with pytest.raises(ChannelError, match="over the limit"):
            ends.worker.send(Answer(1, bytes(FRAME_MAX)))
        ends.worker.send(Drained())
        await until(lambda: bool(ends.heard_by_supervisor))

    assert converse(talk).heard_by_supervisor == [Drained()]


@pytest.mark.parametrize(
    "garbage",
    [struct.pack(">I", FRAME_MAX + 1), framed(b"\xc1"), framed(b"\x81\xa4type\xa5Drain"), framed(b"")],
)
def test_what_no_worker_sends_ends_the_channel_with_the_reason(garbage: bytes) -> None:
    async def life() -> list[Exception | None]:
        losses: list[Exception | None] = []
        one, other = socket.socketpair()
        with other:
            await channel.connect(channel.to_worker(lambda message: None, losses.append), one)
            other.sendall(garbage)
            await until(lambda: bool(losses))
        return losses

    (loss,) = asyncio.run(life())
    assert isinstance(loss, ChannelError)


def test_lines_are_dropped_and_counted_while_nobody_reads_and_counters_wait_in_their_cells() -> None:
    async def life() -> tuple[int, bool]:
        one, other = socket.socketpair()
        with other:
            end = channel.to_supervisor(lambda message: None, lambda error: None)
            await channel.connect(end, one)
            block = b"{}\n" * 100_000
            dropped = 0
            for _ in range(2 * WAITING_MAX // len(block) + 20):
                dropped += end.send_lines(block)
            return dropped, end.full

    dropped, full = asyncio.run(life())
    assert full  # a worker leaves its counters where they are
    assert dropped > 0
    assert dropped % 100_000 == 0


def test_every_exchange_of_a_flood_is_a_line_that_was_sent_or_one_that_is_counted_as_dropped() -> None:
    exchange = Exchange(Protocol.TCP, 100.0)
    exchange.ended = 100.5
    connection = Connection("c-1", "10.0.0.1:40000", "10.0.0.2:80", True, 0.0)
    flood = 4 * WAITING_MAX // 400  # a line is longer than that

    async def life() -> tuple[int, float]:
        heard: list[FromWorker] = []
        one, other = socket.socketpair()
        end = channel.to_supervisor(lambda message: None, lambda error: None)
        await channel.connect(end, one)
        cells = Cells()
        telemetry = Telemetry(cells, lambda lines: lost.append(end.send_lines(lines)), lambda: end.full)
        lost: list[int] = []
        for _ in range(flood):
            telemetry.record(exchange, connection, None)
        telemetry.flush()
        assert end.full
        assert not any(lost), "what is full was handed more"
        end.send(Drained())
        await channel.connect(channel.to_worker(heard.append, lambda error: None), other)
        await until(lambda: Drained() in heard)
        sent = sum(message.data.count(b"\n") for message in heard if isinstance(message, Lines))
        return sent, cells.counter("arca_dropped_records_total", "exchanges").value

    sent, dropped = asyncio.run(life())
    assert sent > 0
    assert dropped > 0
    assert sent + dropped == flood


def test_the_end_of_the_other_side_is_told_once() -> None:
    async def talk(ends: Ends) -> None:
        ends.supervisor.close()
        await until(lambda: len(ends.losses) == 2)
        ends.worker.send(Drained())  # to nobody: nothing happens

    assert converse(talk).losses == [None, None]
