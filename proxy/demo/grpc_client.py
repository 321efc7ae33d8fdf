"""A gRPC client as applications have one: one channel, calls of several kinds on it at once.

Run as a program of its own, on the stage, with the service's address as its argument; needs nothing but
grpcio. From its start to the end of its standard input it makes healthy calls, whose request ids ARCA makes
and gives back in the initial metadata. Each line that it reads, a JSON object, asks for one call besides, on
the same connection; how that ended is printed as one line, and at last what the healthy calls saw.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading

import grpc  # type: ignore[import-untyped]

PAUSE = 0.04  # seconds between healthy calls
LIMIT = 10.0  # seconds; no call of the play takes so long

# Neither a proxy of the user's environment nor a retry may come between a call and its end.
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]


class Steady(threading.Thread):
    """Healthy calls, one after another, until ``stopped`` is set."""

    def __init__(self, channel: grpc.Channel) -> None:
        super().__init__()
        self.stopped = threading.Event()
        self.request_ids: list[str] = []
        self.failures: list[str] = []
        self._get = channel.unary_unary("/demo.Stock/Get")
        self._watch = channel.unary_stream("/demo.Stock/Watch")
        self._sync = channel.stream_stream("/demo.Stock/Sync")

    def run(self) -> None:
        turns = (self._unary, self._unary, self._unary, self._stream, self._both_ways)
        turn = 0
        while not self.stopped.wait(PAUSE):
            try:
                turns[turn % len(turns)]()
            except grpc.RpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
            turn += 1

    def _unary(self) -> None:
        answer, call = self._get.with_call(b"bolts", timeout=LIMIT)
        self._note(call, [answer], [b"3 of bolts"])

    def _stream(self) -> None:
        call = self._watch(b"bolts", timeout=LIMIT)
        self._note(call, list(call), [b"%d of bolts" % count for count in range(5, 0, -1)])

    def _both_ways(self) -> None:
        items = [b"bolts", b"nuts", b"washers"]
        call = self._sync(iter(items), timeout=LIMIT)
        self._note(call, list(call), [b"noted: " + each for each in items])

    def _note(self, call: grpc.Call, messages: list[bytes], wanted: list[bytes]) -> None:
        if messages != wanted:
            self.failures.append(f"{messages} instead of {wanted}")
        metadata = dict(call.initial_metadata())
        self.request_ids.append(str(metadata.get("x-request-id", "none")))


def attempt(
    channel: grpc.Channel, method: str, name: str, cancel_after: int | None, deadline_ms: int | None
) -> dict[str, object]:
    """One call, canceled after so many messages, or told to the service with a deadline; how it ended.

    ``name`` is its request id.
    """
    metadata = [("x-request-id", name)]
    if deadline_ms is not None:  # as metadata grpcio tells it, and does not keep it
        metadata.append(("grpc-timeout", f"{deadline_ms}m"))
    # A unary call is a stream of one message, on the wire as here.
    call = channel.unary_stream(f"/{method}")(
        b"left-handed hammer", timeout=LIMIT if deadline_ms is None else None, metadata=metadata
    )
    messages = 0
    with contextlib.suppress(grpc.RpcError):  # its code is the result, good or bad
        for _ in call:
            messages += 1
            if messages == cancel_after:
                call.cancel()
    return {"name": name, "outcome": f"{call.code().name} after {messages} messages", "judged": [name]}


def main(address: str) -> None:
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        steady = Steady(channel)
        steady.start()
        for line in sys.stdin:
            print(json.dumps(attempt(channel, **json.loads(line))), flush=True)
        steady.stopped.set()
        steady.join()
        print(json.dumps({"ids": steady.request_ids, "failures": steady.failures}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
