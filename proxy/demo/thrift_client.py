"""A Thrift client as applications have one: one connection, framed and binary, one call after another.

Run as a program of its own, on the stage, with the service's address and the first sequence id to use as its
arguments; needs nothing but thriftpy2. From its start to the end of its standard input it makes healthy
calls. Each line that it reads, a JSON object, asks for one call besides, on a connection of its own; how that
ended is printed as one line, and at last what the healthy calls saw.

Framed Thrift has no place for a request id. What a call is known by here is its sequence id, which travels
with it to the service and back: no two calls of the demo have the same.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import thriftpy2
from thriftpy2.protocol import TBinaryProtocolFactory
from thriftpy2.thrift import TApplicationException, TClient, TException
from thriftpy2.transport import TFramedTransportFactory, TSocket, TTransportException

if TYPE_CHECKING:
    from collections.abc import Iterator

    from thriftpy2.protocol import TProtocolBase

PAUSE = 0.04  # seconds between healthy calls
LIMIT_MS = 10_000  # no call of the play takes so long

stock = thriftpy2.load(str(Path(__file__).with_name("stock.thrift")), module_name="stock_thrift")


class Client(TClient):
    """thriftpy2's, which gives every call the sequence id 0, but counting them."""

    def __init__(self, sequences: Iterator[int], protocol: TProtocolBase) -> None:
        super().__init__(stock.NewerStock, protocol)
        self._sequences = sequences
        self.ids: list[str] = []

    def _send(self, _api: str, **kwargs: object) -> None:
        self._seqid = next(self._sequences)
        self.ids.append(f"sequence {self._seqid}")
        super()._send(_api, **kwargs)


class Service:
    """Where it is, and what calls to it are numbered with."""

    def __init__(self, address: str, first: int) -> None:
        host, _, port = address.rpartition(":")
        self._family = socket.AF_INET6 if "[" in host else socket.AF_INET
        self._host, self._port = host.strip("[]"), int(port)
        self._sequences = itertools.count(first)

    @contextlib.contextmanager
    def connected(self) -> Iterator[Client]:
        where = (self._host, self._port)
        connection = TSocket(*where, socket_family=self._family, socket_timeout=LIMIT_MS)  # type: ignore[no-untyped-call]
        transport = TFramedTransportFactory().get_transport(connection)  # type: ignore[no-untyped-call]
        protocol = TBinaryProtocolFactory().get_protocol(transport)  # type: ignore[no-untyped-call]
        transport.open()
        try:
            yield Client(self._sequences, protocol)
        finally:
            transport.close()


class Steady(threading.Thread):
    """Healthy calls, one after another, until ``stopped`` is set."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self.stopped = threading.Event()
        self.ids: list[str] = []
        self.failures: list[str] = []
        self._service = service

    def run(self) -> None:
        try:
            with self._service.connected() as client:
                self.ids = client.ids
                self._converse(client)
        except (OSError, TException) as error:
            self.failures.append(repr(error))

    def _converse(self, client: Client) -> None:
        turn = 0
        while not self.stopped.wait(PAUSE):
            if turn % 5 == 3:
                client.note("bolts")
            elif turn % 5 == 4:
                labels = [shelf.labels[0] for shelf in client.shelves("bolts")]
                self._expect(labels, ["bolts", "bolts"])
            else:
                self._expect(client.count("bolts"), 3)
            turn += 1
        self._expect(client.count("bolts"), 3)  # whatever was said oneway has been read then

    def _expect(self, answer: object, wanted: object) -> None:
        if answer != wanted:
            self.failures.append(f"{answer} instead of {wanted}")


def attempt(service: Service, method: str) -> dict[str, object]:
    """One call, and after one that has no answer another, which shows that it was read."""
    outcome = "no exception"
    with service.connected() as client:
        try:
            getattr(client, method)("left-handed hammer")
        except stock.NoSuchThing as error:
            outcome = f"NoSuchThing: {error.why}"
        except TApplicationException as error:
            outcome = f"TApplicationException {error.type}"
        except TTransportException as error:
            outcome = "closed" if error.type == TTransportException.END_OF_FILE else repr(error)
        if method == "note":
            client.count("left-handed hammer")
    judged, *around = client.ids
    return {"outcome": outcome, "judged": [judged], "around": around}


def main(address: str, first: int) -> None:
    service = Service(address, first)
    steady = Steady(service)
    steady.start()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            course = attempt(service, asked["method"])
        except (OSError, TException) as error:
            course = {"outcome": repr(error)}
        print(json.dumps({"name": asked["name"], **course}), flush=True)
    steady.stopped.set()
    steady.join()
    print(json.dumps({"ids": steady.ids, "failures": steady.failures}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
