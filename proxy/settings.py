"""Everything that can be set, with its default, its range, and one sentence on what it does.

A key at the top is a flag of ``arca run`` of the same name; the tables are set in the file or by
variables. These records say what a value may be; where it came from and how a wrong one is reported is in
``proxy.configuration``. They travel to the workers as they are.
"""

import os
from typing import Annotated, Literal

from msgspec import Meta, Struct, structs

from netfilter.rules import RuleSettings
from proxy.addresses import ADDRESS_FORMS, FORWARD_FORMS, Address, Listener, parse_address, parse_forward

# What an error says is allowed, where the type alone does not tell.
_OFF = ', or "" for none'

LogLevelName = Literal["debug", "info", "warning", "error"]
AddressText = Annotated[str, Meta(extra={"allowed": ADDRESS_FORMS})]
ForwardText = Annotated[str, Meta(extra={"allowed": FORWARD_FORMS})]


class Limits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table ``[limits]``. Times are seconds; 0 where it means "none" leaves the two ends to themselves."""

    max_connections: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Connections carried at once, by all workers; more are reset."),
    ] = 16_384
    drain_seconds: Annotated[
        float, Meta(ge=0, le=3600, description="How long running exchanges may go on after SIGTERM.")
    ] = 10.0
    head_timeout_seconds: Annotated[
        float,
        Meta(ge=0, le=3600, description="The longest a request's head may take to arrive; 0: for ever."),
    ] = 0.0
    connect_timeout_seconds: Annotated[
        float, Meta(ge=0, le=3600, description="The longest a dial may take; 0: as long as the kernel tries.")
    ] = 0.0
    # Thrift's own default; the most that it allows is 2^30 - 1 (Thrift doc/specs/HeaderFormat.md).
    thrift_frame_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=2**30 - 1,
            description="The longest frame read as Thrift; the first one must be below 16 MiB in any case.",
        ),
    ] = 16_384_000


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration."""

    listen: Annotated[tuple[AddressText, ...], Meta(description="Where redirected connections arrive.")] = (
        "0.0.0.0:15001",
        "[::]:15001",
    )
    forward: Annotated[
        tuple[ForwardText, ...],
        Meta(description="Explicit mode: every connection to LISTEN goes to TARGET."),
    ] = ()
    workers: Annotated[int, Meta(ge=0, le=1024, description="Worker processes; 0: one per CPU.")] = 0
    user: Annotated[
        int,
        Meta(ge=1, le=2**32 - 2, description="The uid and gid of the workers when root starts ARCA."),
    ] = 15001
    exchanges: Annotated[
        str, Meta(description="The exchange log.", extra={"allowed": 'a path, "-" for stdout' + _OFF})
    ] = ""
    metrics: Annotated[
        str, Meta(description="Where /metrics is served.", extra={"allowed": ADDRESS_FORMS + _OFF})
    ] = "0.0.0.0:9090"
    admin: Annotated[
        str, Meta(description="Where the admin endpoints are.", extra={"allowed": ADDRESS_FORMS + _OFF})
    ] = "127.0.0.1:15000"
    slow: Annotated[
        float, Meta(gt=0, le=86_400, description="Seconds from which on an exchange is slow.")
    ] = 2.0
    report_running_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="How often an exchange that still runs is written to the exchange log; 0: never.",
        ),
    ] = 60.0
    sample: Annotated[
        float, Meta(ge=0, le=1, description="The share of the traces begun here that are sampled.")
    ] = 0.01
    strict: Annotated[
        bool, Meta(description="Cut what a codec cannot follow, rather than carry it as opaque TCP.")
    ] = False
    log_level: Annotated[LogLevelName, Meta(description="What is logged to stderr.")] = "info"
    mark: Annotated[
        int, Meta(ge=0, le=2**32 - 1, description="SO_MARK of ARCA's own connections; 0: none.")
    ] = 15001
    limits: Limits = Limits()
    rules: RuleSettings = RuleSettings()

    def listeners(self) -> tuple[Listener, ...]:
        """Every listening address with its target. Raises ValueError on settings that were not checked."""
        redirected = tuple(Listener(parse_address(text)) for text in self.listen)
        return redirected + tuple(parse_forward(text) for text in self.forward)

    def metrics_address(self) -> Address | None:
        return parse_address(self.metrics) if self.metrics else None

    def admin_address(self) -> Address | None:
        return parse_address(self.admin) if self.admin else None

    def worker_count(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))


# What only a restart can change: sockets are opened, privileges dropped, and connections shared out, once.
RESTART = frozenset({"listen", "forward", "workers", "user", "metrics", "admin", "limits.max_connections"})


def changed(before: Settings, after: Settings) -> list[str]:
    """The keys whose values differ, tables as ``table.key``, in the order of the settings."""
    keys: list[str] = []
    for name in Settings.__struct_fields__:
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        if isinstance(old, Struct):
            keys += [f"{name}.{k}" for k in old.__struct_fields__ if getattr(old, k) != getattr(new, k)]
        else:
            keys.append(name)
    return keys


def needs_restart(before: Settings, after: Settings) -> list[str]:
    """The changed keys that a running proxy cannot take over."""
    keys = [key for key in changed(before, after) if key in RESTART]
    # Whether records are kept for the log is decided where they are made, at start; the path can change.
    if bool(before.exchanges) is not bool(after.exchanges):
        keys.append("exchanges")
    return keys


def keeping(before: Settings, after: Settings, keys: list[str]) -> Settings:
    """``after``, but with the values that ``keys`` have in ``before``."""
    for key in keys:
        table, _, name = key.rpartition(".")
        if table:
            kept = {name: getattr(getattr(before, table), name)}
            after = structs.replace(after, **{table: structs.replace(getattr(after, table), **kept)})
        else:
            after = structs.replace(after, **{name: getattr(before, name)})
    return after
