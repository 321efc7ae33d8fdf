"""The Thrift service of the demo: a stock of things, framed and binary, in a process of its own.

Run as a program, on the stage, with the addresses to listen on as its arguments; prints a line when it
listens, and ends at SIGTERM. Needs nothing but thriftpy2, whose server it is; what it can do is declared in
``stock.thrift``.
"""

from __future__ import annotations

import functools
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import thriftpy2
from thriftpy2.protocol import TBinaryProtocolFactory
from thriftpy2.server import TThreadedServer
from thriftpy2.thrift import TApplicationException, TException, TProcessor
from thriftpy2.transport import TFramedTransportFactory, TServerSocket, TTransportException

if TYPE_CHECKING:
    from collections.abc import Callable

    from thriftpy2.protocol import TProtocolBase

stock = thriftpy2.load(str(Path(__file__).with_name("stock.thrift")), module_name="stock_thrift")


class Stock:
    def count(self, thing: str) -> int:
        return 3

    def shelves(self, thing: str) -> list[object]:
        return [stock.Shelf(row=row, labels=[thing, f"{thing}, small"]) for row in range(2)]

    def note(self, thing: str) -> None:
        pass

    def reserve(self, thing: str) -> None:
        raise stock.NoSuchThing(why=f"there is no {thing}", similar=2)

    def price(self, thing: str) -> float:
        raise LookupError(f"no price list for {thing}")

    def ship(self, thing: str) -> None:
        """Hangs up on its caller: thriftpy2's server closes the connection of whom it cannot write to."""
        raise TTransportException(TTransportException.END_OF_FILE, f"the van with {thing} has left")


class Processor(TProcessor):
    """Answers an error that no method declares, as Apache's processors do; thriftpy2's own closes then."""

    def process_in(self, iprot: TProtocolBase) -> tuple[str, int, object, Callable[[], object] | None]:
        method, sequence, result, call = super().process_in(iprot)
        return method, sequence, result, None if call is None else functools.partial(_guarded, call)


def _guarded(call: Callable[[], object]) -> object:
    try:
        return call()
    except TException:
        raise
    except Exception as error:
        raise TApplicationException(TApplicationException.INTERNAL_ERROR, str(error)) from error


class Listener(TServerSocket):
    """Listens from its making on, which the server would do in its thread only."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if "[" in host else socket.AF_INET
        # No connection is closed for being idle.
        super().__init__(host.strip("[]"), int(port), socket_family=family, client_timeout=None)  # type: ignore[no-untyped-call]
        super().listen()  # type: ignore[no-untyped-call]

    def listen(self) -> None:
        pass


def main(addresses: list[str]) -> None:
    for each in addresses:
        server = TThreadedServer(
            Processor(stock.Stock, Stock()),
            Listener(each),
            itrans_factory=TFramedTransportFactory(),
            iprot_factory=TBinaryProtocolFactory(),  # type: ignore[no-untyped-call]
            daemon=True,
        )
        threading.Thread(target=server.serve, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    print("listening", flush=True)
    signal.sigwait([signal.SIGTERM])


if __name__ == "__main__":
    main(sys.argv[1:])
