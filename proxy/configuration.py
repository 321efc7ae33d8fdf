"""Where settings come from: a flag, else an ``ARCA_`` variable, else the file, else the default.

Each value is checked by itself, in the layer that it stands in and even when a stronger layer overrides
it, so an error can name the place, the key, the value and what is allowed. Every failure is a
``SettingsError``, whose text is the one line a person needs. Variables that begin with ``ARCA_`` and are
no key are no error: Kubernetes sets ``ARCA_PORT`` and its like by itself for a Service that is named
arca.
"""

from __future__ import annotations

import difflib
import math
import re
import socket
import tomllib
from typing import TYPE_CHECKING, NamedTuple, get_type_hints

import msgspec
from msgspec import inspect

from netfilter.rules import RuleError
from proxy.addresses import Address, parse_address, parse_forward
from proxy.redirection import not_listened_on
from proxy.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

PREFIX = "ARCA_"


class SettingsError(Exception):
    """The configuration is wrong. Its text names where, which key, which value, and what is allowed."""

    def __init__(self, origin: str, what: str) -> None:
        super().__init__(f"arca: {origin}: {what}")
        self.origin = origin
        self.what = what


class _Key(NamedTuple):
    """One thing that can be set: ``table`` is empty at the top."""

    table: str
    name: str
    kind: inspect.Type
    annotation: object

    @property
    def dotted(self) -> str:
        return f"{self.table}.{self.name}" if self.table else self.name

    @property
    def variable(self) -> str:
        return PREFIX + self.dotted.replace(".", "_").upper()


class _Given(NamedTuple):
    origin: str
    value: object


