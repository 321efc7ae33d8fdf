"""The command line. Each command turns its flags into settings, calls one function, and ends with a
status: 0 as asked, 1 failed while running, 2 the configuration is wrong.

Whatever a command needs is imported inside it, so that ``arca rules print`` does not pay for a web
server. Flags are taken as text and judged by ``proxy.configuration``, so a wrong value is reported in the
same words wherever it stands.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from netfilter.render import ProxyIdentity
    from proxy.settings import Settings

_T = TypeVar("_T")

FAILED = 1
WRONG = 2

app = typer.Typer(
    name="arca",
    help="A transparent proxy that tells whether a failed or slow call was the application or the network.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
rules = typer.Typer(help="The netfilter rules of the configuration.", no_args_is_help=True)
app.add_typer(rules, name="rules")

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="The configuration file (TOML).")]


@app.command()
def run(
    config: ConfigFile = None,
    listen: Annotated[
        list[str] | None, typer.Option(help="Where redirected connections arrive.", metavar="ADDRESS")
    ] = None,
    forward: Annotated[
        list[str] | None,
        typer.Option(help="Explicit mode: all that comes to LISTEN goes to TARGET.", metavar="LISTEN=TARGET"),
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="Worker processes; 0: one per CPU.", metavar="N")
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="uid and gid of the workers, when root starts.", metavar="ID")
    ] = None,
    exchanges: Annotated[
        str | None, typer.Option(help="Where each exchange is logged as JSON.", metavar="PATH|-")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="Where /metrics is served.", metavar="ADDRESS")] = None,
    admin: Annotated[
        str | None, typer.Option(help="Where the admin endpoints are.", metavar="ADDRESS")
    ] = None,
    slow: Annotated[
        str | None, typer.Option(help="From when on an exchange is slow.", metavar="SECONDS")
    ] = None,
    report_running_seconds: Annotated[
        str | None, typer.Option(help="How often a running exchange is logged; 0: never.", metavar="SECONDS")
    ] = None,
    sample: Annotated[
        str | None, typer.Option(help="The share of new traces that are sampled.", metavar="RATIO")
    ] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict/--no-strict", help="Cut what a codec cannot follow.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error.", metavar="LEVEL")
    ] = None,
    mark: Annotated[str | None, typer.Option(help="SO_MARK of ARCA's own connections.", metavar="N")] = None,
) -> None:
    """Run the proxy. Ctrl-C or SIGTERM drains it and removes its rules; SIGHUP re-reads the configuration."""
    given = {
        "listen": listen or None,
        "forward": forward or None,
        "workers": workers,
        "user": user,
        "exchanges": exchanges,
        "metrics": metrics,
        "admin": admin,
        "slow": slow,
        "report_running_seconds": report_running_seconds,
        "sample": sample,
        "strict": strict,
        "log_level": log_level,
        "mark": mark,
    }
    flags = {key: value for key, value in given.items() if value is not None}
    settings = _settings(config, flags)

    from proxy import supervisor
    from proxy.configuration import load

    try:
        supervisor.run(settings, lambda: load(config, flags, os.environ))
    except supervisor.StartError as error:
        _end(FAILED, f"arca: {error}")


@app.command()
def demo() -> None:
    """Show the main job on this machine: real servers and clients, a fault, and the verdicts."""
    from importlib import import_module

    raise typer.Exit(import_module("proxy.demo").run())


@rules.command("print")
def print_rules(config: ConfigFile = None) -> None:
    """Print the rules as iptables-restore and ip6tables-restore read them. Changes nothing; needs no root."""
    from proxy.redirection import printed

    settings = _settings(config)
    try:
        sys.stdout.write(printed(settings))
    except ValueError as error:  # RuleError is one
        _end(WRONG, f"arca: {error}")


@rules.command("apply")
def apply_rules(config: ConfigFile = None) -> None:
    """Make the kernel's rules those of the configuration; applied already, nothing changes."""
    from netfilter import commands

    settings = _settings(config)
    for warning in _in_kernel(lambda: commands.apply(settings.rules, _identity(settings))):
        print(f"arca: {warning}", file=sys.stderr)


@rules.command("check")
def check_rules(config: ConfigFile = None) -> None:
    """Compare the kernel's rules with the configuration; print what differs, and end with 1 if they do.

    Rules of others that come before ARCA's are printed as a note, and are no difference.
    """
    from netfilter import commands

    settings = _settings(config)
    differences = _in_kernel(lambda: commands.check(settings.rules, _identity(settings)))
    for difference in differences:
        print(difference)
    for note in _in_kernel(lambda: commands.remarks(settings.rules, _identity(settings))):
        print(f"note: {note}")
    raise typer.Exit(FAILED if differences else 0)


@rules.command("remove")
def remove_rules(config: ConfigFile = None) -> None:
    """Remove every rule of ARCA's, whatever the configuration says: it is not even read.

    Where nothing else on the host uses connection tracking, this cuts the redirected connections that run.
    """
    from netfilter import commands

    _in_kernel(commands.remove)


@app.callback(invoke_without_command=True)
def _top(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        from proxy.version import version

        print(f"arca {version()}")
        raise typer.Exit(0)


def _settings(config: Path | None, flags: Mapping[str, object] | None = None) -> "Settings":
    from proxy.configuration import SettingsError, load, unknown_variables

    try:
        settings = load(config, flags, os.environ)
    except SettingsError as error:
        _end(WRONG, str(error))
    for name, near in unknown_variables(os.environ):
        print(f"arca: {name} is no variable of ARCA's, is {near} meant?", file=sys.stderr)
    return settings


def _identity(settings: "Settings") -> "ProxyIdentity":
    from proxy.redirection import identity

    return identity(settings)


def _in_kernel(change: Callable[[], _T]) -> _T:
    from netfilter.commands import NetfilterError

    try:
        return change()
    except NetfilterError as error:
        _end(FAILED, f"arca: {error}")
    except ValueError as error:  # RuleError is one
        _end(WRONG, f"arca: {error}")


def _end(status: int, text: str) -> NoReturn:
    print(text, file=sys.stderr)
    raise typer.Exit(status)


def main() -> None:
    """Entry of the command ``arca``."""
    app()


if __name__ == "__main__":
    main()
