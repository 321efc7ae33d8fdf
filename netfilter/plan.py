"""What must be done to a live nat table so that it holds exactly the wanted rules. Pure.

The live table comes as the text of `iptables-save -t nat`, the wanted one as a RuleSet; out come a list of
differences for a person, and the text of the one transaction that ends them. iptables-restore cannot say
"delete if there" (a failed `-D` fails everything) nor "insert unless there" (a second `-I` duplicates), so
the decision needs the live text. It names no rule but those in our chains and those that lead there.
"""

import difflib
import re
from collections.abc import Iterator
from typing import NamedTuple

from netfilter.render import NOTHING, OWN_CHAINS, Block, Chain, Family, Jump, RuleSet, restore_text

# A jump to a user-defined chain takes no options, so it ends the line; text inside a comment ends in a quote.
_LEADS_TO = re.compile(r"(?:^| )-[jg] (\S+)$")


class NatTable(NamedTuple):
    """The nat table of one family: chain names, and rules per chain without their `-A <chain> `, in order."""

    rules: dict[str, tuple[str, ...]]

    @property
    def own_chains(self) -> tuple[str, ...]:
        return tuple(name for name in OWN_CHAINS if name in self.rules)

    @property
    def own_jumps(self) -> tuple[Jump, ...]:
        """Every rule outside our chains that leads into them, duplicates included, in order."""
        return tuple(
            Jump(chain, rule)
            for chain, rules in self.rules.items()
            if chain not in OWN_CHAINS
            for rule in rules
            if _leads_to(rule) in OWN_CHAINS
        )


def parse(save: str) -> NatTable:
    """Read `iptables-save` text; tables other than nat, comments and counters are passed over.

    A text without a nat table (a kernel that has not made one yet) is an empty table.
    """
    rules: dict[str, list[str]] = {}
    table = ""
    for line in save.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif table == "nat" and line.startswith(":"):
            rules.setdefault(line[1:].split(" ", 1)[0], [])
        elif table == "nat" and line.startswith("-A "):
            _, chain, rule = [*line.split(" ", 2), ""][:3]
            rules.setdefault(chain, []).append(rule)
    return NatTable({chain: tuple(found) for chain, found in rules.items()})


def snapshot(save: str) -> RuleSet:
    """What of ours is in the live table, as a RuleSet that `plan` can bring back."""
    live = parse(save)
    return RuleSet(
        live.own_jumps[::-1],  # each is put back at position 1, so the last goes first
        tuple(Chain(name, (Block("", live.rules[name]),)) for name in live.own_chains),
    )


def plan(save: str, wanted: RuleSet, family: Family) -> str:
    """The input of one `iptables-restore --noflush` that makes the live table hold `wanted`; "" when it does.

    To take out all that is ours, want NOTHING.
    What stays the same is not touched at all, so that counters and a person's `watch` survive a second apply.
    """
    if not differences(save, wanted) and not notes(save, wanted):
        return ""
    live = parse(save)
    kept = {chain.name for chain in wanted.chains}
    gone = [name for name in live.own_chains if name not in kept]
    undo = [f"-D {jump.builtin} {jump.rule}" for jump in live.own_jumps]
    undo += [f"-F {name}" for name in gone]
    undo += [f"-X {name}" for name in gone]
    return restore_text(wanted, family, undo=undo)


def detached(save: str, family: Family) -> str:
    """The input of one `iptables-restore --noflush` that takes out what leads into our chains; "" if nothing.

    The chains stay as they are, on purpose: a REDIRECT rule, even one that is never reached, keeps a
    reference to connection tracking (net/netfilter/xt_REDIRECT.c), and when the last one in the namespace
    goes, the kernel stops translating the connections that were redirected before.
    """
    undo = [f"-D {jump.builtin} {jump.rule}" for jump in parse(save).own_jumps]
    return restore_text(NOTHING, family, undo=undo) if undo else ""


def differences(save: str, wanted: RuleSet) -> list[str]:
    """How the live table differs from `wanted`, a sentence each, worst first; empty when it does not."""
    live = parse(save)
    return [
        *_jump_differences(live, wanted),
        *(line for chain in wanted.chains for line in _chain_differences(live, chain)),
        *_leftovers(live, wanted),
    ]


def notes(save: str, wanted: RuleSet) -> list[str]:
    """What a person may want to know although the rules are as wanted, a sentence each.

    Others may put their rules before ours at any time (Docker does at its start); mostly it is harmless.
    """
    live = parse(save)
    return [
        f"{jump.builtin}: the jump to {_leads_to(jump.rule)} is not first; before it: {rules[0]}"
        for jump in wanted.jumps
        if jump.rule in (rules := live.rules.get(jump.builtin, ())) and rules[0] != jump.rule
    ]


def _jump_differences(live: NatTable, wanted: RuleSet) -> Iterator[str]:
    for jump in wanted.jumps:
        rules = live.rules.get(jump.builtin, ())
        to = _leads_to(jump.rule)
        count = rules.count(jump.rule)
        if count == 0:
            altered = any(_leads_to(rule) == to for rule in rules)
            yield (
                f"{jump.builtin}: the jump to {to} is not as configured, wanted: {jump.rule}"
                if altered
                else f"{jump.builtin}: the jump to {to} is missing, so nothing is redirected there"
            )
        elif count > 1:
            yield f"{jump.builtin}: the jump to {to} is there {count} times"
    for jump in live.own_jumps:
        if jump not in wanted.jumps:
            yield f"{jump.builtin}: a rule leads into our chains that is not configured: {jump.rule}"


def _chain_differences(live: NatTable, wanted: Chain) -> Iterator[str]:
    found = live.rules.get(wanted.name)
    if found is None:
        yield f"{wanted.name}: the chain is missing"
        return
    for line in difflib.ndiff(wanted.rules, found):
        match line[:2]:
            case "- ":
                yield f"{wanted.name}: a rule is missing: {line[2:]}"
            case "+ ":
                yield f"{wanted.name}: a rule is not configured: {line[2:]}"


def _leftovers(live: NatTable, wanted: RuleSet) -> Iterator[str]:
    kept = {chain.name for chain in wanted.chains}
    for name in live.own_chains:
        if name not in kept:
            yield f"{name}: the chain is there but nothing of it is configured"


def _leads_to(rule: str) -> str | None:
    match = _LEADS_TO.search(rule)
    return match[1] if match else None
