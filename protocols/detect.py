"""Which protocol a connection speaks, told by the first bytes that downstream sends.

The bias of the algorithm: it decides from the fewest bytes that prove a protocol, and it would rather call
HTTP/1 what turns out not to be (the engine then falls open and nothing is lost) than miss it. Bytes are held
back only while they can still become a message that an engine would change, and that is HTTP alone; a silent
or slow peer is awaited, never timed (precedent: linkerd2-proxy, linkerd/http/detect/src/lib.rs, which stalls
for 10 s on a client that waits for the server to speak). An unknown method takes a whole request line to
prove, so a text protocol of another kind can be held for as long as its first line looks like that, 8 KiB at
most. A server that speaks first is opaque, unless it begins as HTTP/2 (gRPC servers do not await the client).

Every rule reads from left to right and stops at the first byte that decides. So an answer other than HOLD or
PASS is final: whatever follows, and however the bytes were cut, it stays the same.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Recognised(IntEnum):
    """What the first bytes are."""

    HTTP_1 = 0
    HTTP_2 = 1
    TLS = 2
    THRIFT = 3
    MQTT = 4
    TCP = 5  # nothing that is known: opaque
    HOLD = 6  # undecided, and it can still be HTTP, whose engine changes bytes: they are to be held back
    PASS = 7  # undecided, but only between engines that leave bytes alone: they may go on


# IANA HTTP Method Registry (https://www.iana.org/assignments/http-methods/, RFC 9110 section 16.1), without
# PRI, which only the preface of HTTP/2 uses. Any other method is proven by its whole line.
METHODS: Final = frozenset(
    b"""
    ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET HEAD LABEL LINK LOCK MERGE MKACTIVITY
    MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE MOVE OPTIONS ORDERPATCH PATCH POST PROPFIND PROPPATCH PUT QUERY
    REBIND REPORT SEARCH TRACE UNBIND UNCHECKOUT UNLINK UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL
    """.split()
)
_METHOD_BYTES: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
_MAX_METHOD: Final = 32
_NOT_TARGET: Final = bytes(range(33)) + b"\x7f"
HTTP_2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 section 3.4
_SETTINGS: Final = 0x04  # frame type; one setting is 6 bytes (RFC 9113 section 6.5)
_FRAME_HEADER: Final = 9
_MAX_FRAME: Final = 1 << 14  # before SETTINGS allow larger ones, RFC 9113 section 4.2
# The limits of the HTTP/1 engine: 32 empty lines before the request line, and that of 8 KiB.
_MAX_EMPTY_LINES: Final = 64
_MAX_LINE: Final = 8 * 1024

# Thrift's own default for a frame is 16,384,000 bytes, so the first byte of a frame's length is zero.
_THRIFT_TYPES: Final = (1, 4)  # call and oneway: a client sends no others
_THRIFT_NAME: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:$-"
_THRIFT_STRICT: Final = b"\x80\x01\x00"
_THRIFT_HEADER: Final = b"\x0f\xff"  # THeader's magic
_MAX_THRIFT_NAME: Final = 255
_MAX_THRIFT_STRICT_NAME: Final = 1024  # that the engine reads
# A frame is never shorter than its smallest message, by its first byte: strict binary is version, name
# length, sequence id and the stop of an empty struct; compact the same in one byte each, but two of version;
# the header transport has 14 bytes before the message (doc/specs/HeaderFormat.md).
_SMALLEST_FRAME: Final = {0x80: 13, 0x82: 5, 0x0F: 14}
# Name, level, flags, keep-alive and the length of a client id: MQTT 3.1.1 section 3.1, the shortest of all.
_SMALLEST_CONNECT: Final = 12


def recognise(first: bytes) -> Recognised:
    """Say what the bytes sent by downstream since the connection began are, as far as that is decided."""
    if not first:
        return Recognised.HOLD
    match first[0]:
        case 0x10:
            return _mqtt(first)
        case 0x16:
            return _tls(first)
        case 0x80 | 0x82:
            return _thrift_message(first)
        case 0x00:
            return _thrift_framed(first)
        case _:
            return _http(first)


def recognise_server(first: bytes) -> Recognised:
    """Say what a server speaks that was heard before its client was recognised: HTTP_2 or TCP.

    An HTTP/2 server's first frame is SETTINGS, on stream 0 and no acknowledgement (RFC 9113 section 3.4).
    Bytes too few for a frame header are TCP: they may be the whole greeting that the client waits for.
    """
    if len(first) < _FRAME_HEADER:
        return Recognised.TCP
    length = int.from_bytes(first[:3])
    proven = first[3] == _SETTINGS and not any(first[4:_FRAME_HEADER])
    return Recognised.HTTP_2 if proven and length % 6 == 0 and length <= _MAX_FRAME else Recognised.TCP


def _http(first: bytes) -> Recognised:
    if len(first) >= len(HTTP_2_PREFACE):
        if first.startswith(HTTP_2_PREFACE):
            return Recognised.HTTP_2
    elif HTTP_2_PREFACE.startswith(first):
        return Recognised.HOLD

    start = 0
    while first.startswith(b"\r\n", start):
        start += 2
        if start > _MAX_EMPTY_LINES:
            return Recognised.TCP
    line = first[start : start + _MAX_LINE + 1]
    if line in (b"", b"\r"):
        return Recognised.HOLD
    method, space, rest = line.partition(b" ")
    if not method or len(method) > _MAX_METHOD or method.strip(_METHOD_BYTES) or not method[:1].isalpha():
        return Recognised.TCP
    if not space:
        return Recognised.HOLD
    return Recognised.HTTP_1 if method in METHODS else _http_1_line(line, rest)


def _http_1_line(line: bytes, rest: bytes) -> Recognised:
    """The line of a method that nobody registered: ``rest`` is to be target SP HTTP/1.x CR LF."""
    target, space, version = rest.partition(b" ")
    if target.translate(None, _NOT_TARGET) != target:
        return Recognised.TCP
    if space:
        name, digit, end = version[:7], version[7:8], version[8:10]
        if not target or not b"HTTP/1.".startswith(name) or (digit and not digit.isdigit()):
            return Recognised.TCP
        if end == b"\r\n":
            return Recognised.HTTP_1
        if not b"\r\n".startswith(end):
            return Recognised.TCP
    return Recognised.HOLD if len(line) <= _MAX_LINE else Recognised.TCP


def _tls(first: bytes) -> Recognised:
    """RFC 8446 section 5.1: a handshake record of up to 2^14 bytes that begins with a ClientHello."""
    if first[1:2] not in (b"", b"\x03") or (len(first) > 2 and first[2] > 4):
        return Recognised.TCP
    if len(first) > 4 and not 0 < int.from_bytes(first[3:5]) <= 1 << 14:
        return Recognised.TCP
    if len(first) < 6:
        return Recognised.PASS
    return Recognised.TLS if first[5] == 1 else Recognised.TCP


def _thrift_message(message: bytes) -> Recognised:
    """A message of the strict binary or the compact protocol, by its magic, version and type."""
    if message[0] == 0x82:
        if len(message) < 2:
            return Recognised.PASS
        # One byte holds type (3 bits) and version (5 bits).
        proven = message[1] & 0x1F == 1 and message[1] >> 5 in _THRIFT_TYPES
        return Recognised.THRIFT if proven else Recognised.TCP
    if not _THRIFT_STRICT.startswith(message[:3]):
        return Recognised.TCP
    if len(message) > 3 and message[3] not in _THRIFT_TYPES:
        return Recognised.TCP
    # Memcached's binary protocol can begin so too; what follows there is no name's length.
    if len(message) < 8:
        return Recognised.PASS
    return Recognised.THRIFT if int.from_bytes(message[4:8]) <= _MAX_THRIFT_STRICT_NAME else Recognised.TCP


def _thrift_framed(first: bytes) -> Recognised:
    """A frame, or a message of the old binary protocol without one: both begin with four bytes of length."""
    if len(first) < 5:
        return Recognised.PASS
    length = int.from_bytes(first[:4])
    message = first[4:]
    if length < _SMALLEST_FRAME.get(message[0], 0):
        return Recognised.TCP
    match message[0]:
        case 0x80 | 0x82:
            return _thrift_message(message)
        case 0x0F:
            if not _THRIFT_HEADER.startswith(message[:2]):
                return Recognised.TCP
            return Recognised.PASS if len(message) < 2 else Recognised.THRIFT
        case 0x00:
            if len(message) < 4:
                return Recognised.PASS
            return _thrift_old(int.from_bytes(message[:4]), message[4:], most=length - 9)
        case _:
            return _thrift_old(length, message, most=_MAX_THRIFT_NAME)


def _thrift_old(name_length: int, rest: bytes, most: int) -> Recognised:
    """The old binary protocol has no magic: its name, then a message type, must prove it.

    ``most`` is the longest name that there is room for (type and sequence id come after it).
    """
    if not 0 < name_length <= min(most, _MAX_THRIFT_NAME) or rest[:name_length].strip(_THRIFT_NAME):
        return Recognised.TCP
    if len(rest) <= name_length:
        return Recognised.PASS
    return Recognised.THRIFT if rest[name_length] in _THRIFT_TYPES else Recognised.TCP


def _mqtt(first: bytes) -> Recognised:
    """CONNECT: remaining length of one to four bytes, protocol name, level (MQTT 5.0 section 3.1)."""
    at, remaining = 1, 0
    while at < len(first) and first[at] & 0x80:
        remaining |= (first[at] & 0x7F) << 7 * (at - 1)
        at += 1
        if at > 4:
            return Recognised.TCP
    if at < len(first) and remaining | first[at] << 7 * (at - 1) < _SMALLEST_CONNECT:
        return Recognised.TCP
    header = first[at + 1 :]
    for name, levels in ((b"\x00\x04MQTT", (3, 4, 5)), (b"\x00\x06MQIsdp", (3,))):
        if header.startswith(name) and len(header) > len(name):
            # mosquitto's bridges set the highest bit of the level.
            return Recognised.MQTT if header[len(name)] & 0x7F in levels else Recognised.TCP
        if name.startswith(header):
            return Recognised.PASS
    return Recognised.TCP
