"""The supervisor's books: what the workers counted, added up across workers and across their
replacements.

Counters and histograms arrive as increases and are only ever added, so they never go down when a worker
is replaced. Gauges arrive as values and are kept by the worker that holds them, so a dead worker's gauges
vanish with it. Pure: no clock, no I/O; one instance is used from one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from proxy.cells import BOUNDS
from proxy.metrics import FAMILIES, Change, Family, Kind, LabelCap

if TYPE_CHECKING:
    from collections.abc import Iterable

Labels = tuple[str, ...]


class Distribution(NamedTuple):
    """A histogram's state: how many values per bucket (one more than BOUNDS), and their sum in seconds."""

    counts: list[int]
    sum: float


class Sample(NamedTuple):
    """One family with all its label sets, ready to be shown."""

    family: Family
    values: dict[Labels, float]
    distributions: dict[Labels, Distribution]


class Totals:
    def __init__(self) -> None:
        self._caps = [LabelCap(family) for family in FAMILIES]
        self._counters: list[dict[Labels, float]] = [{} for _ in FAMILIES]
        self._distributions: list[dict[Labels, Distribution]] = [{} for _ in FAMILIES]
        self._gauges: dict[int, dict[tuple[int, Labels], float]] = {}

    def merge(self, source: int, changes: Iterable[Change]) -> None:
        """Takes in one message of ``source`` (a process's number); ValueError on what no cell sends."""
        for number, labels, change in changes:
            if not 0 <= number < len(FAMILIES):
                raise ValueError(f"no metric family has the number {number}")
            family = FAMILIES[number]
            if len(labels) != len(family.labels):
                raise ValueError(f"{family.name} takes the labels {family.labels}, got {labels}")
            # Each worker caps its own label sets; together they may still hold more than one family may show.
            admitted = self._caps[number].admit(labels)
            if isinstance(change, list) is not (family.kind is Kind.HISTOGRAM):
                raise ValueError(f"{family.name} is a {family.kind}, got {change!r}")
            if isinstance(change, list):
                distributions = self._distributions[number]
                distributions[admitted] = _grown(distributions.get(admitted), change)
            elif family.kind is Kind.COUNTER:
                values = self._counters[number]
                values[admitted] = values.get(admitted, 0.0) + change
            else:
                self._gauges.setdefault(source, {})[number, admitted] = change

    def forget(self, source: int) -> None:
        """A process ended: what it held is no longer held."""
        self._gauges.pop(source, None)

    def value(self, name: str, *labels: str) -> float:
        """A counter's or gauge's sum over all processes and all label sets that begin with ``labels``."""
        (sample,) = (each for each in self.samples() if each.family.name == name)
        return sum(value for key, value in sample.values.items() if key[: len(labels)] == labels)

    def samples(self) -> list[Sample]:
        """A copy of everything, in the order of the table, for a renderer in another thread."""
        gauges: list[dict[Labels, float]] = [{} for _ in FAMILIES]
        for held in self._gauges.values():
            for (number, labels), value in held.items():
                gauges[number][labels] = gauges[number].get(labels, 0.0) + value
        return [
            Sample(
                family,
                gauges[number] if family.kind is Kind.GAUGE else dict(self._counters[number]),
                dict(self._distributions[number]),
            )
            for number, family in enumerate(FAMILIES)
        ]


def _grown(before: Distribution | None, change: list[float]) -> Distribution:
    """A new record, never the old one changed: a renderer may still be reading that."""
    counts = list(before.counts) if before else [0] * (len(BOUNDS) + 1)
    for bucket, count in zip(change[1::2], change[2::2], strict=True):
        counts[int(bucket)] += int(count)
    return Distribution(counts, (before.sum if before else 0.0) + change[0])


def quantile(distribution: Distribution, q: float) -> float | None:
    """The bound in seconds below which a fraction ``q`` (0..1) of the values lies; None without values.

    The upper bound of the bucket is given, so the answer errs upwards, by at most the bucket's width.
    """
    total = sum(distribution.counts)
    if total == 0:
        return None
    seen = 0
    for bound, count in zip(BOUNDS, distribution.counts, strict=False):
        seen += count
        if seen >= q * total:
            return bound
    return float("inf")
