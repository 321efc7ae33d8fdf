"""Who is measured when: the subjects take turns within each round, so that a noisy minute falls on all of
them.

What could not be measured is an outcome too: it is kept as the reason, that subject is left out of later
rounds, and the others go on.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from tests.bench.processes import NotMeasured

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Figures = TypeVar("Figures")

# What a proxy that misbehaves makes of a measurement; anything else is the bench's own fault, not caught.
_FAILURES = (NotMeasured, OSError, subprocess.SubprocessError)


@dataclass(frozen=True, slots=True)
class Turns(Generic[Figures]):
    """One subject's figures by round (None where it has none), and why there are none."""

    rounds: list[Figures | None]
    reason: str

    @property
    def measured(self) -> bool:
        return any(figures is not None for figures in self.rounds)


def take_turns(
    subjects: Sequence[str], rounds: int, measure: Callable[[str], Figures], tell: Callable[[str], None]
) -> dict[str, Turns[Figures]]:
    figures: dict[str, list[Figures | None]] = {subject: [None] * rounds for subject in subjects}
    reasons: dict[str, str] = {}
    for number in range(rounds):
        for subject in subjects:
            if subject in reasons:
                continue
            tell(f"round {number + 1} of {rounds}: {subject}")
            try:
                figures[subject][number] = measure(subject)
            except _FAILURES as failure:
                reasons[subject] = str(failure)
    return {subject: Turns(figures[subject], reasons.get(subject, "")) for subject in subjects}
