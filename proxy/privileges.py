"""What a worker may still do once it has its sockets: be its own user, and set marks on its own
connections.

Started by root, a worker becomes ``settings.user`` for good, keeps CAP_NET_ADMIN alone (SO_MARK asks for
it) and can gain nothing by executing anything. Every step is checked afterwards, because a privilege
believed to be gone is worse than one known to be there. Python has no capset(2) and no prctl(2): they are
called through libc.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CAP_NET_ADMIN = 12  # linux/capability.h
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_KEEPCAPS = 8  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS = 38


class PrivilegeError(Exception):
    """The kernel refused a step, or did not do what it said."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def drop(user: int) -> bool:
    """Becomes the uid and gid ``user``; answers whether marks can be set (CAP_NET_ADMIN was there to keep).

    Raises PrivilegeError, after which the process must end: it may hold more than it should.
    """
    kept = permitted() & (1 << CAP_NET_ADMIN)
    _prctl(_PR_SET_KEEPCAPS, 1, "PR_SET_KEEPCAPS")
    try:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError as error:
        raise PrivilegeError(
            f"cannot become user {user} ({error.strerror}); CAP_SETUID and CAP_SETGID are needed for it"
        ) from error
    _prctl(_PR_SET_KEEPCAPS, 0, "PR_SET_KEEPCAPS")
    _capset(kept)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")
    _verify(user, kept)
    return bool(kept)


def permitted() -> int:
    """This process's permitted capabilities as a bit set (capabilities(7))."""
    return int(_status()["CapPrm"], 16)


def _verify(user: int, kept: int) -> None:
    if os.getresuid() != (user,) * 3 or os.getresgid() != (user,) * 3 or os.getgroups():
        raise PrivilegeError(f"still has other users or groups than {user}")
    status = _status()
    for name in ("CapPrm", "CapEff"):
        if int(status[name], 16) != kept:
            raise PrivilegeError(f"{name} is {status[name]}, not {kept:016x}")
    if status["NoNewPrivs"] != "1":
        raise PrivilegeError("can still gain privileges by executing a file")


def _status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _capset(capabilities: int) -> None:
    header = _Header(_CAPABILITY_VERSION_3, 0)
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    data = (_Data * 2)(_Data(low, low, 0), _Data(high, high, 0))
    if _libc().capset(ctypes.byref(header), data) != 0:
        raise PrivilegeError(f"capset refused: {os.strerror(ctypes.get_errno())}")


def _prctl(option: int, value: int, name: str) -> None:
    if _libc().prctl(option, value, 0, 0, 0) != 0:
        raise PrivilegeError(f"{name} refused: {os.strerror(ctypes.get_errno())}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
