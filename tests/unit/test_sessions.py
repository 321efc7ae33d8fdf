"""What a pair does around its engine: bytes that went on before they were recognised, silence, drain, dials.

The pair is a real one, between sockets of this process, on the event loop that the workers use.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from typing import TYPE_CHECKING, Self

import pytest
import uvloop

from proxy.interceptor import Interceptor
from proxy.metrics import FAMILIES, Cells
from proxy.settings import Limits, Settings
from proxy.telemetry import Telemetry
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

PATIENCE = 20.0  # seconds; nothing here takes more than three
CONNECT = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04door"
CONNECT_FOR_A_SECOND = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x01\x00\x04door"
CONNACK = b"\x20\x02\x00\x00"
ONEWAY = b"\x80\x01\x00\x04\x00\x00\x00\x04ping\x00\x00\x00\x07\x00"
CALL = b"\x80\x01\x00\x01\x00\x00\x00\x04ping\x00\x00\x00\x07\x00"
REPLY = b"\x80\x01\x00\x02\x00\x00\x00\x04ping\x00\x00\x00\x07\x00"


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(4) + message


class House:
    """An interceptor that forwards to a server of ours, and what it told."""

    def __init__(self, **given: object) -> None:
        self.given: dict[str, object] = {"exchanges": "log", "mark": 0} | given
        self.blocks: list[bytes] = []
        self.cells = Cells()
        self.counted: dict[tuple[str, tuple[str, ...]], float] = {}
        self.accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.closing = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.telemetry = Telemetry(self.cells, self.blocks.append)
        settings = Settings(**self.given)  # type: ignore[arg-type]
        self.interceptor = Interceptor(
            loop, settings, self.telemetry, frozenset(), settings.limits.max_connections
        )
        self.upstream_port = free_port()
        self.listening = await asyncio.start_server(self._accept, "127.0.0.1", self.upstream_port)
        self.port = free_port()
        forward = self.interceptor.forward_to(("127.0.0.1", self.upstream_port))
        self.proxy = await loop.create_server(forward, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.proxy.close()
        self.listening.close()
        await self.interceptor.drain(0)
        await self.closing.aclose()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.closing.callback(writer.close)
        self.accepted.put_nowait((reader, writer))

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.closing.callback(writer.close)
        return reader, writer

    async def server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.wait_for(self.accepted.get(), PATIENCE)

    def told(self) -> list[dict[str, object]]:
        """The lines of the exchange log so far."""
        self.telemetry.flush()
        return [json.loads(line) for line in b"".join(self.blocks).splitlines()]

    def count(self, family: str, *labels: str) -> float:
        for number, found, change in self.cells.changes():
            if not isinstance(change, list):
                key = (FAMILIES[number].name, found)
                gauge = FAMILIES[number].kind == "gauge"
                self.counted[key] = change if gauge else self.counted.get(key, 0.0) + change
        return self.counted.get((family, labels), 0.0)

    async def until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, self.told()
            await asyncio.sleep(0.01)


def run(talk: Callable[[House], Awaitable[None]], **given: object) -> None:
    async def held() -> None:
        async with House(**given) as house:
            await talk(house)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(held(), 2 * PATIENCE))


@contextlib.asynccontextmanager
async def nobody_accepts(house: House) -> AsyncIterator[socket.socket]:
    """The server's queue is full: what connects now gets no answer, until somebody accepts."""
    house.listening.close()
    await house.listening.wait_closed()
    with (
        socket.create_server(("127.0.0.1", house.upstream_port), backlog=0) as full,
        socket.create_connection(("127.0.0.1", house.upstream_port)),
    ):
        yield full


def facts(line: dict[str, object]) -> tuple[object, object, object]:
    verdict = line["verdict"]
    assert isinstance(verdict, dict)
    return line["protocol"], line["method"], verdict["cause"]


@pytest.mark.parametrize(
    ("request_", "answer", "protocol", "method"),
    [
        (CONNECT, CONNACK, "mqtt", "CONNECT"),
        (CALL, REPLY, "thrift", "ping"),
        (framed(CALL), framed(REPLY), "thrift", "ping"),
    ],
)
def test_bytes_go_on_before_they_are_recognised_and_the_engine_hears_of_them(
    request_: bytes, answer: bytes, protocol: str, method: str
) -> None:
    async def talk(house: House) -> None:
        reader, writer = await house.client()
        server = None
        for i in range(len(request_)):
            writer.write(request_[i : i + 1])
            server = server or await house.server()
            assert await server[0].readexactly(1) == request_[i : i + 1]
        assert server is not None
        assert house.count("arca_requests_in_flight", "tcp") == 0
        assert house.count("arca_requests_in_flight", protocol) == 1
        server[1].write(answer)
        assert await reader.readexactly(len(answer)) == answer
        await house.until(house.told)
        (line,) = house.told()
        assert facts(line) == (protocol, method, None)
        assert (line["request_bytes"], line["response_bytes"]) == (len(request_), len(answer))
        assert line["connect_ms"] is not None
        assert house.count("arca_requests_in_flight", protocol) == 0
        assert house.count("arca_detect_total", protocol, "first_bytes") == 1

    run(talk)


