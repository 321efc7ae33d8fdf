"""`python -m tests.bench`: measures ARCA and its peers as the issue asks, prints one table, writes it as
JSON.

The first core is the proxies'; the last is everybody else's (load, server behind, this process). A subject
that cannot be measured, or does not do the same work, gets a row that says why, and the others are still
measured. The exit status is 0 then too: the figures are to be read by someone who knows how quiet the machine
was.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tests.bench import rows
from tests.bench.bodies import measure_bodies
from tests.bench.load import (
    Bench,
    measure_http2,
    measure_load,
    measure_mqtt,
    measure_paced,
    measure_thrift,
    measure_unary,
)
from tests.bench.memory import measure_growth, measure_idle
from tests.bench.mqtt_packets import measure_sessions
from tests.bench.peers import HTTP2_PEERS, PEERS, UNARY_PEERS, Arca, Peer, TcpRelay
from tests.bench.processes import NotMeasured
from tests.bench.report import Row, as_json, print_table
from tests.bench.rpc import measure_messages
from tests.bench.stream_peers import EnvoyTcp, EnvoyThrift
from tests.bench.streams import measure_held, measure_streams
from tests.bench.turns import Turns, take_turns
from tests.bench.upstream import upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import FrameType

    from tests.bench.mqtt_packets import Qos, Version
    from tests.bench.thrift_calls import Transport
    from tests.bench.turns import Figures

SUBJECTS: dict[str, Peer | None] = {"direct": None, **{peer.name: peer for peer in PEERS}}
HTTP2_SUBJECTS: dict[str, Peer | None] = {"direct": None, **{peer.name: peer for peer in HTTP2_PEERS}}
HTTP2_CONNECTIONS = (1, 16)
UNARY_SUBJECTS: dict[str, Peer | None] = {"direct": None, **{peer.name: peer for peer in UNARY_PEERS}}
UNARY_AT_ONCE = (1, 16)
OPAQUE = "arca, opaque"  # the subject that is sent what it does not read
THRIFT_TRANSPORTS: tuple[Transport, ...] = ("buffered", "framed")
MQTT_LOADS: tuple[tuple[Version, Qos], ...] = ((4, 0), (4, 1), (5, 0), (5, 1))
MQTT_SUBJECTS: dict[str, Peer | None] = {
    "direct": None,
    "arca": Arca("mqtt"),
    OPAQUE: Arca("tcp"),
    "haproxy tcp": TcpRelay(),
}
PACED_SUBJECTS = ("direct", "arca", "haproxy")
NAMES = (*SUBJECTS, "h2", "grpc", "thrift", "mqtt", "paced", "memory", "bodies", "streams")

progress = Console(stderr=True)


def bench(
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured; medians are reported.")] = 3,
    seconds: Annotated[
        float, typer.Option(min=1, max=60, help="How long each measurement of speed lasts.")
    ] = 8,
    only: Annotated[str, typer.Option(metavar="NAME,...", help=f"Some of {', '.join(NAMES)}.")] = "",
    json_path: Annotated[Path, typer.Option("--json", metavar="PATH")] = Path("bench-results/bench.json"),
) -> None:
    chosen = set(only.split(",")) if only else set(NAMES)
    if unknown := chosen.difference(NAMES):
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))}: allowed are {', '.join(NAMES)}", param_hint="--only"
        )
    signal.signal(signal.SIGTERM, _end_as_asked)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    with tempfile.TemporaryDirectory(prefix="arca-bench-") as directory:
        try:
            with upstream(Path(directory), cores[-1]) as port:
                measured = _measure(
                    Bench(Path(directory), port, cores[0], cores[-1]), chosen, rounds, seconds
                )
        except NotMeasured as failure:
            sys.exit(f"the server behind the proxies does not run: {failure}")
    print_table(measured, f"ARCA bench: {rounds} rounds of {seconds:g} s, medians; {_machine()}")
    _write(json_path, measured, rounds, seconds)


def _measure(bench: Bench, chosen: Collection[str], rounds: int, seconds: float) -> list[Row]:
    measured = _load(bench, [name for name in SUBJECTS if name in chosen], rounds, seconds)
    if "h2" in chosen:
        for connections in HTTP2_CONNECTIONS:
            measured += _http2(bench, connections, rounds, seconds)
    if "grpc" in chosen:
        for at_once in UNARY_AT_ONCE:
            measured += _unary(bench, at_once, rounds, seconds)
    if "thrift" in chosen:
        for transport in THRIFT_TRANSPORTS:
            measured += _thrift(bench, transport, rounds, seconds)
    if "mqtt" in chosen:
        for version, qos in MQTT_LOADS:
            measured += _mqtt(bench, version, qos, rounds, seconds)
    if "paced" in chosen:
        measured += _paced(bench, rounds, seconds)
    if "memory" in chosen:
        measured += _once(
            rows.MEMORY, "no connection", lambda arca: rows.idle_rows(measure_idle(bench, arca))
        )
        measured += _once(
            rows.MEMORY, "many requests", lambda arca: [rows.growth_row(measure_growth(bench, arca))]
        )
        measured += _once(
            rows.MEMORY,
            "idle MQTT sessions",
            lambda _: [rows.sessions_row(measure_sessions(bench, Arca("mqtt")))],
        )
    if "bodies" in chosen:
        measured += _once(rows.BODIES, "both ways", lambda arca: rows.body_rows(measure_bodies(bench, arca)))
    if "streams" in chosen:
        measured += _once(
            rows.STREAMS, "one after another", lambda arca: [rows.streams_row(measure_streams(bench, arca))]
        )
        measured += _once(rows.STREAMS, "at once", lambda arca: [rows.held_row(measure_held(bench, arca))])
        measured += _once(
            rows.MESSAGES, "at once", lambda arca: [rows.messages_row(measure_messages(bench, arca))]
        )
    return measured


def _load(bench: Bench, subjects: list[str], rounds: int, seconds: float) -> list[Row]:
    turns = take_turns(
        subjects, rounds, lambda name: measure_load(bench, SUBJECTS[name], seconds), _teller("full load")
    )
    measured = [
        _row_of(rows.LOAD, name, taken, partial(rows.load_row, rows.LOAD)) for name, taken in turns.items()
    ]
    if "arca" in turns:
        for peer in ("haproxy", "envoy"):
            if peer in turns:
                measured += rows.ratio_rows(peer, turns["arca"].rounds, turns[peer].rounds)
    return measured


def _http2(bench: Bench, connections: int, rounds: int, seconds: float) -> list[Row]:
    group = rows.http2_group(connections)
    turns = take_turns(
        list(HTTP2_SUBJECTS),
        rounds,
        lambda name: measure_http2(bench, HTTP2_SUBJECTS[name], connections, seconds),
        _teller(group),
    )
    measured = [_row_of(group, name, taken, partial(rows.load_row, group)) for name, taken in turns.items()]
    for peer in ("haproxy", "envoy"):
        measured += rows.cpu_ratio_rows(group, peer, turns["arca"].rounds, turns[peer].rounds)
    return measured


def _unary(bench: Bench, at_once: int, rounds: int, seconds: float) -> list[Row]:
    group = rows.unary_group(at_once)
    turns = take_turns(
        list(UNARY_SUBJECTS),
        rounds,
        lambda name: measure_unary(bench, UNARY_SUBJECTS[name], at_once, seconds),
        _teller(group),
    )
    relay = turns[TcpRelay.name].rounds
    return [
        _row_of(group, name, taken, partial(rows.unary_row, group, relay=relay))
        for name, taken in turns.items()
    ]


def _thrift(bench: Bench, transport: Transport, rounds: int, seconds: float) -> list[Row]:
    group = rows.thrift_group(transport)
    subjects: dict[str, Peer | None] = {
        "direct": None,
        "arca": Arca("thrift"),
        OPAQUE: Arca("tcp"),
        "haproxy tcp": TcpRelay(),
        "envoy tcp": EnvoyTcp(),
        "envoy thrift": EnvoyThrift(transport),
    }
    turns = take_turns(
        list(subjects),
        rounds,
        lambda name: measure_thrift(bench, subjects[name], transport, name == OPAQUE, seconds),
        _teller(group),
    )
    measured = [_row_of(group, name, taken, partial(rows.load_row, group)) for name, taken in turns.items()]
    return measured + rows.thrift_rows(
        group, turns["arca"].rounds, turns[OPAQUE].rounds, turns["envoy thrift"].rounds
    )


def _mqtt(bench: Bench, version: Version, qos: Qos, rounds: int, seconds: float) -> list[Row]:
    group = rows.mqtt_group(version, qos)
    turns = take_turns(
        list(MQTT_SUBJECTS),
        rounds,
        lambda name: measure_mqtt(bench, MQTT_SUBJECTS[name], version, qos, name == OPAQUE, seconds),
        _teller(group),
    )
    measured = [_row_of(group, name, taken, partial(rows.load_row, group)) for name, taken in turns.items()]
    return measured + rows.mqtt_rows(group, qos, turns["arca"].rounds, turns[OPAQUE].rounds)


def _paced(bench: Bench, rounds: int, seconds: float) -> list[Row]:
    turns = take_turns(
        PACED_SUBJECTS, rounds, lambda name: measure_paced(bench, SUBJECTS[name], seconds), _teller("paced")
    )
    direct = turns["direct"].rounds
    return [
        _row_of(rows.PACED, name, taken, lambda subject, reports: rows.paced_row(subject, reports, direct))
        for name, taken in turns.items()
    ]


def _once(group: str, name: str, measure: Callable[[Peer], list[Row]]) -> list[Row]:
    """What is measured on ARCA alone, in one round."""
    arca = SUBJECTS["arca"]
    assert arca is not None
    taken = take_turns([name], 1, lambda _: measure(arca), _teller(group))[name]
    return taken.rounds[0] or [rows.missing_row(group, name, taken.reason)]


def _row_of(
    group: str, name: str, taken: Turns[Figures], row: Callable[[str, list[Figures | None]], Row]
) -> Row:
    if not taken.measured:
        return rows.missing_row(group, name, taken.reason)
    made = row(name, taken.rounds)
    return replace(made, fault="; ".join(part for part in (made.fault, taken.reason) if part))


def _teller(what: str) -> Callable[[str], None]:
    return lambda now: progress.print(f"{what}, {now}", style="dim", highlight=False)


def _end_as_asked(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # unwinds, so that everything that was started is ended


def _machine() -> str:
    return f"Linux {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _write(path: Path, measured: list[Row], rounds: int, seconds: float) -> None:
    document = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "rounds": rounds,
        "seconds": seconds,
        "rows": as_json(measured),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    typer.run(bench)
