"""The error codes of HTTP/2 by name: RFC 9113 section 7, as RST_STREAM and GOAWAY carry them."""

from enum import IntEnum


class ErrorCode(IntEnum):
    """The codes that RFC 9113 registers; a peer may send any other 32-bit number."""

    NO_ERROR = 0x00
    PROTOCOL_ERROR = 0x01
    INTERNAL_ERROR = 0x02
    FLOW_CONTROL_ERROR = 0x03
    SETTINGS_TIMEOUT = 0x04
    STREAM_CLOSED = 0x05
    FRAME_SIZE_ERROR = 0x06
    REFUSED_STREAM = 0x07
    CANCEL = 0x08
    COMPRESSION_ERROR = 0x09
    CONNECT_ERROR = 0x0A
    ENHANCE_YOUR_CALM = 0x0B
    INADEQUATE_SECURITY = 0x0C
    HTTP_1_1_REQUIRED = 0x0D


_NAMES = {code.value: code.name for code in ErrorCode}


def error_name(code: int) -> str:
    """The registered name of an error code, or the code in hexadecimal: ``CANCEL``, ``0x1f``."""
    return _NAMES.get(code) or f"{code:#x}"
