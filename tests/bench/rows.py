"""From the figures of the rounds to the rows of the table: medians, ratios paired per round, and the issue's
limits.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from statistics import median
from typing import TYPE_CHECKING

from tests.bench.figures import paired_difference, paired_ratio
from tests.bench.report import Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.bench.bodies import BodyFigures
    from tests.bench.load import LoadFigures
    from tests.bench.memory import GrowthFigures, IdleFigures
    from tests.bench.mqtt_packets import Qos, SessionFigures, Version
    from tests.bench.paced import PacedReport
    from tests.bench.rpc import MessageFigures
    from tests.bench.streams import HeldFigures, StreamFigures
    from tests.bench.thrift_calls import Transport

LOAD = "wrk -c32, 100-byte answer"
RATIOS = "ARCA, paired per round"
PACED = "1,000/s on 16 connections"
MEMORY = "memory of the worker"
BODIES = "10 MB bodies, 50 at once"
STREAMS = "HTTP/2 streams on one connection"
MESSAGES = "10 MB gRPC messages both ways"

_MIB = 1024


def http2_group(connections: int) -> str:
    return f"h2load -c{connections} -m32, 100-byte answer"


def unary_group(at_once: int) -> str:
    return f"unary gRPC calls, {at_once} at once"


def thrift_group(transport: Transport) -> str:
    return f"Thrift calls, {transport} binary, 16 connections"


def mqtt_group(version: Version, qos: Qos) -> str:
    said = "3.1.1" if version == 4 else "5"
    return f"MQTT {said}, QoS {qos}, 16 connections"


def load_row(group: str, subject: str, rounds: Sequence[LoadFigures | None]) -> Row:
    """The medians of the rounds in which it was measured (at least one)."""
    taken = [figures for figures in rounds if figures is not None]
    return Row(
        group,
        subject,
        requests_per_second=median(figures.requests_per_second for figures in taken),
        cpu_us=_median_of(figures.cpu_us for figures in taken),
        kernel_us=_median_of(figures.kernel_us for figures in taken),
        p50_ms=_median_of(figures.p50_ms for figures in taken),
        p99_ms=_median_of(figures.p99_ms for figures in taken),
        fault="; ".join(sorted({figures.faults for figures in taken if figures.faults})),
        rounds=[asdict(figures) for figures in taken],
    )


# The peer, and what ARCA's CPU per request may be of the peer's; requests/s likewise, the other way up.
_LIMITS = {"haproxy": (1.25, "aim 1.00, limit 1.25"), "envoy": (0.5, "limit 0.50")}


def ratio_rows(
    peer: str, ours: Sequence[LoadFigures | None], theirs: Sequence[LoadFigures | None]
) -> list[Row]:
    highest, _ = _LIMITS[peer]
    rows = cpu_ratio_rows(RATIOS, peer, ours, theirs)
    speed = paired_ratio([_speed(f) for f in ours], [_speed(f) for f in theirs])
    if speed is not None:
        said = f"at least {1 / highest:.2f}" + (", aim 1.00" if highest > 1 else "")
        met = speed >= 1 / highest
        rows.append(
            Row(RATIOS, f"requests/s / {peer}'s", result=f"{speed:.2f}", value=speed, limit=said, met=met)
        )
    return rows


def cpu_ratio_rows(
    group: str, peer: str, ours: Sequence[LoadFigures | None], theirs: Sequence[LoadFigures | None]
) -> list[Row]:
    """No row where there is no round in which both were measured."""
    highest, said = _LIMITS[peer]
    cpu = paired_ratio([_cpu(f) for f in ours], [_cpu(f) for f in theirs])
    if cpu is None:
        return []
    met = cpu <= highest
    return [Row(group, f"CPU / {peer}'s", result=f"{cpu:.2f}", value=cpu, limit=said, met=met)]


def unary_row(
    group: str,
    subject: str,
    rounds: Sequence[LoadFigures | None],
    relay: Sequence[LoadFigures | None],
) -> Row:
    """ARCA's is judged, and says what it took more than a relay that does nothing with the bytes."""
    row = load_row(group, subject, rounds)
    if subject != "arca" or row.cpu_us is None:
        return row
    more = paired_difference([_cpu(f) for f in rounds], [_cpu(f) for f in relay])
    result = "" if more is None else f"{more:+.1f} µs to passing bytes only"
    return replace(row, result=result, value=row.cpu_us, limit="CPU 60 µs", met=row.cpu_us <= 60)


THRIFT_ADDS = 12.0  # µs per call that reading may take more than passing the same bytes
THRIFT_OF_ENVOY = 0.6
MQTT_ADDS = 8.0  # µs per packet


def thrift_rows(
    group: str,
    ours: Sequence[LoadFigures | None],
    opaque: Sequence[LoadFigures | None],
    envoy: Sequence[LoadFigures | None],
) -> list[Row]:
    """What is judged, each where there is a round in which both were measured."""
    judged = []
    adds = paired_difference([_cpu(f) for f in ours], [_cpu(f) for f in opaque])
    if adds is not None:
        limit = f"{THRIFT_ADDS:.0f} µs per call"
        said, met = f"{adds:+.1f} µs per call", adds <= THRIFT_ADDS
        judged.append(Row(group, "reading adds", result=said, value=adds, limit=limit, met=met))
    share = paired_ratio([_cpu(f) for f in ours], [_cpu(f) for f in envoy])
    if share is not None:
        limit, met = f"limit {THRIFT_OF_ENVOY:.2f}", share <= THRIFT_OF_ENVOY
        judged.append(
            Row(group, "CPU / envoy thrift's", result=f"{share:.2f}", value=share, limit=limit, met=met)
        )
    return judged