def load(
    path: Path | None = None,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """The settings in force. ``flags`` by key, as they were typed, without those not given.

    Raises SettingsError. Reads the file and nothing else: no name is resolved, no socket opened.
    """
    given: dict[str, _Given] = {}
    if path is not None:
        given |= _from_file(path)
    for key in _KEYS.values():
        if key.variable in (environment or {}):
            text = (environment or {})[key.variable]
            value: object = _split(text) if _is_list(key.kind) else text
            given[key.dotted] = _check(key, _Given(key.variable, value), text=True)
    for name, typed in (flags or {}).items():
        flag = "--" + name.replace("_", "-")
        given[name] = _check(_KEYS[name], _Given(flag, typed), text=True)
    settings = _built(given)
    _check_together(settings, given)
    return settings


def check_together(settings: Settings) -> None:
    """The checks across keys, for settings that come from more than one reading. Raises SettingsError."""
    try:
        _check_together(settings, {})
    except SettingsError as error:
        raise SettingsError("with what stays until a restart", error.what) from None


def unknown_variables(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Variables that look like a mistyped key of ours, each with the key it is nearest to."""
    known = [key.variable for key in _KEYS.values()]
    return [
        (name, near[0])
        for name in environment
        if name.startswith(PREFIX) and name not in known and (near := _nearest(name, known, 0.9))
    ]


def _from_file(path: Path) -> dict[str, _Given]:
    origin = str(path)
    try:
        text = path.read_bytes().decode()
        document = tomllib.loads(text)
    except OSError as error:
        raise SettingsError(origin, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(origin, f"is not UTF-8 (byte {error.start}), so it is not TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(origin, f"is not TOML: {_with_place(str(error), text)}") from None
    given: dict[str, _Given] = {}
    for name, value in document.items():
        if name not in _TABLES:
            key = _known(origin, "", name)
            given[key.dotted] = _check(key, _Given(origin, value))
            continue
        if not isinstance(value, dict):
            raise SettingsError(origin, f"{name}: {_shown(value)} is wrong: a table, [{name}]")
        for inner, inner_value in value.items():
            key = _known(origin, name, inner)
            given[key.dotted] = _check(key, _Given(origin, inner_value))
    return given


def _with_place(error: str, text: str) -> str:
    """tomllib names line and column of a fault everywhere but at the end."""
    last = text.splitlines()[-1] if text else ""
    place = f"at line {max(1, len(text.splitlines()))}, column {len(last) + 1}, the end"
    return error.replace("at end of document", place)


def _known(origin: str, table: str, name: str) -> _Key:
    dotted = f"{table}.{name}" if table else name
    if dotted in _KEYS:
        return _KEYS[dotted]
    allowed = [key.name for key in _KEYS.values() if key.table == table]
    if not table:
        allowed += [f"[{each}]" for each in _TABLES]
    near = _nearest(name, allowed)
    hint = f", did you mean {near[0]}?" if near else ";"
    raise SettingsError(origin, f"{dotted}: there is no such key{hint} Allowed: {', '.join(allowed)}")


def _nearest(name: str, known: Iterable[str], cutoff: float = 0.7) -> list[str]:
    return difflib.get_close_matches(name, known, n=1, cutoff=cutoff)


def _check(key: _Key, given: _Given, *, text: bool = False) -> _Given:
    """The value as the type of its key; ``text``: as typed in a shell, so "4" is a number."""
    try:
        value: object = msgspec.convert(given.value, type=key.annotation, strict=not text)
    except msgspec.ValidationError:
        raise _wrong(key, given) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(key, given)
    parse = _PARSERS.get(key.dotted)
    if parse is not None:
        for each in value if isinstance(value, tuple) else (value,):
            try:
                parse(each)
            except ValueError as error:
                raise _wrong(key, _Given(given.origin, each), str(error)) from None
    return _Given(given.origin, value)


def _wrong(key: _Key, given: _Given, why: str = "") -> SettingsError:
    because = f" ({why})" if why else ""
    return SettingsError(
        given.origin, f"{key.dotted}: {_shown(given.value)} is wrong{because}: {allowed(key.kind)}"
    )


def _built(given: Mapping[str, _Given]) -> Settings:
    top: dict[str, object] = {}
    tables: dict[str, dict[str, object]] = {table: {} for table in _TABLES}
    for dotted, (_, value) in given.items():
        key = _KEYS[dotted]
        (tables[key.table] if key.table else top)[key.name] = value
    if top.get("forward") and "listen" not in top:
        top["listen"] = ()  # explicit mode: nothing is redirected, so nothing need listen for it
    for table, values in tables.items():
        try:
            top[table] = msgspec.convert(values, type=_TABLES[table])
        except (msgspec.ValidationError, ValueError) as error:
            raise _refused_by(error.__cause__ or error, table, given) from None
    return msgspec.convert(top, type=Settings, from_attributes=True)


def _refused_by(error: BaseException, table: str, given: Mapping[str, _Given]) -> SettingsError:
    """What a table's own checks found: rules know more about their values than a type can say."""
    if isinstance(error, RuleError):
        dotted = f"{table}.{error.key}"
        return SettingsError(
            _origin(dotted, given), f"{dotted}: {_shown(error.value)} is wrong: {error.allowed}"
        )
    origins = sorted({each.origin for dotted, each in given.items() if dotted.startswith(table + ".")})
    return SettingsError(", ".join(origins), f"[{table}]: {error}")


def _check_together(settings: Settings, given: Mapping[str, _Given]) -> None:
    """No two of ARCA's own addresses may be the same, and there must be one to accept on."""
    listeners = settings.listeners()
    if not listeners:
        raise SettingsError(
            _origin("listen", given), "listen: [] is wrong: at least one address, or a forward"
        )
    if settings.rules.apply:
        _check_redirection(settings, given)
    taken: list[tuple[str, Address]] = []
    named = [("forward" if target else "listen", address) for address, target in listeners]
    for key, address in (
        *named,
        ("metrics", settings.metrics_address()),
        ("admin", settings.admin_address()),
    ):
        if address is None:
            continue
        for other_key, other in taken:
            if _overlap(address, other):
                raise SettingsError(
                    _origin(key if key in given else other_key, given),
                    f"{key}: {address} is wrong: it is the same as {other} of {other_key}; each address once",
                )
        taken.append((key, address))


def _check_redirection(settings: Settings, given: Mapping[str, _Given]) -> None:
    """Rules may only lead to where somebody listens, and must tell ARCA's own connections apart."""
    if not settings.mark:
        raise SettingsError(_origin("mark", given), "mark: 0 is wrong: from 1 on when rules.apply is true")
    missing = not_listened_on(settings) if settings.listen else [Address("0.0.0.0", 15001)]
    if missing:
        raise SettingsError(
            _origin("listen", given),
            f"listen: {_shown(list(settings.listen))} is wrong: rules.apply asks for {missing[0]} in it"
            + (" (or rules.ipv6 = false)" if missing[0].family == socket.AF_INET6 else ""),
        )


def _overlap(one: Address, other: Address) -> bool:
    if one.port != other.port or one.family != other.family:
        return False
    return one.host == other.host or bool({one.host, other.host} & {"0.0.0.0", "::"})


def _origin(key: str, given: Mapping[str, _Given]) -> str:
    return given[key].origin if key in given else "default"


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _shown(value: object) -> str:
    text = (
        f'"{value}"'
        if isinstance(value, str)
        else str(value).lower()
        if value in (True, False)
        else str(value)
    )
    text = re.sub(r"[\x00-\x1f\x7f]", "?", text)
    return text if len(text) <= 100 else text[:97] + "..."


def allowed(kind: inspect.Type) -> str:
    """What a type takes, in words."""
    match kind:
        case inspect.Metadata(type=inner, extra=extra):
            return str(extra["allowed"]) if extra and "allowed" in extra else allowed(inner)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            return ("an integer" if isinstance(kind, inspect.IntType) else "a number") + _range(kind)
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case inspect.EnumType(cls=cls):
            return "one of " + ", ".join(str(member.value) for member in cls)
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            return f"a list, each of them: {allowed(item)}"
        case inspect.SetType(item_type=item) | inspect.FrozenSetType(item_type=item):
            return f"a list, each of them: {allowed(item)}"
        case inspect.UnionType(types=types):
            return " or ".join(allowed(each) for each in types)
        case inspect.StrType(pattern=pattern):
            return f"text that matches {pattern}" if pattern else "text"
        case _:
            return type(kind).__name__.removesuffix("Type").lower()


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    bounds = (("from", kind.ge), ("above", kind.gt), ("to", kind.le), ("below", kind.lt))
    return "".join(f" {word} {_number(bound)}" for word, bound in bounds if bound is not None)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _is_list(kind: inspect.Type) -> bool:
    match kind:
        case inspect.Metadata(type=inner):
            return _is_list(inner)
        case inspect.VarTupleType() | inspect.ListType() | inspect.SetType() | inspect.FrozenSetType():
            return True
        case _:
            return False


def _keys_of(record: type[msgspec.Struct], table: str = "") -> list[_Key]:
    described = inspect.type_info(record)
    assert isinstance(described, inspect.StructType)
    annotations = get_type_hints(record, include_extras=True)
    keys: list[_Key] = []
    for field in described.fields:
        if isinstance(field.type, inspect.StructType):
            keys += _keys_of(field.type.cls, field.name)
        else:
            keys.append(_Key(table, field.name, field.type, annotations[field.name]))
    return keys


def _or_empty(parse: Callable[[str], object]) -> Callable[[str], object]:
    return lambda text: parse(text) if text else None


_KEYS: dict[str, _Key] = {key.dotted: key for key in _keys_of(Settings)}
_TABLES: dict[str, type[msgspec.Struct]] = {
    field.name: field.type.cls
    for field in inspect.type_info(Settings).fields  # type: ignore[attr-defined]
    if isinstance(field.type, inspect.StructType)
}
_PARSERS: dict[str, Callable[[str], object]] = {
    "listen": parse_address,
    "forward": parse_forward,
    "metrics": _or_empty(parse_address),
    "admin": _or_empty(parse_address),
}
