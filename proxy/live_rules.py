"""The supervisor's hand on the rules in the kernel: applied, compared, taken out, one change at a time.

They leave in two steps, because connections that were redirected need them to the end (netfilter.plan).

The tools block, so each call runs in a thread; and a change once begun is always finished, even when
whoever asked for it is cancelled, because rules half known to us could be left behind.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

from netfilter import commands
from proxy.redirection import identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.settings import Settings

_log = logging.getLogger("arca.rules")

_T = TypeVar("_T")


class LiveRules:
    """The rules while the supervisor runs: one change at a time, each in a thread, never cut short."""

    def __init__(self) -> None:
        self.applied = False  # something of ours may be in the kernel, and is ours to remove
        self._lock = asyncio.Lock()

    async def apply(self, settings: Settings) -> None:
        """Raises NetfilterError or ValueError (of settings), after which the rules are as they were."""
        proxy = identity(settings)
        before = self.applied
        self.applied = True  # whoever is cancelled while the tool runs must still remove what it does
        try:
            warnings = await self._alone(lambda: commands.apply(settings.rules, proxy))
        except (commands.NetfilterError, ValueError) as error:
            # A note says that one family could not be put back: then something is there after all.
            self.applied = before or bool(getattr(error, "__notes__", ()))
            raise
        for warning in warnings:
            _log.warning("%s", warning)
        _log.info("rules applied")

    async def detach(self) -> None:
        """No new connection is redirected; those that run go on until ``remove``. A failure is logged."""
        if not self.applied:
            return
        try:
            await self._alone(commands.detach)
        except commands.NetfilterError as error:
            _log.error("new connections are still redirected, run `arca rules remove`: %s", error)
        else:
            _log.info("rules detached: new connections go directly")

    async def remove(self) -> None:
        """Removes what ``apply`` applied, if it ever did; a failure is logged with what is left to do."""
        if not self.applied:
            return
        try:
            await self._alone(commands.remove)
        except commands.NetfilterError as error:
            _log.error("the rules could not be removed, run `arca rules remove`: %s", error)
        else:
            self.applied = False
            _log.info("rules removed")

    async def differences(self, settings: Settings) -> list[str]:
        """How the kernel's rules differ from the wanted ones; that they cannot be read is a difference."""
        try:
            return await self._alone(lambda: commands.check(settings.rules, identity(settings)))
        except commands.NetfilterError as error:
            return [str(error)]

    async def remarks(self, settings: Settings) -> list[str]:
        """What is no difference but worth knowing; nothing when the rules cannot be read."""
        try:
            return await self._alone(lambda: commands.remarks(settings.rules, identity(settings)))
        except commands.NetfilterError:
            return []

    async def _alone(self, work: Callable[[], _T]) -> _T:
        async def locked() -> _T:
            async with self._lock:
                return await asyncio.to_thread(work)

        # Whoever waits may be cancelled; a rule set half known to us may not be.
        return await asyncio.shield(locked())