def mqtt_rows(
    group: str, qos: Qos, ours: Sequence[LoadFigures | None], opaque: Sequence[LoadFigures | None]
) -> list[Row]:
    """With QoS 1 a PUBLISH and its PUBACK are two packets; the other columns are of the two together."""
    adds = paired_difference([_cpu(f) for f in ours], [_cpu(f) for f in opaque])
    if adds is None:
        return []
    packets = 1 + qos
    each = adds / packets
    said = f"{each:+.1f} µs per packet" + (f", {adds:+.1f} per PUBLISH with its PUBACK" if qos else "")
    limit = f"{MQTT_ADDS:.0f} µs per packet"
    return [Row(group, "reading adds", result=said, value=each, limit=limit, met=each <= MQTT_ADDS)]


def paced_row(
    subject: str, rounds: Sequence[PacedReport | None], direct: Sequence[PacedReport | None]
) -> Row:
    taken = [report for report in rounds if report is not None]
    added = paired_difference([_p99(r) for r in rounds], [_p99(r) for r in direct])
    added_p50 = paired_difference([_p50(r) for r in rounds], [_p50(r) for r in direct])
    compared = subject != "direct" and added is not None and added_p50 is not None
    judged = compared and subject == "arca"
    return Row(
        PACED,
        subject,
        p50_ms=median(report.p50_ms for report in taken),
        p99_ms=median(report.p99_ms for report in taken),
        result=f"adds {added:.2f} ms at p99, {added_p50:.2f} at p50" if compared else "",
        value=added if compared else None,
        limit="p99 + 1.00 ms" if judged else "",
        met=added <= 1.0 if judged and added is not None else None,
        rounds=[asdict(report) for report in taken],
    )


def idle_rows(figures: IdleFigures) -> list[Row]:
    resident, proportional = figures.at_rest.resident / _MIB, figures.at_rest.proportional / _MIB
    pair = figures.kib_per_pair
    at_rest = f"{resident:.1f} MB resident, {proportional:.1f} proportional"
    held = f"{pair:.1f} KB per pair, {figures.pairs:,} held"
    return [
        Row(MEMORY, "no connection", result=at_rest, value=resident, limit="45 MB", met=resident <= 45),
        Row(
            MEMORY,
            "idle pairs",
            result=held,
            value=pair,
            limit="5,000 held, 12 KB each",
            met=pair <= 12 and figures.pairs >= 5_000,
        ),
    ]


def growth_row(figures: GrowthFigures) -> Row:
    grown = figures.kib / _MIB
    return Row(
        MEMORY,
        "many requests",
        result=f"{grown:+.2f} MB over {figures.requests:,} requests",
        value=grown,
        limit="none (1 MB is noise)",
        met=grown < 1,
        fault=figures.faults,
    )


def sessions_row(figures: SessionFigures) -> Row:
    each = figures.kib_per_session
    return Row(
        MEMORY,
        "idle MQTT sessions",
        result=f"{each:.1f} KB per session, {figures.sessions:,} held",
        value=each,
        limit="2,000 held, 14 KB each",
        met=each <= 14 and figures.sessions >= 2_000,
    )


def body_rows(figures: BodyFigures) -> list[Row]:
    return [
        _body_row("upload", figures.uploads, figures.at_once, figures.upload_peak_kib / _MIB),
        _body_row("download", figures.downloads, figures.at_once, figures.download_peak_kib / _MIB),
    ]


def _body_row(way: str, identical: int, at_once: int, peak: float) -> Row:
    return Row(
        BODIES,
        way,
        result=f"{identical} of {at_once} identical, memory {peak:+.1f} MB at its peak",
        value=peak,
        limit="identical, below 64 MB",
        met=identical == at_once and peak < 64,
    )


def streams_row(figures: StreamFigures) -> Row:
    grown = figures.kib / _MIB
    return Row(
        STREAMS,
        "one after another",
        result=f"{grown:+.2f} MB over {figures.streams:,} streams",
        value=grown,
        limit="none (1 MB is noise)",
        met=grown < 1,
    )


def held_row(figures: HeldFigures) -> Row:
    per_stream = f"{figures.kib_per_stream:.1f} KB per stream"
    return Row(
        STREAMS,
        "at once",
        result=f"{figures.answered:,} of {figures.held:,} answered, {per_stream}",
        value=figures.answered,
        limit="1,000 at once",
        met=figures.answered == figures.held >= 1_000,
    )


def messages_row(figures: MessageFigures) -> Row:
    peak = figures.peak_kib / _MIB
    return Row(
        MESSAGES,
        f"{figures.at_once} at once",
        result=f"{figures.identical} of {figures.at_once} identical, memory {peak:+.1f} MB at its peak",
        value=peak,
        limit="identical, below 64 MB",
        met=figures.identical == figures.at_once and peak < 64,
    )


def missing_row(group: str, name: str, why: str) -> Row:
    return Row(group, name, fault=f"not measured: {why}")


def _median_of(figures: Iterable[float | None]) -> float | None:
    """Of those that are known; None when none is."""
    known = [figure for figure in figures if figure is not None]
    return median(known) if known else None


def _cpu(figures: LoadFigures | None) -> float | None:
    return None if figures is None else figures.cpu_us


def _speed(figures: LoadFigures | None) -> float | None:
    return None if figures is None else figures.requests_per_second


def _p50(report: PacedReport | None) -> float | None:
    return None if report is None else report.p50_ms


def _p99(report: PacedReport | None) -> float | None:
    return None if report is None else report.p99_ms
