"""The gRPC service of the demo: a stock of things, in a process of its own.

Run as a program, on the stage, with the addresses to listen on as its arguments; prints a line when it
listens, and ends at SIGTERM. Needs nothing but grpcio: a message is plain bytes, so there is no schema and no
generated code, and on the wire it is gRPC like any other.
"""

from __future__ import annotations

import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE = "demo.Stock"
BEAT = 0.005  # seconds between two messages of a stream


def get(request: bytes, context: grpc.ServicerContext) -> bytes:
    return b"3 of " + request


def watch(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    for count in range(5, 0, -1):
        time.sleep(BEAT)
        yield b"%d of " % count + request


def sync(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    for each in requests:
        yield b"noted: " + each


def find(request: bytes, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.NOT_FOUND, "there is no " + request.decode())


def reserve(request: bytes, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNAVAILABLE, "the stock is being counted, 100 % of it")


def price(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Not before the call is over: grpcio ends it at its deadline."""
    while context.is_active():
        time.sleep(BEAT)
    return b"too late"


def export(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    for line in range(3):
        yield b"line %d" % line
    context.abort(grpc.StatusCode.DATA_LOSS, "the shelf list ends here")


def follow(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """Two messages, and more only if the caller had patience."""
    for count in (2, 1):
        yield b"%d of " % count + request
    while context.is_active():
        time.sleep(BEAT)


METHODS = {
    "Get": grpc.unary_unary_rpc_method_handler(get),
    "Watch": grpc.unary_stream_rpc_method_handler(watch),
    "Sync": grpc.stream_stream_rpc_method_handler(sync),
    "Find": grpc.unary_unary_rpc_method_handler(find),
    "Reserve": grpc.unary_unary_rpc_method_handler(reserve),
    "Price": grpc.unary_unary_rpc_method_handler(price),
    "Export": grpc.unary_stream_rpc_method_handler(export),
    "Follow": grpc.unary_stream_rpc_method_handler(follow),
}


def main(addresses: list[str]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # before grpcio starts threads, for sigwait
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, METHODS),))
    for each in addresses:
        server.add_insecure_port(each)
    server.start()
    print("listening", flush=True)
    signal.sigwait([signal.SIGTERM])
    server.stop(grace=1.0).wait()


if __name__ == "__main__":
    main(sys.argv[1:])
