"""Thrift between two compiled ends (thrift_ends.c): strict binary, framed or buffered, 16 connections with
one call in flight on each.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from tests.bench.compiled import OPAQUE, serving, told_by
from tests.bench.processes import NotMeasured

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.bench.peers import Require

CONNECTIONS = 16

Transport = Literal["framed", "buffered"]

_CALL, _REPLY = 0x80010001, 0x80010002
_SEQUENCE = 7
_TEXT = b"arca"


@dataclass(frozen=True, slots=True)
class ThriftReport:
    calls: int
    wrong: int  # answered with something else than was sent
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def requests(self) -> int:
        return self.calls

    @property
    def requests_per_second(self) -> float:
        return self.calls / self.seconds

    @property
    def faults(self) -> str:
        return f"{self.wrong} answers differ from what was sent" if self.wrong else ""


def thrift_server(directory: Path, core: int) -> AbstractContextManager[int]:
    return serving(directory, "thrift", core)


def run_thrift(
    directory: Path, port: int, transport: Transport, opaque: bool, seconds: float, core: int
) -> ThriftReport:
    arguments = ["calls", str(port), transport, str(seconds), str(CONNECTIONS), str(int(opaque))]
    return told_by(directory, "thrift", arguments, seconds, core, ThriftReport)


def requires_echo(transport: Transport, opaque: bool) -> Require:
    """What raises NotMeasured unless two calls on one connection are answered with what they said."""
    return partial(_require_echo, transport, opaque)


def _require_echo(transport: Transport, opaque: bool, port: int, ids_expected: bool) -> None:
    """`ids_expected` does not matter: these transports have no place for ids."""
    call, reply = _message(transport, _CALL, field=1), _message(transport, _REPLY, field=0)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            for first in (OPAQUE if opaque else b"", b""):
                connection.sendall(first + call)
                received = b""
                while len(received) < len(reply) and (more := connection.recv(65_536)):
                    received += more
                if received != reply:
                    raise NotMeasured(f"a call is answered with {received[:40]!r}")
    except OSError as failure:
        raise NotMeasured(f"a call failed: {failure}") from failure


def _message(transport: Transport, kind: int, field: int) -> bytes:
    """thrift-binary-protocol.md: kind, name, sequence id; one field of type 11 (string); the struct's end."""
    head = struct.pack(">II4sI", kind, 4, b"echo", _SEQUENCE)
    message = head + struct.pack(">bhI", 11, field, len(_TEXT)) + _TEXT + b"\0"
    return message if transport == "buffered" else struct.pack(">I", len(message)) + message
