"""Who is on the stage: nginx with the application behind it, one ARCA for each host, and the clients.

All but the application are real programs, started where the stage says, each in a session of its own: a
Ctrl-C at the terminal reaches the demo alone, which then ends them in order. Should the demo be killed, the
kernel ends them (setpriv --pdeathsig).
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from proxy.demo import play
from proxy.demo.play import Host
from proxy.demo.stage import PATH

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from proxy.demo.play import Family, Scene
    from proxy.demo.stage import Stage

END_SECONDS = 5.0  # ARCA drains and nginx finishes long before
_NEEDED = (("nginx", "nginx-light"), ("curl", "curl"))


def missing_programs() -> list[tuple[str, str]]:
    """The programs that the play cannot do without and that are not there, each with its package."""
    return [(program, package) for program, package in _NEEDED if shutil.which(program, path=PATH) is None]


class Actor:
    """A program that runs for the whole play. Its words go to a file, which is shown if it ends badly."""

    def __init__(self, title: str, command: Sequence[str], folder: Path) -> None:
        self.title = title
        self._words = folder / f"{title.replace(' ', '-')}.log"
        self._said = folder / f"{title.replace(' ', '-')}.out"
        with self._words.open("wb") as words, self._said.open("wb") as said:
            self._process = _start(command, said.fileno(), words.fileno())

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def ask_to_end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if not self.has_ended():
            self._process.send_signal(number)

    def ended(self) -> str | None:
        """Waits for its end, and makes it end if need be; None when all is well, else what is not."""
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"{self.title} did not end within {END_SECONDS:g} s and was killed"
        return None if status == 0 else f"{self.title} ended with status {status}: {self.last_words()}"

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def said(self) -> bytes:
        return self._said.read_bytes()

    def last_words(self) -> str:
        lines = self._words.read_text(errors="replace").splitlines()
        return " / ".join(lines[-3:]) or "it said nothing"


def _start(command: Sequence[str], stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    # What a user has set for an ARCA of his own must not reach these.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ARCA_")}
    setpriv = shutil.which("setpriv", path=PATH)
    with_us = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
    return subprocess.Popen(
        [*with_us, *command],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**environment, "PATH": PATH},
        start_new_session=True,
    )


# ---- the server


def nginx(stage: Stage, folder: Path) -> Actor:
    listens = "".join(f"        listen {address};\n" for address in stage.server_addresses())
    (folder / "nginx.conf").write_text(
        _NGINX.format(
            # Its worker must reach files in a folder that is only ours.
            user="user root root;" if os.geteuid() == 0 else "",
            folder=folder,
            listens=listens,
        )
    )
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    return Actor("nginx", [*stage.on(Host.SERVER), *command], folder)


_NGINX = """\
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxied;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    default_type text/plain;
    server {{
{listens}
        location = / {{ return 200 "hello\\n"; }}
        location = /orders {{ return 201 "created\\n"; }}
        location = /missing {{ return 404 "no such thing\\n"; }}
        location = /broken {{ return 500 "out of order\\n"; }}
        location = /close {{ return 444; }}
        location / {{
            proxy_pass http://unix:{folder}/application;
            proxy_buffering off;
        }}
    }}
}}
"""


class Application:
    """What nginx asks for what it cannot do itself: to answer late, to hang, to stop in the middle."""

    def __init__(self, folder: Path) -> None:
        self._server = _Server(str(folder / "application"), _Answer)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False


class _Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        path = self.rfile.readline().split()[1]
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        match path:
            case b"/slow":
                self._answer(play.SLOW)
            case b"/hang":
                self._answer(play.HANGS)
            case b"/cut":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 2000)
            case _:
                self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def _answer(self, after: float) -> None:
        """... unless nginx, which says nothing more, hangs up before."""
        connection: socket.socket = self.connection
        if not select.select([connection], [], [], after)[0]:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ndone\n")


# ---- the proxies


class Arca(Actor):
    """A real `arca run`, started as an operator would."""

    def __init__(self, host: Host, stage: Stage, folder: Path) -> None:
        self.exchanges = folder / f"{host}.jsonl"
        configuration = folder / f"{host}.toml"
        configuration.write_text(
            f'workers = 1\nexchanges = "{self.exchanges}"\nmetrics = ""\nadmin = "{stage.admin(host)}"\n'
            + stage.settings(host)
        )
        self._ready = [*stage.on(host), "curl", "-q", "-sSf", "--noproxy", "*", "--max-time", "1"]
        self._ready += ["-o", os.devnull, f"http://{stage.admin(host)}/ready"]
        arca = [sys.executable, "-m", "proxy.cli", "run", "-c", str(configuration), *stage.flags(host)]
        super().__init__(f"the {host}'s ARCA", [*stage.on(host), *arca], folder)

    def is_ready(self) -> bool:
        return _start(self._ready, subprocess.DEVNULL, subprocess.DEVNULL).wait() == 0


# ---- the clients


class Seen(msgspec.Struct):
    """What the steady client saw."""

    request_ids: list[str]
    failures: list[str]


class SteadyClient(Actor):
    def __init__(self, family: Family, stage: Stage, folder: Path) -> None:
        program = [sys.executable, "-I", str(Path(__file__).with_name("client.py"))]
        command = [*stage.on(Host.CLIENT), *program, stage.url(family, listener=True)]
        super().__init__(f"the {family} client", command, folder)

    def seen(self) -> Seen:
        """What it printed when it had ended; nothing when it had no time to."""
        return msgspec.json.decode(self.said() or b'{"request_ids": [], "failures": []}', type=Seen)


class CurlEnd(NamedTuple):
    status: int
    http_status: str


class Curl:
    """One request of the play, under way."""

    def __init__(self, scene: Scene, family: Family, request_id: str, stage: Stage) -> None:
        self.request_id = request_id
        url = stage.url(family, listener=scene.listener) + scene.path
        command = ["curl", "-q", "-s", "--noproxy", "*", "--globoff", "-o", os.devnull, "-w", "%{http_code}"]
        command += ["--max-time", "10", *scene.options, "-H", f"X-Request-ID: {request_id}", url]
        self._began = time.monotonic()
        read, write = os.pipe()
        self._output = os.fdopen(read, "r")
        try:
            self._process = _start([*stage.on(Host.CLIENT), *command], write, subprocess.DEVNULL)
        finally:
            os.close(write)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> CurlEnd:
        """How it ended; it is made to if it has not."""
        if not self.has_ended():
            self._process.kill()
        status = self._process.wait()
        with self._output:
            return CurlEnd(status, self._output.read())