def test_a_server_that_speaks_while_the_protocol_is_undecided_leaves_it_opaque() -> None:
    async def talk(house: House) -> None:
        reader, writer = await house.client()
        writer.write(CONNECT[:5])
        server = await house.server()
        await server[0].readexactly(5)
        server[1].write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write(CONNECT[5:])
        assert await server[0].readexactly(len(CONNECT) - 5) == CONNECT[5:]
        server[1].close()
        writer.close()
        await house.until(house.told)
        assert [line["protocol"] for line in house.told()] == ["tcp"]
        assert house.count("arca_detect_total", "tcp", "server_first") == 1

    run(talk)


def test_a_client_that_misses_its_keep_alive_is_told_of_once_while_the_connection_goes_on() -> None:
    async def talk(house: House) -> None:
        reader, writer = await house.client()
        writer.write(CONNECT_FOR_A_SECOND)
        server = await house.server()
        server[1].write(CONNACK)
        assert await reader.readexactly(4) == CONNACK
        await house.until(lambda: len(house.told()) == 2)
        missed = house.told()[1]
        assert facts(missed) == ("mqtt", "PINGREQ", "keepalive_missed")
        details = missed["mqtt"]
        assert isinstance(details, dict)
        assert details["keep_alive_seconds"] == 1
        assert details["silence_ms"] >= 1500
        writer.write(b"\xc0\x00")
        await server[0].readexactly(len(CONNECT_FOR_A_SECOND) + 2)
        server[1].write(b"\xd0\x00")
        assert await reader.readexactly(2) == b"\xd0\x00"
        await house.until(lambda: len(house.told()) == 3)
        assert facts(house.told()[2]) == ("mqtt", "PINGREQ", None)

    run(talk)


def test_when_many_fall_silent_at_once_all_are_told_of_a_hundred_at_a_time() -> None:
    many = 130

    async def talk(house: House) -> None:
        for _ in range(many):
            _, writer = await house.client()
            writer.write(CONNECT_FOR_A_SECOND)
            (await house.server())[1].write(CONNACK)
        await house.until(lambda: len(house.told()) == 2 * many)
        causes = [facts(line)[2] for line in house.told()]
        assert causes.count("keepalive_missed") == many

    run(talk, limits=Limits(max_connections=many + 1))


def test_a_flood_arrives_whole_and_every_packet_of_it_is_told() -> None:
    """Its reading gives way to others again and again."""
    publish = b"\x30\x5e\x00\x01t" + b"x" * 91
    many = 20_000

    async def talk(house: House) -> None:
        reader, writer = await house.client()
        writer.write(CONNECT)
        server = await house.server()
        server[1].write(CONNACK)
        assert await reader.readexactly(4) == CONNACK
        await server[0].readexactly(len(CONNECT))
        writer.write(publish * many)
        assert await server[0].readexactly(len(publish) * many) == publish * many
        server[1].write(publish * many)
        assert await reader.readexactly(len(publish) * many) == publish * many
        await house.until(lambda: len(house.told()) == 2 * many + 1)
        assert {facts(line) for line in house.told()[1:]} == {("mqtt", "PUBLISH", None)}

    run(talk)


def test_a_drained_session_is_told_of_and_an_idle_connection_is_not() -> None:
    async def talk(house: House) -> None:
        _, mqtt = await house.client()
        mqtt.write(CONNECT)
        (await house.server())[1].write(CONNACK)
        await house.until(lambda: len(house.told()) == 1)
        _, thrift = await house.client()
        thrift.write(CALL)
        (await house.server())[1].write(REPLY)
        _, http = await house.client()
        http.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        (await house.server())[1].write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await house.until(lambda: len(house.told()) == 3)
        await house.interceptor.drain(PATIENCE)
        (drained,) = house.told()[3:]
        assert facts(drained) == ("mqtt", "DISCONNECT", "limit")

    run(talk)


