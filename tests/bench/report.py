"""What was measured, as rows: one table for a person, the same rows as JSON for a script.

A row that belongs to a limit of the issue says the limit and whether it was met; a row that could not be
measured says why. Nothing here decides the exit status: a noisy machine is not a broken build.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import rich.box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `group` is what was done, `name` to whom; each median is of the `rounds`."""

    group: str
    name: str
    requests_per_second: float | None = None
    cpu_us: float | None = None
    kernel_us: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    result: str = ""
    value: float | None = None
    limit: str = ""
    met: bool | None = None
    fault: str = ""
    rounds: list[dict[str, object]] = field(default_factory=list)


def as_json(rows: Iterable[Row]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]


def print_table(rows: Iterable[Row], title: str) -> None:
    table = Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in ("requests/s", "CPU µs\n/request", "of it\nkernel", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for heading in ("result", "limit", "met"):
        table.add_column(heading)
    group = None
    for row in rows:
        if row.group != group:
            table.add_section()
            table.add_row(f"[bold]{escape(row.group)}[/bold]")
            group = row.group
        table.add_row(*_cells(row))
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a log keeps its lines whole
    console.print(table)


def _cells(row: Row) -> list[str]:
    met = {None: "", True: "[green]yes[/green]", False: "[red]no[/red]"}[row.met]
    fault = f"[yellow]! {escape(row.fault)}[/yellow]" if row.fault else ""
    return [
        f"  {row.name}",
        _number(row.requests_per_second, ",.0f"),
        _number(row.cpu_us, ".1f"),
        _number(row.kernel_us, ".1f"),
        _number(row.p50_ms, ".2f"),
        _number(row.p99_ms, ".2f"),
        " ".join(part for part in (escape(row.result), fault) if part),
        escape(row.limit),
        met,
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
