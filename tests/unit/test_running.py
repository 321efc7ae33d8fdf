"""Exchanges that still run: how often the interceptor looks, and how much one look may cost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from proxy.interceptor import Interceptor
from proxy.metrics import NUMBERS, Cells
from proxy.settings import Settings
from proxy.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxy.pair import Pair


class Crowded:
    """A pair with ``running`` exchanges that are old enough."""

    def __init__(self, running: int) -> None:
        self.running = running
        self.written = 0
        self.looked = 0

    def report_running(self, before: float, now: float, room: int) -> int:
        assert before < now
        self.looked += 1
        self.written += min(self.running, max(room, 0))
        return self.running


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def intercepting(
    loop: asyncio.AbstractEventLoop, cells: Cells, *pairs: Crowded, **given: object
) -> Interceptor:
    settings = Settings(exchanges="log", **given)  # type: ignore[arg-type]
    interceptor = Interceptor(loop, settings, Telemetry(cells, None), frozenset(), 10)
    for pair in pairs:
        interceptor.remember(cast("Pair", pair))
    return interceptor


def run(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    loop.run_until_complete(asyncio.sleep(seconds))


def dropped(cells: Cells) -> float:
    number = NUMBERS["arca_dropped_records_total"]
    return sum(float(cast("float", value)) for each, _, value in cells.changes() if each == number)


def test_one_look_writes_a_thousand_lines_and_counts_the_rest(loop: asyncio.AbstractEventLoop) -> None:
    cells, pairs = Cells(), [Crowded(400) for _ in range(4)]
    intercepting(loop, cells, *pairs, report_running_seconds=0.2)
    while not any(pair.looked for pair in pairs):
        run(loop, 0.01)
    assert [pair.looked for pair in pairs] == [1] * 4
    assert sorted(pair.written for pair in pairs) == [0, 200, 400, 400]
    assert dropped(cells) == 600


def test_it_looks_again_and_again(loop: asyncio.AbstractEventLoop) -> None:
    cells, pair = Cells(), Crowded(1)
    intercepting(loop, cells, pair, report_running_seconds=0.01)
    while pair.looked < 3:
        run(loop, 0.01)
    assert dropped(cells) == 0


@pytest.mark.parametrize("given", [{"report_running_seconds": 0}, {"exchanges": ""}])
def test_it_never_looks_where_nobody_wants_to_know(
    loop: asyncio.AbstractEventLoop, given: dict[str, object]
) -> None:
    pair = Crowded(1)
    interceptor = intercepting(loop, Cells(), pair, report_running_seconds=0.01)
    # A reload takes back what was set before.
    defaults: dict[str, object] = {"exchanges": "log", "report_running_seconds": 0.01}
    interceptor.configure(Settings(**(defaults | given)), [])  # type: ignore[arg-type]
    run(loop, 0.1)
    assert pair.looked == 0


def test_a_reload_begins_to_look(loop: asyncio.AbstractEventLoop) -> None:
    pair = Crowded(1)
    interceptor = intercepting(loop, Cells(), pair, report_running_seconds=0)
    interceptor.configure(Settings(exchanges="log", report_running_seconds=0.01), [])
    while not pair.looked:
        run(loop, 0.01)