def test_the_frame_limit_of_the_settings_is_the_engines() -> None:
    long_call = CALL[:-1] + b"\x0b\x00\x01" + (2000).to_bytes(4) + b"x" * 2000 + b"\x00"

    async def talk(house: House) -> None:
        _, writer = await house.client()
        writer.write(framed(long_call))
        reader, _ = await house.server()
        assert await reader.readexactly(len(long_call) + 4) == framed(long_call)
        assert house.count("arca_codec_fallbacks_total", "thrift", "frame_too_large") == 1

    run(talk, limits=Limits(thrift_frame_bytes=1024))


@pytest.mark.parametrize(
    ("request_", "protocol", "method"), [(CONNECT, "mqtt", "CONNECT"), (framed(CALL), "thrift", "ping")]
)
@pytest.mark.parametrize("early", [True, False], ids=["before the dial failed", "after it"])
def test_a_request_in_pieces_that_nobody_can_answer_is_told_by_its_name(
    request_: bytes, protocol: str, method: str, early: bool
) -> None:
    async def talk(house: House) -> None:
        house.listening.close()
        await house.listening.wait_closed()
        reader, writer = await house.client()
        if not early:
            await asyncio.sleep(0.1)
        for i in range(0, len(request_), 3):
            writer.write(request_[i : i + 3])
            await asyncio.sleep(0.01)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        (line,) = house.told()
        assert facts(line) == (protocol, method, "connect_refused")

    run(talk)


@pytest.mark.parametrize("reached", [True, False])
def test_a_oneway_call_is_complete_when_there_is_a_server_to_hear_it(reached: bool) -> None:
    async def talk(house: House) -> None:
        async with nobody_accepts(house) as full:
            _, writer = await house.client()
            writer.write(ONEWAY)
            await asyncio.sleep(0.1)
            assert not house.told()
            if reached:
                full.accept()[0].close()
            await house.until(house.told)
        (line,) = house.told()
        assert facts(line) == ("thrift", "ping", None if reached else "connect_timeout")
        assert line["connect_ms"] is not None

    run(talk, limits=Limits(connect_timeout_seconds=PATIENCE / 2 if reached else 0.5))


def test_of_what_waits_for_a_dial_so_much_is_kept() -> None:
    async def talk(house: House) -> None:
        async with nobody_accepts(house) as full:
            _, writer = await house.client()
            writer.write(ONEWAY * 2000)
            await house.until(
                lambda: house.count("arca_protocol_limits_total", "thrift", "unsent", "downstream")
            )
            full.accept()[0].close()
            await house.until(house.told)
            heard = full.accept()[0]
            heard.settimeout(PATIENCE)
            size = 0
            while size < len(ONEWAY) * 2000:
                size += len(await asyncio.to_thread(heard.recv, 65536))
            heard.close()
        beyond = house.count("arca_protocol_limits_total", "thrift", "unsent", "downstream")
        assert beyond > 0
        await house.until(lambda: len(house.told()) + beyond >= 2000)

    run(talk, limits=Limits(connect_timeout_seconds=PATIENCE / 2))


@pytest.mark.parametrize("early", [True, False], ids=["before the dial failed", "after it"])
def test_what_was_published_to_a_server_that_is_not_there_was_not(early: bool) -> None:
    async def talk(house: House) -> None:
        house.listening.close()
        await house.listening.wait_closed()
        reader, writer = await house.client()
        if not early:
            await asyncio.sleep(0.05)
        writer.write(CONNECT + b"\x30\x05\x00\x01tok")
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        told = {facts(line) for line in house.told()}
        assert told == {("mqtt", method, "connect_refused") for method in ("CONNECT", "PUBLISH")}

    run(talk)


def test_a_few_bytes_that_may_be_anything_wait_for_no_server_that_is_not_there() -> None:
    async def talk(house: House) -> None:
        house.listening.close()
        await house.listening.wait_closed()
        reader, writer = await house.client()
        writer.write(b"\x00\x00\x00")
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        (line,) = house.told()
        assert facts(line) == ("tcp", None, "connect_refused")
        assert line["request_bytes"] == 3

    run(talk)


def test_a_failed_exchange_has_the_facts_of_its_connections() -> None:
    refused = b"\x20\x02\x00\x05"

    async def talk(house: House) -> None:
        reader, writer = await house.client()
        writer.write(CONNECT)
        (await house.server())[1].write(refused)
        assert await reader.readexactly(4) == refused
        await house.until(house.told)
        (line,) = house.told()
        assert facts(line) == ("mqtt", "CONNECT", "mqtt_refused")
        tcp = line["tcp"]
        assert isinstance(tcp, dict)
        assert tcp["downstream"] is not None
        assert tcp["upstream"] is not None

    run(talk)
