"""Both ends of the gRPC measurements, grpcio, each a process of its own:

    python -m tests.bench.rpc_ends serve PORT
    python -m tests.bench.rpc_ends ids PORT               the ids that two calls brought to the server
    python -m tests.bench.rpc_ends calls PORT SECONDS N   unary calls, N at once on one channel
    python -m tests.bench.rpc_ends messages PORT COUNT    so many streams at once, each one message both ways

The clients print one line of JSON. Messages are bytes, with no schema: the ends are to cost little.
"""

from __future__ import annotations

import json
import random
import sys
import time
from concurrent import futures

import grpc  # type: ignore[import-untyped]

from tests.bench.figures import percentile
from tests.bench.upstream import BODY

ECHO, IDS, ECHO_STREAM = "/bench.Echo/Unary", "/bench.Echo/Ids", "/bench.Echo/Stream"
MESSAGE_SIZE = 10 * 1024 * 1024

_PATIENCE_SECONDS = 120.0
_FAILURES_ENOUGH = 100
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]


class _Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return _HANDLERS.get(call.method)


def _ids(_: bytes, context: grpc.ServicerContext) -> bytes:
    metadata = dict(context.invocation_metadata())
    return f"{metadata.get('x-request-id', '')} {metadata.get('traceparent', '')}".encode()


_HANDLERS = {
    ECHO: grpc.unary_unary_rpc_method_handler(lambda message, _: message),
    IDS: grpc.unary_unary_rpc_method_handler(_ids),
    ECHO_STREAM: grpc.stream_stream_rpc_method_handler(lambda messages, _: messages),
}


def serve(port: int) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), handlers=(_Echo(),), options=_OPTIONS)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def ids(channel: grpc.Channel) -> list[str]:
    call = channel.unary_unary(IDS)
    return [call(b"", timeout=_PATIENCE_SECONDS).decode() for _ in range(2)]


def calls(channel: grpc.Channel, seconds: float, at_once: int) -> dict[str, object]:
    call = channel.unary_unary(ECHO)
    latencies: list[float] = []
    failed: list[str] = []
    wrong: list[bytes] = []
    start = time.perf_counter()

    def call_on() -> None:
        now = time.perf_counter()
        while now - start < seconds and len(failed) < _FAILURES_ENOUGH:
            asked = now
            try:
                answer = call(BODY, timeout=_PATIENCE_SECONDS)
                if answer != BODY:
                    wrong.append(answer)
            except grpc.RpcError as failure:
                failed.append(f"{failure.code().name} {failure.details()}")
            now = time.perf_counter()
            latencies.append(now - asked)

    with futures.ThreadPoolExecutor(max_workers=at_once) as threads:
        for caller in [threads.submit(call_on) for _ in range(at_once)]:
            caller.result()
    took = time.perf_counter() - start
    latencies.sort()
    return {
        "calls": len(latencies) - len(failed),
        "seconds": took,
        "p50_ms": percentile(latencies, 0.50) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
        "failed": failed,
        "wrong": len(wrong),
    }


def messages(channel: grpc.Channel, count: int) -> int:
    """How many came back as they were sent."""
    call = channel.stream_stream(ECHO_STREAM)
    block = random.Random(3).randbytes(MESSAGE_SIZE)

    def is_echoed(number: int) -> bool:
        sent = block[number:] + block[:number]
        return list(call(iter([sent]), timeout=_PATIENCE_SECONDS)) == [sent]

    with futures.ThreadPoolExecutor(max_workers=count) as threads:
        return sum(threads.map(is_echoed, range(count)))


def main(what: str, port: str, *rest: str) -> None:
    if what == "serve":
        serve(int(port))
        return
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS) as channel:
        if what == "ids":
            told: object = ids(channel)
        elif what == "calls":
            told = calls(channel, float(rest[0]), int(rest[1]))
        else:
            told = messages(channel, int(rest[0]))
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
