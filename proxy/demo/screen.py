"""What is shown: the edges while it runs, each kind of outcome with an example, injected against named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from protocols.verdict import Domain
from proxy.demo.play import BOTH, Host

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import RenderableType

    from proxy.demo.records import Exchange, Finding, Judgement, Logs, Outcome
    from proxy.demo.stage import Stage

from proxy.demo import records

# Columns for the tables as they are meant to be; in fewer, down to 80, a row becomes two lines. What is
# piped into a file has no width of its own, and gets these.
_WIDE = 110

_SERVERS = {"gRPC": "a gRPC service", "Thrift": "a Thrift service", "MQTT": "mosquitto"}

_MQTT_VERSIONS = {3: "3.1", 4: "3.1.1", 5: "5"}  # by protocol level

_COMPLAINTS = 20  # shown at most: one defect may have hundreds

_COLOUR = {
    Domain.OK: "green",
    Domain.CLIENT: "magenta",
    Domain.APPLICATION: "yellow",
    Domain.INFRASTRUCTURE: "red",
    Domain.PROXY: "blue",
    Domain.UNKNOWN: "white",
}


class Screen:
    """The terminal, or the file that stands in for it: then there is no redrawing, and no colour."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, markup=False, emoji=False)
        if not self._console.is_terminal:
            self._console.width = _WIDE
        self._narrow = self._console.width < _WIDE
        self._ticks = ("✓", "✗") if self._console.encoding.startswith("utf") else ("yes", "NO")
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def open(self, stage: Stage, command: str, gaps: Mapping[str, str]) -> None:
        say = self._console.print
        say(Text("ARCA demo", style="bold") + Text(f": {stage.title}"))
        for remark in stage.remarks:
            say(Text(remark, style="yellow"))
        for protocol, reason in gaps.items():
            say(Text(f"Without {protocol}: {reason}.", style="yellow"))
        servers = ["nginx", *(server for protocol, server in _SERVERS.items() if protocol not in gaps)]
        say(Text(f"client -> ARCA -> ARCA -> {', '.join(servers)}"))
        say(Text("each ARCA is a real:  ") + Text(command, style="cyan"))
        if self._console.is_terminal:
            self._live.start()

    def update(self, logs: Logs, now: str) -> None:
        if self._live.is_started:
            self._live.update(
                # A terminal that is too low for the table loses its end.
                Group(Text(f"  now: {now}", style="cyan"), _edges(logs, narrow=self._narrow)),
                refresh=True,
            )

    def close(self) -> None:
        self._live.stop()

    def complain(self, text: str) -> None:
        self._console.print(Text(text, style="bold red"))

    def report(self, logs: Logs, judgement: Judgement, wrong: list[str], seconds: float) -> None:
        say = self._console.print
        say(_edges(logs, narrow=self._narrow))
        say(
            Text(
                "Outcomes: confidence, request, times seen by the client's + the server's ARCA", style="bold"
            )
        )
        for outcome, seen in records.outcomes(logs).items():
            say(_outcome(outcome, seen))
        say()
        say(self._findings(judgement.findings))
        say(self._tick(judgement.joined == judgement.at_both), end="")
        say(f" {judgement.joined} of {judgement.at_both} requests that both ARCAs saw have one trace id")
        if judgement.delivered:
            say(self._tick(judgement.shared == judgement.delivered), end="")
            say(
                f" {judgement.shared} of {judgement.delivered} MQTT messages have it from their publisher to "
                "their subscriber"
            )
        say(self._tick(judgement.named == judgement.faults == judgement.called_faults), end="")
        say(
            f" {judgement.named} of {judgement.faults} faults got their verdict (recall), "
            f"{judgement.named} of {judgement.called_faults} that were called faults were (precision)"
        )
        say(self._tick(not wrong), end="")
        if wrong:
            say(f" {len(wrong)} things are not as they should be:")
            for line in wrong[:_COMPLAINTS]:
                say(Text(f"  - {line}", style="red"))
            if len(wrong) > _COMPLAINTS:
                say(Text(f"  and {len(wrong) - _COMPLAINTS} more", style="red"))
        else:
            say(f" every fault got its verdict, and every process ended well; {seconds:.0f} s")

    def _findings(self, findings: tuple[Finding, ...]) -> Table:
        table = Table(box=SIMPLE_HEAD, padding=0)
        table.add_column("injected", no_wrap=True)
        table.add_column("times", justify="right")
        if not self._narrow:
            table.add_column("what it must be called", no_wrap=True)
        for host in BOTH:
            table.add_column(f"{host}'s ARCA", justify="right")
        table.add_column("")
        for finding in findings:
            times = len(finding.injected.known_as)
            what = Text(finding.injected.what)
            expected = Text(str(finding.injected.expected), style=_COLOUR[finding.injected.expected.domain])
            counts = ["never there" if n is None else f"{n} of {times}" for n in finding.named.values()]
            tick = self._tick(not finding.wrong)
            if self._narrow:
                table.add_row(Text("\n  ").join([what, expected]), str(times), *counts, tick)
            else:
                table.add_row(what, str(times), expected, *counts, tick)
        return table

    def _tick(self, good: bool) -> Text:
        return Text(self._ticks[0], style="bold green") if good else Text(self._ticks[1], style="bold red")


