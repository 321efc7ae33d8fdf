"""The servers behind the proxies when HTTP/2 is measured: nghttpd for load, for it answers at least twice as
many requests on a core as nginx does, and nginx for a look at what arrives, which nghttpd cannot give back.

Neither speaks anything but HTTP/2 here: a proxy that answers through them spoke it.
"""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING

from tests.bench.processes import NotMeasured, program, running, wait_until_listening
from tests.bench.upstream import BODY, require_new_ids
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STREAMS_AT_ONCE = (
    2_000  # what the server allows on a connection; its own default, 100, is not the proxy's limit
)

MIRROR = Template("""\
daemon off;
pid $directory/mirror.pid;
worker_processes 1;
events { worker_connections 64; }
http {
    access_log off;
    default_type text/plain;
    server {
        listen 127.0.0.1:$port http2;
        location = / { return 200 "$body"; }
        location = /ids { return 200 "$$http_x_request_id $$http_traceparent"; }
        location = /protocol { return 200 "$$server_protocol"; }
    }
}
""")


@dataclass(frozen=True, slots=True)
class Http2Servers:
    load_port: int
    mirror_port: int


@contextlib.contextmanager
def http2_servers(directory: Path, core: int) -> Iterator[Http2Servers]:
    """Runs both for the block."""
    with contextlib.ExitStack() as started:
        load_port = started.enter_context(nghttpd(directory, core))
        yield Http2Servers(load_port, started.enter_context(_mirror(directory, core)))


@contextlib.contextmanager
def nghttpd(directory: Path, core: int) -> Iterator[int]:
    """Answers 100 bytes to anything that asks for `/`; gives its port."""
    documents = directory / "documents"
    documents.mkdir(exist_ok=True)
    (documents / "index.html").write_bytes(BODY)
    port, log = free_port(), directory / "nghttpd.log"
    command = [program("nghttpd"), "--no-tls", "--address", "127.0.0.1", "--htdocs", str(documents)]
    command += ["--max-concurrent-streams", str(STREAMS_AT_ONCE), str(port)]
    with running(command, log, core) as process:
        wait_until_listening(process, port, log)
        yield port


@contextlib.contextmanager
def _mirror(directory: Path, core: int) -> Iterator[int]:
    port, log, config = free_port(), directory / "mirror.log", directory / "mirror.conf"
    config.write_text(MIRROR.substitute(directory=directory, port=port, body=BODY.decode()))
    command = [program("nginx"), "-e", "stderr", "-p", str(directory), "-c", str(config)]
    with running(command, log, core) as process:
        wait_until_listening(process, port, log)
        yield port


def require_answers(port: int, ids_expected: bool) -> None:
    """Raises NotMeasured unless the port answers HTTP/2 as nghttpd does, which cannot show the ids it got."""
    if (body := _get(port, "/")) != BODY:
        raise NotMeasured(f"answers {body[:40]!r} instead of the upstream's body")


def require_same_http2_work(port: int, ids_expected: bool) -> None:
    """Raises NotMeasured unless HTTP/2 reaches the mirror as HTTP/2, with new ids added to each request."""
    require_answers(port, ids_expected)
    if (protocol := _get(port, "/protocol")) != b"HTTP/2.0":
        raise NotMeasured(f"speaks {protocol!r} to the server behind it, not HTTP/2")
    if ids_expected:
        require_new_ids([_get(port, "/ids").decode(errors="replace") for _ in range(2)])


def _get(port: int, target: str) -> bytes:
    """The body of a 200 that came over HTTP/2."""
    curl = [program("curl"), "--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "10"]
    curl += ["--noproxy", "*", "--write-out", "\\n%{http_version} %{response_code}"]
    finished = subprocess.run(
        [*curl, f"http://127.0.0.1:{port}{target}"], capture_output=True, timeout=20, check=False
    )
    body, _, answer = finished.stdout.rpartition(b"\n")
    if finished.returncode:
        raise NotMeasured(f"GET {target} over HTTP/2 failed: {finished.stderr.decode().strip()}")
    if answer != b"2 200":
        raise NotMeasured(f"GET {target}: answered {answer.decode()} (version, status) with {body[:40]!r}")
    return body
