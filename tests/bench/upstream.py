"""The server behind every proxy: nginx with one worker, a 100-byte answer, and a place that shows the ids it
got.

Its limits (connections, requests per connection, idle time) are out of the way, so that whatever closes a
connection during a measurement is the proxy.
"""

from __future__ import annotations

import contextlib
import http.client
import re
from string import Template
from typing import TYPE_CHECKING

from tests.bench.processes import NotMeasured, program, running, wait_until_listening
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

BODY = b"arca " * 20
REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"

CONFIG = Template("""\
daemon off;
pid $directory/upstream.pid;
worker_processes 1;
worker_rlimit_nofile 20000;
events { worker_connections 16384; }
http {
    access_log off;
    keepalive_timeout 3600s;
    keepalive_requests 1000000000;
    default_type text/plain;
    server {
        listen 127.0.0.1:$port backlog=8192;
        location = /    { return 200 "$body"; }
        location = /ids { return 200 "$$http_x_request_id $$http_traceparent"; }
    }
}
""")

# X-Request-ID is whatever the proxy makes of it; traceparent is version 00 of W3C Trace Context, section 3.2.
_IDS = re.compile(r"(?P<request_id>\S{8,}) 00-(?P<trace_id>[0-9a-f]{32})-(?P<parent_id>[0-9a-f]{16})-0[01]")


@contextlib.contextmanager
def upstream(directory: Path, core: int) -> Iterator[int]:
    """Runs it for the block; gives its port."""
    port = free_port()
    config = directory / "upstream.conf"
    config.write_text(CONFIG.substitute(directory=directory, port=port, body=BODY.decode()))
    log = directory / "upstream.log"
    with running(
        [program("nginx"), "-e", "stderr", "-p", str(directory), "-c", str(config)], log, core
    ) as process:
        wait_until_listening(process, port, log)
        yield port


def is_whole_answer(received: bytes) -> bool:
    _head, found, body = received.partition(b"\r\n\r\n")
    return bool(found) and len(body) >= len(BODY)


def require_same_work(port: int, ids_expected: bool) -> None:
    """Raises NotMeasured unless the port answers as the upstream does, with new ids added to each request."""
    status, body = _get(port, "/")
    if (status, body) != (200, BODY):
        raise NotMeasured(f"answers {status} with {body[:40]!r} instead of the upstream's body")
    if ids_expected:
        require_new_ids([_ids(port), _ids(port)])


def require_new_ids(arrived: Sequence[str]) -> None:
    """Raises NotMeasured unless each request brought X-Request-ID and traceparent, and no two the same."""
    for text in arrived:
        ids = _IDS.fullmatch(text)
        if ids is None or not int(ids["trace_id"], 16) or not int(ids["parent_id"], 16):
            raise NotMeasured(f"the upstream did not get X-Request-ID and traceparent but {text!r}")
    if len(set(arrived)) < len(arrived):
        raise NotMeasured(f"gave two requests the same ids: {arrived[0]}")


def _ids(port: int) -> str:
    status, body = _get(port, "/ids")
    if status != 200:
        raise NotMeasured(f"answers {status} with {body[:40]!r} instead of the ids that arrived")
    return body.decode(errors="replace")


def _get(port: int, target: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as failure:
        raise NotMeasured(f"GET {target} failed: {failure!r}") from failure
    finally:
        connection.close()
