"""One ARCA with one worker in front of a server that the test plays itself, and what the two ends of a
connection observe.

    with Carrier(log) as arca:
        client, server = arca.connect()          # through ARCA; arca.stage.connect() is the same without it
        client.sends(b"...")
        server.hears(b"...")                     # exactly this, but for the lines that ARCA adds
        server.ends()
        assert client.heard_end() == FIN
        (exchange,) = arca.exchanges(client)
        arca.assert_nothing_is_left()

A conversation is a function that plays both ends. ``observe`` runs it and answers what each end heard and how
each ended, so the same conversation can be held directly and through ARCA, and compared.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import socket
import struct
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.ports import free_port
from tests.system.processes import PATIENCE, Arca, Row, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.system.namespaces import Namespace

FIN, RST, OPEN = "FIN", "RST", "open"

# What ARCA adds to a message that has no ids of its own (transparency.md, Trace context).
_ADDED = re.compile(
    rb"traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]\r\n"
    rb"|X-Request-ID: [0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\r\n"
)


def without_added(message: bytes | bytearray) -> bytes:
    """``message`` without the lines that ARCA adds."""
    return bytes(_ADDED.sub(b"", message))


class Peer:
    """One end of a connection. ``heard`` is all that it received so far."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.heard = bytearray()
        self.ended = OPEN
        self._read = 0  # of heard, without the added lines: how much was asked for
        self.name = _text(connection.getsockname())
        # Its exchanges begin after that; those of another that had the same port began before.
        self.since = time.time() - 0.1
        connection.settimeout(PATIENCE)
        with contextlib.suppress(OSError):  # it may be reset already
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closes()

    def sends(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hears(self, expected: bytes) -> None:
        """The next bytes are these, the added lines left out."""
        wanted = self._read + len(expected)
        while True:
            heard = without_added(self.heard)
            news = heard[self._read : wanted]
            if news == expected:
                self._read = wanted
                return
            # The beginning of an added line looks like a difference until the rest of it is here.
            assert self._receive(), f"{self.ended} after {news!r}, not {expected!r}"

    def hears_exactly(self, size: int, slowly: bool = False) -> bytes:
        """The next ``size`` bytes as they come, for what is too long to be looked at again and again."""
        start = len(self.heard)
        while len(self.heard) - start < size:
            if slowly:
                time.sleep(0.001)
            assert self._receive(min(1 << 18, size - (len(self.heard) - start))), self.ended
        self._read = len(without_added(self.heard)) if size < 1 << 16 else self._read + size
        return bytes(self.heard[start:])

    def hears_head(self) -> bytes:
        """A whole head, as it came."""
        start = self._read
        while (end := without_added(self.heard).find(b"\r\n\r\n", start)) < 0:
            assert self._receive(), f"{self.ended} in a head: {without_added(self.heard)[start:]!r}"
        self._read = end + 4
        return bytes(self.heard[self._as_it_came(start) : self._as_it_came(end + 3) + 1])

    def _as_it_came(self, position: int) -> int:
        """Where in ``heard`` the byte is that is at ``position`` when the added lines are left out."""
        for line in _ADDED.finditer(self.heard):
            if line.start() > position:
                break
            position += len(line[0])
        return position

    def heard_end(self) -> str:
        """Reads on until the other end closes or resets: FIN or RST."""
        while self._receive():
            pass
        return self.ended

    def is_told_of_a_reset(self) -> bool:
        """Whether the kernel reports a reset in time, to a socket that neither reads nor writes."""
        poll = select.poll()
        poll.register(self.socket, 0)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for _, events in poll.poll(100):
                if events & select.POLLERR:
                    return True
                time.sleep(0.01)  # both directions ended in order, so far
        return False

    def is_silent(self, seconds: float = 0.2) -> bool:
        """Whether nothing, not even an end, comes for a while."""
        self.socket.settimeout(seconds)
        try:
            before = len(self.heard)
            return self._receive() and len(self.heard) == before
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(PATIENCE)

    def ends(self) -> None:
        """FIN: nothing more is sent, but still heard."""
        self.socket.shutdown(socket.SHUT_WR)

    def resets(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def closes(self) -> None:
        self.socket.close()

    def fills(self) -> int:
        """Sends until nothing more is taken for a while: how many bytes that were."""
        sent = 0
        block = bytes(1 << 16)
        self.socket.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                sent += self.socket.send(block)
        self.socket.settimeout(PATIENCE)
        return sent

    def _receive(self, size: int = 1 << 16) -> bool:
        """Whether the connection goes on."""
        if self.ended != OPEN:
            return False
        try:
            data = self.socket.recv(size)
        except OSError as error:
            if error.errno not in (errno.ECONNRESET, errno.EPIPE):
                raise
            self.ended = RST
            return False
        if not data:
            self.ended = FIN
        self.heard += data
        return bool(data)


class Stage:
    """A listening socket whose connections the test takes by itself."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=512)
        self._listener.settimeout(PATIENCE)
        self.host, self.port = self._listener.getsockname()[:2]

    def accept(self) -> Peer:
        return Peer(self._listener.accept()[0])

    def connect(self) -> tuple[Peer, Peer]:
        """Client and server, with nothing between."""
        return dialed(self.host, self.port), self.accept()

    def serve(self, play: Callable[[Peer], None]) -> None:
        """From now on ``play`` the server on each connection, in a thread of its own."""

        def accept() -> None:
            self._listener.settimeout(None)
            while True:
                try:
                    peer = self.accept()
                except OSError:
                    return
                threading.Thread(target=played, args=(peer,), daemon=True).start()

        def played(peer: Peer) -> None:
            with contextlib.suppress(OSError, AssertionError), peer:
                play(peer)

        threading.Thread(target=accept, daemon=True).start()

    def close(self) -> None:
        # A close alone does not wake a thread that is in accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def dialed(host: str, port: int) -> Peer:
    since = time.time() - 0.1
    peer = Peer(socket.create_connection((host, port), timeout=PATIENCE))
    peer.since = since
    return peer


class Carrier(Arca):
    """ARCA in explicit mode with one worker, between this test's clients and ``stage``.

    ``settings`` is TOML. ``nowhere`` listens for connections to a port that refuses them.
    """

    def __init__(
        self, directory: Path, settings: str = "", *arguments: str, wrapper: tuple[str, ...] = ()
    ) -> None:
        self.stage = Stage()
        self.log = directory / "exchanges.jsonl"
        self._lines = _Lines(self.log)
        self.port, self.nowhere, self.listen = free_port(), free_port(), free_port()
        self.closed_port = free_port()
        file = directory / "arca.toml"
        file.write_text(settings)
        super().__init__(
            "-c", str(file), "--workers", "1", "--exchanges", str(self.log),
            "--listen", f"127.0.0.1:{self.listen}",
            "--forward", f"127.0.0.1:{self.port}={self.stage.host}:{self.stage.port}",
            "--forward", f"127.0.0.1:{self.nowhere}=127.0.0.1:{self.closed_port}",
            *arguments,
            wrapper=wrapper,
        )  # fmt: skip
        self.server = f"127.0.0.1:{self.stage.port}"
        self._descriptors = 0

    def __enter__(self) -> Self:
        self.wait_ready()
        (self.worker,) = self.workers()
        # What is made with the first connection and kept is no leak.
        client, server = self.connect()
        client.sends(b"\xff")
        server.hears(b"\xff")
        server.closes()
        client.closes()
        until(lambda: len(self.carried()) == 0)
        self._descriptors = self.descriptors()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            if exception[0] is None:
                self.assert_nothing_is_left()
                until(lambda: self.metric("arca_connections_active") == 0)
                until(lambda: self.metric("arca_requests_in_flight") == 0)
        finally:
            self.stage.close()
            super().__exit__(*exception)

    def connect(self) -> tuple[Peer, Peer]:
        """Client and server, with ARCA between."""
        return dialed("127.0.0.1", self.port), self.stage.accept()

    def dial(self, port: int | None = None) -> Peer:
        """A client of ARCA's, whoever the server will be."""
        return dialed("127.0.0.1", port or self.port)

    def exchanges(self, client: Peer | str, count: int = 1) -> list[Row]:
        """The exchanges of one connection, when there are ``count`` of them, in the order they ended."""
        name, since = (client, 0.0) if isinstance(client, str) else (client.name, client.since)
        found: list[Row] = []

        def are_there() -> bool:
            found[:] = [row for row in self.logged() if row["client"] == name and _began(row) >= since]
            return len(found) >= count

        until(are_there)
        assert len(found) == count, found
        return found

    def logged(self) -> list[Row]:
        return self._lines.so_far()

    def carried(self) -> list[Row]:
        """The pairs that are being carried."""
        status, body = self.get("/connections?n=1000")
        assert status == 200, body
        pairs: list[Row] = json.loads(body)
        return pairs

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.worker}/fd"))

    def resident(self) -> int:
        """The worker's resident memory in bytes."""
        (line,) = (
            line
            for line in Path(f"/proc/{self.worker}/status").read_text().splitlines()
            if line.startswith("VmRSS")
        )
        return int(line.split()[1]) * 1024

    def assert_nothing_is_left(self) -> None:
        """No pair, no descriptor, the same worker, and no defect reported."""
        try:
            until(lambda: self.carried() == [])
        except AssertionError:
            raise AssertionError(f"still carried: {self.carried()}") from None
        until(lambda: self.descriptors() <= self._descriptors)
        assert self.workers() == [self.worker]
        assert "Traceback" not in self.said
        assert "ARCA failed" not in self.said


class Inside(Arca):
    """ARCA in a network namespace, with the settings of a file."""

    def __init__(self, namespace: Namespace, directory: Path, settings: str, *arguments: str) -> None:
        self.namespace = namespace
        self.log = directory / f"exchanges-{namespace.name}.jsonl"
        self.log.unlink(missing_ok=True)
        self._lines = _Lines(self.log)
        file = directory / f"{namespace.name}.toml"
        file.write_text(settings)
        super().__init__(
            "-c", str(file), "--exchanges", str(self.log), *arguments,
            wrapper=("nsenter", f"--net=/run/netns/{namespace.name}"),
        )  # fmt: skip

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        with self.namespace.inside():
            return super().get(path, port)

    def exchanges_so_far(self) -> list[Row]:
        return self._lines.so_far()

    def exchanges(self, count: int) -> list[Row]:
        """All exchanges so far, when there are ``count`` of them."""
        until(lambda: len(self.exchanges_so_far()) >= count)
        rows = self.exchanges_so_far()
        assert len(rows) == count, rows
        return rows


class Observed(NamedTuple):
    """What the two ends of one connection heard, and how each was told that it is over."""

    client: bytes
    client_end: str
    server: bytes
    server_end: str


def observe(play: Callable[[Peer, Peer], None], client: Peer, server: Peer) -> Observed:
    """Hold the conversation, then let each end hear the rest of it, until it is over for both."""
    with client, server:
        play(client, server)
        client_end = client.ended if client.socket.fileno() < 0 else client.heard_end()
        server_end = server.ended if server.socket.fileno() < 0 else server.heard_end()
    return Observed(without_added(client.heard), client_end, without_added(server.heard), server_end)


def assert_both_ends_observe_the_same(arca: Carrier, play: Callable[[Peer, Peer], None]) -> Observed:
    """The conversation directly, and through ARCA: but for added lines neither end can tell which."""
    direct = observe(play, *arca.stage.connect())
    through = observe(play, *arca.connect())
    assert through == direct
    return direct


def verdict(exchange: Row) -> tuple[object, object]:
    """Domain and cause of a logged exchange."""
    found = exchange["verdict"]
    assert isinstance(found, dict)
    return found["domain"], found["cause"]


class _Lines:
    """The whole lines of an exchange log, each read once: tests ask again and again until one is there."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._rows: list[Row] = []
        self._read = 0  # bytes
        self._lock = threading.Lock()

    def so_far(self) -> list[Row]:
        with self._lock:
            if self._log.exists():
                with self._log.open("rb") as file:
                    file.seek(self._read)
                    text = file.read()
                text = text[: text.rfind(b"\n") + 1]
                self._rows += [json.loads(line) for line in text.splitlines()]
                self._read += len(text)
            return list(self._rows)


def _began(exchange: Row) -> float:
    return datetime.fromisoformat(str(exchange["time"])).timestamp()


def _text(name: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
