"""A gRPC service of plain bytes, its client, and what each of them saw of a call.

A message is bytes, so there is no schema and no generated code, and on the wire it is gRPC like any other.
What the server saw of the calls is kept in ``calls``; what a client saw of one is an ``Outcome``. Run as a
program with a port, it serves there until it is killed.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Self

import grpc  # type: ignore[import-untyped]

from tests.system.processes import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NAME = "test.Echo"
KINDS = ("Unary", "Client", "Server", "Both")
STREAMS_MAX = 160  # calls at once; each has a thread

Metadata = list[tuple[str, "str | bytes"]]

_SIZES = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Seen(NamedTuple):
    """What the server saw when a call began."""

    method: str
    metadata: Metadata
    remaining: float | None  # seconds until the deadline


class Outcome(NamedTuple):
    """What the client saw of a call."""

    messages: list[bytes]
    initial: Metadata
    trailing: Metadata
    code: str
    details: str

    def without_added(self) -> Outcome:
        return self._replace(initial=without_id(self.initial), trailing=without_id(self.trailing))


def without_id(metadata: Metadata) -> Metadata:
    """Without what ARCA adds; grpcio's own user-agent and peer are alike on both ways."""
    return [pair for pair in metadata if pair[0] not in ("x-request-id", "traceparent")]


class Service:
    """The server. Of its methods KINDS answer what they hear; Fail, FailLater and Wait do as they say."""

    def __init__(self, port: int = 0) -> None:
        self.calls: list[Seen] = []
        self.canceled = threading.Semaphore(0)  # one for each call that ended before Wait was done
        self.release = threading.Event()  # lets Wait go on
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self._unary),
            "Client": grpc.stream_unary_rpc_method_handler(self._client),
            "Server": grpc.unary_stream_rpc_method_handler(self._server),
            "Both": grpc.stream_stream_rpc_method_handler(self._both),
            "Fail": grpc.unary_unary_rpc_method_handler(self._fail),
            "FailLater": grpc.unary_stream_rpc_method_handler(self._fail_later),
            "Wait": grpc.stream_stream_rpc_method_handler(self._wait),
        }
        self._server_ = grpc.server(
            ThreadPoolExecutor(STREAMS_MAX),
            handlers=(grpc.method_handlers_generic_handler(NAME, handlers),),
            options=[*_SIZES, ("grpc.so_reuseport", 0)],
        )
        self.port = int(self._server_.add_insecure_port(f"127.0.0.1:{port}"))
        self._server_.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, grace: float | None = None) -> None:
        self.release.set()
        self._server_.stop(grace).wait(PATIENCE)

    def say_goodbye(self) -> None:
        """GOAWAY now; calls in flight may go on."""
        self._server_.stop(PATIENCE)

    def wait_forever(self) -> None:
        self._server_.wait_for_termination()

    def _begins(self, method: str, context: grpc.ServicerContext) -> None:
        metadata = [(key, value) for key, value in context.invocation_metadata()]
        self.calls.append(Seen(method, metadata, context.time_remaining()))
        given = dict(metadata)
        if "x-give" in given:
            context.send_initial_metadata(
                (("x-initial", "1"), ("x-initial", "2"), ("x-blob-bin", b"\x00\xff\x80"))
                + ((("x-request-id", given["x-own-id"]),) if "x-own-id" in given else ())
            )
            context.set_trailing_metadata((("x-trailing", "a"), ("x-trail-bin", bytes(range(256)))))
        if "x-compress" in given:
            context.set_compression(grpc.Compression.Gzip)

    def _unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self._begins("Unary", context)
        return request

    def _client(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        self._begins("Client", context)
        sizes = [len(each) for each in requests]
        return b"%d messages of %d bytes" % (len(sizes), sum(sizes))

    def _server(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """``b"count message"`` is answered with so many messages."""
        self._begins("Server", context)
        count, _, message = request.partition(b" ")
        for n in range(int(count)):
            yield b"%d %b" % (n, message)

    def _both(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self._begins("Both", context)
        yield from requests

    def _fail(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """``b"code details"``."""
        self._begins("Fail", context)
        code, _, details = request.partition(b" ")
        status = next(each for each in grpc.StatusCode if each.value[0] == int(code))
        context.abort(status, details.decode())
        raise AssertionError("abort() raises")

    def _fail_later(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"one message"
        self._fail(request, context)

    def _wait(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """A first answer, the next when the test says so or the call is over."""
        self._begins("Wait", context)
        over = threading.Event()
        context.add_callback(over.set)
        yield b"waiting"
        while not self.release.is_set():
            if over.wait(0.01):
                self.canceled.release()
                return
        yield b"released"


class Client:
    """A channel of its own, which no other shares."""

    def __init__(self, port: int, **options: int) -> None:
        self.port = port
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{port}",
            options=[
                *_SIZES,
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
                *((f"grpc.{name}", value) for name, value in options.items()),
            ],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def call(
        self,
        method: str,
        messages: Iterable[bytes],
        metadata: Metadata | None = None,
        timeout: float = PATIENCE,
        gzip: bool = False,
        wait: bool = False,
    ) -> Outcome:
        """Any method, with as many messages as it takes, to its end."""
        with Call(self, method, messages, metadata, timeout, gzip, wait) as running:
            return running.outcome()

    def four_kinds(self) -> list[list[bytes]]:
        """The answers to a call of each of KINDS, made in grpcio's four ways."""
        three = [b"1", b"22", b"333"]
        unary = self.channel.unary_unary(f"/{NAME}/Unary")(three[2], timeout=PATIENCE)
        client = self.channel.stream_unary(f"/{NAME}/Client")(iter(three), timeout=PATIENCE)
        server = self.channel.unary_stream(f"/{NAME}/Server")(b"3 x", timeout=PATIENCE)
        both = self.channel.stream_stream(f"/{NAME}/Both")(iter(three), timeout=PATIENCE)
        return [[unary], [client], list(server), list(both)]


class Call:
    """One call, of whatever kind: to the wire the four are one."""

    def __init__(
        self,
        client: Client,
        method: str,
        messages: Iterable[bytes],
        metadata: Metadata | None = None,
        timeout: float = PATIENCE,
        gzip: bool = False,
        wait: bool = False,
    ) -> None:
        begin: Callable[..., grpc.Call] = client.channel.stream_stream(f"/{NAME}/{method}")
        self._call = begin(
            iter(messages),
            timeout=timeout,
            metadata=metadata or [],
            compression=grpc.Compression.Gzip if gzip else None,
            wait_for_ready=wait,
        )
        self.heard: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._call.cancel()

    def hears(self) -> bytes:
        """The next message."""
        message: bytes = next(self._call)
        self.heard.append(message)
        return message

    def cancel(self) -> None:
        self._call.cancel()

    def outcome(self) -> Outcome:
        """What there was when it is over."""
        with contextlib.suppress(grpc.RpcError):  # it is in what follows
            for message in self._call:
                self.heard.append(message)
        return Outcome(
            self.heard,
            [(key, value) for key, value in self._call.initial_metadata() or ()],
            [(key, value) for key, value in self._call.trailing_metadata() or ()],
            str(self._call.code().name),
            str(self._call.details()),
        )


def ids_seen(service: Service, count: int) -> list[str]:
    """The request ids of the calls so far, which are ``count``."""
    until(lambda: len(service.calls) >= count)
    assert len(service.calls) == count
    return [str(value) for call in service.calls for key, value in call.metadata if key == "x-request-id"]


if __name__ == "__main__":
    Service(int(sys.argv[1])).wait_forever()
