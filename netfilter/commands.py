"""The rules in the kernel: apply, check, remove. The thin I/O around `netfilter.render` and `netfilter.plan`.

Each change of a family is one run of `iptables-restore --noflush`, which the kernel takes whole or not at
all. The two families are two tables and two tools, so what was done to the first is undone when the second
fails. Works on the network namespace of the calling thread. Never touches a rule that is not ours.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from netfilter.plan import detached, differences, notes, plan, snapshot
from netfilter.render import NOTHING, Family, ProxyIdentity, RuleSet, rule_set
from netfilter.rules import RuleSettings

# Administrators' tools are not on the PATH of every service or cron job.
_TOOL_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))

# Seconds to wait for the xtables lock, which the legacy tools of every program on the host share.
_LOCK_WAIT = "10"
_TIMEOUT_SECONDS = 60.0

# How often a change is planned anew when another program changed the table between our read and our write.
_ATTEMPTS = 3

_PREFIX = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}

_T = TypeVar("_T")


class NetfilterError(Exception):
    """The kernel's rules could not be read or changed; nothing of ours was changed.

    `action` is what was tried, `detail` the tool's own words, `advice` what an operator can do.
    """

    def __init__(self, action: str, detail: str, advice: str) -> None:
        super().__init__(f"{action}: {detail}; {advice}" if detail else f"{action}: {advice}")
        self.action = action
        self.detail = detail
        self.advice = advice


def apply(settings: RuleSettings, proxy: ProxyIdentity) -> list[str]:
    """Make the live rules those of `settings`; return warnings, one sentence each.

    Rules that are already as wanted are not touched. A family that is switched off loses rules left from
    before. Raises RuleError for a bad setting and NetfilterError when the kernel or a tool refuses; then both
    families are as they were.
    """
    wanted = {family: rule_set(settings, proxy, family) for family in Family}
    done: list[tuple[Family, RuleSet]] = []
    try:
        for family in _usable_families():
            before = _change(family, wanted[family])
            done.append((family, before))
    except NetfilterError as failure:
        for family, before in done:
            try:
                _change(family, before)
            except NetfilterError as error:
                failure.add_note(f"and the IPv{family.value} rules could not be put back: {error}")
        raise
    return _warnings(settings)


def check(settings: RuleSettings, proxy: ProxyIdentity) -> list[str]:
    """How the live rules differ from those of `settings`, a sentence each with its family.

    Empty when they are as wanted. Changes nothing. Raises RuleError and NetfilterError as `apply` does.
    """
    return [
        f"IPv{family.value} {difference}"
        for family in _usable_families()
        for difference in differences(_save(family), rule_set(settings, proxy, family))
    ]


def remarks(settings: RuleSettings, proxy: ProxyIdentity) -> list[str]:
    """What is no difference but worth knowing of the live rules, a sentence each; otherwise as `check`."""
    return [
        f"IPv{family.value} {note}"
        for family in _usable_families()
        for note in notes(_save(family), rule_set(settings, proxy, family))
    ]


def detach() -> None:
    """Take out only what leads into our chains, in both families: no new connection is redirected.

    The connections that were redirected before go on, because our chains stay; see `plan.detached`. `remove`
    takes those out. Both families are tried before the first NetfilterError is raised.
    """
    _in_each_family(lambda family: _transact(family, lambda save: detached(save, family)))


def remove() -> bool:
    """Take out all that is ours, in both families; whether there was anything.

    Needs no settings: whatever stands in our chains or leads to them goes. Running redirected connections are
    cut where nothing else in the namespace uses connection tracking. Both families are tried before the first
    NetfilterError is raised.
    """
    return any(map(any, _in_each_family(lambda family: _change(family, NOTHING))))


def has_ipv6() -> bool:
    """Whether the kernel speaks IPv6 in this namespace at all (booted without ipv6.disable=1)."""
    return Path("/proc/thread-self/net/if_inet6").exists()


def advice(status: int, stderr: str) -> str:
    """What an operator can do about a failed iptables tool, from its exit status and its words. Pure.

    Statuses are those of iptables/include/xtables.h: 4 is RESOURCE_PROBLEM, the lock among others.
    """
    said = stderr.lower()
    if "permission denied" in said or "operation not permitted" in said:
        return "run as root, or with CAP_NET_ADMIN and CAP_NET_RAW"
    if "xtables lock" in said or "temporarily unavailable" in said:
        return f"another program has held the xtables lock for {_LOCK_WAIT} seconds; try again"
    if "incompatible" in said:
        return (
            "table nat has rules that were not made by iptables (see `nft list ruleset`); move them elsewhere"
        )
    missing = (
        "no chain/target/match",
        "missing kernel module",
        "can't initialize",
        "couldn't load",
        "extension",
    )
    if any(words in said for words in missing):
        return (
            "the kernel lacks a part that the rules need; "
            "try modprobe nf_nat xt_REDIRECT xt_owner xt_mark xt_multiport xt_addrtype xt_comment"
        )
    return f"the tool ended with status {status}; the rules are as they were"


def _usable_families() -> Iterator[Family]:
    yield Family.IPV4
    if has_ipv6():
        yield Family.IPV6


def _warnings(settings: RuleSettings) -> list[str]:
    if settings.ipv6 and not has_ipv6():
        return [
            "this kernel has no IPv6, so there are no rules for it (ipv6 = false says that this is meant)"
        ]
    return []


def _in_each_family(change: Callable[[Family], _T]) -> list[_T]:
    """Both families are tried before the first NetfilterError is raised."""
    changed: list[_T] = []
    failure: NetfilterError | None = None
    for family in _usable_families():
        try:
            changed.append(change(family))
        except NetfilterError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return changed


def _change(family: Family, wanted: RuleSet) -> RuleSet:
    """Bring a family to `wanted`; return what of ours was there before."""
    return _transact(family, lambda save: plan(save, wanted, family))


def _transact(family: Family, planned: Callable[[str], str]) -> RuleSet:
    """Do what `planned` makes of the live table's text; return what of ours was there before."""
    for attempt in range(1, _ATTEMPTS + 1):
        save = _save(family)
        text = planned(save)
        if not text:
            break
        try:
            _run([_tool(family, "restore"), "--noflush", "--wait", _LOCK_WAIT], text)
            break
        except NetfilterError:
            if attempt == _ATTEMPTS or snapshot(_save(family)) == snapshot(save):
                raise
    return snapshot(save)


