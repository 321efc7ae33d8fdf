"""Installs the peers that come from PyPI (extra `bench` of pyproject.toml) into .venv-bench, apart from
ARCA's own.

Apart because mitmproxy pins many libraries; one at a time because one that cannot be had must cost only its
row. Why it could not is kept beside it for the table. Ends with status 0 either way: the table is where it is
said.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH_VENV = ROOT / ".venv-bench"
BENCH_BIN = BENCH_VENV / "bin"


def reason_not_installed(package: str) -> str:
    failure = _failure(package)
    return (
        failure.read_text()
        if failure.exists()
        else f"{package} is not in {BENCH_VENV.name}: make bench installs it"
    )


def install() -> None:
    if not (BENCH_BIN / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(BENCH_VENV)], check=True)
    for requirement in _requirements():
        _install_one(requirement)


def _requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements: list[str] = project["optional-dependencies"]["bench"]
    return requirements


def _install_one(requirement: str) -> None:
    package = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
    pip = [str(BENCH_BIN / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    installed = subprocess.run([*pip, "install", requirement], capture_output=True, text=True, check=False)
    if installed.returncode == 0:
        _failure(package).unlink(missing_ok=True)
        return
    errors = [line for line in installed.stderr.splitlines() if line.startswith("ERROR")]
    reason = (
        f"{package} could not be installed: {(errors or ['pip says nothing'])[0].removeprefix('ERROR: ')}"
    )
    _failure(package).write_text(reason)
    print(reason, file=sys.stderr)


def _failure(package: str) -> Path:
    return BENCH_VENV / f"{package}.failed"


if __name__ == "__main__":
    install()