def _edges(logs: Logs, *, narrow: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0)
    for heading in ("edge",) if narrow else ("ARCA of", "edge", "direction", "protocol"):
        table.add_column(heading, no_wrap=True)
    domains = (Domain.OK, Domain.CLIENT, Domain.APPLICATION, Domain.INFRASTRUCTURE)
    headings = ("ok", "client", "app", "infra")
    for heading in ("calls", *headings, "other", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for edge, tally in records.edges(logs).items():
        counts = [tally.domains[domain] for domain in domains]
        total = tally.domains.total()
        ends = f"{edge.client} -> {edge.server}"
        if narrow:
            what = [f"{ends}\n  at {edge.seen_at}, {edge.direction}, {edge.protocol}"]
        else:
            what = [edge.seen_at, ends, edge.direction, edge.protocol]
        table.add_row(
            *what,
            str(total),
            *(_count(n, _COLOUR[domain]) for n, domain in zip(counts, domains, strict=True)),
            _count(total - sum(counts), _COLOUR[Domain.PROXY]),
            f"{tally.percentile(0.5):.1f}",
            f"{tally.percentile(0.99):.1f}",
        )
    return table


def _count(n: int, colour: str) -> Text:
    return Text(str(n), style=colour) if n else Text("-", style="dim")


def _outcome(outcome: Outcome, seen: dict[Host, list[Exchange]]) -> RenderableType:
    # The same request at both, if there is one; else whoever saw it.
    example, other = _example(seen)
    verdict = example.verdict
    style = _COLOUR.get(Domain(verdict.domain), "white")
    line = Text(f"{verdict!s:<31}", style=style)
    line.append(f"{verdict.confidence:<5.2f}", style="dim")
    line.append(f"{outcome.request} -> {outcome.answer}".ljust(32) + " ")
    line.append(" + ".join(str(len(seen[host])) for host in BOTH))
    return Group(
        line,
        *(Padding(Text(text, style="dim"), (0, 0, 0, 4), expand=False) for text in _proof(example, other)),
    )


def _proof(example: Exchange, other: Exchange | None) -> Iterator[str]:
    if example.verdict.explain:
        yield example.verdict.explain
    if example.verdict.check:
        yield f"check: {example.verdict.check}"
    if (grpc := example.grpc) is not None:
        first = ""
        if grpc.first_message_ms is not None:
            first = f", the first after {grpc.first_message_ms:.1f} of {example.duration_ms:.1f} ms"
        yield f"messages: {grpc.request_messages} to the service, {grpc.response_messages} back{first}"
    where = "at one ARCA only"
    if other is not None:
        where = "at both" if other.trace_id == example.trace_id else f"but {other.trace_id} at the server's"
    yield f"{_identity(example)}, {where}"


def _identity(each: Exchange) -> str:
    if (call := each.thrift) is not None:
        return f"{call.transport} {call.encoding}, sequence id {call.sequence}, no place for a trace id"
    if (packet := each.mqtt) is None:
        return f"request id {each.request_id}, trace id {each.trace_id}"
    quality = "" if packet.qos is None else f", QoS {packet.qos}{', retained' if packet.retain else ''}"
    trace = f"trace id {each.trace_id}" if each.is_traced else "no place for a trace id"
    version = _MQTT_VERSIONS.get(packet.version, "")
    return f"MQTT {version}{quality}, client {packet.client_id}, {trace}"


def _example(seen: dict[Host, list[Exchange]]) -> tuple[Exchange, Exchange | None]:
    at_server = {each.known_as: each for each in seen[Host.SERVER]}
    for each in seen[Host.CLIENT]:
        if each.known_as in at_server:
            return each, at_server[each.known_as]
    return (seen[Host.CLIENT] or seen[Host.SERVER])[0], None