def _save(family: Family) -> str:
    try:
        text = _run([_tool(family, "save"), "--table", "nat"])
    except NetfilterError as error:
        # iptables-legacy on a kernel without this nat table: nothing can be in it. Where rules are wanted the
        # restore fails and says so; where the family is switched off all is well.
        if "Table does not exist" in error.detail:
            return ""
        raise
    # What iptables-nft prints instead of a table that holds expressions it does not know (xtables-save.c).
    if "`nat' is incompatible" in text:
        raise NetfilterError(
            f"{_PREFIX[family]}-save", "table nat is incompatible", advice(0, "incompatible")
        )
    return text


def _tool(family: Family, verb: str) -> str:
    name = f"{_PREFIX[family]}-{verb}"
    path = shutil.which(name, path=_TOOL_PATH)
    if path is None:
        raise NetfilterError(name, "", "the program is not installed; install the package iptables")
    return path


def _run(command: list[str], text: str = "") -> str:
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NetfilterError(
            name, f"no answer in {_TIMEOUT_SECONDS:.0f} seconds", "see what it waits for"
        ) from None
    except OSError as error:
        raise NetfilterError(name, str(error), "check that the program can be run") from error
    if done.returncode != 0:
        detail = " / ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise NetfilterError(name, detail, advice(done.returncode, done.stderr))
    return done.stdout
