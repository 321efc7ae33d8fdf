"""The arithmetic of the bench: plain numbers in, plain numbers out, so that it can be tested without
measuring.

Two rules: what is compared was taken in the same round (the machine's mood is then the same for both), and
the median over the rounds is reported, never the best.
"""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of ascending values: the smallest that `share` of them do not exceed."""
    if not ordered:
        raise ValueError("no values")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def schedule(rate: int, seconds: float) -> list[float]:
    """When each request is due, in seconds after the start: evenly spaced, known before the first is sent."""
    return [number / rate for number in range(round(rate * seconds))]


def paired_ratio(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    """The median over the rounds of ours / theirs; rounds in which one was not measured do not count."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=False) if a is not None and b]
    return median(ratios) if ratios else None


def paired_difference(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    """The median over the rounds of ours - theirs; rounds in which one was not measured do not count."""
    differences = [a - b for a, b in zip(ours, theirs, strict=False) if a is not None and b is not None]
    return median(differences) if differences else None
