from collections.abc import Iterable
from enum import IntEnum

class ContentType(IntEnum):
    """The gRPC that a content-type announces."""

    OTHER = 0  # none
    RPC = 1  # application/grpc
    WEB = 2  # application/grpc-web
    WEB_TEXT = 3  # application/grpc-web-text: base64

class WebMessages:
    """One direction's body of a gRPC-Web call; ``text`` when it is base64."""

    count: int  # messages begun, complete or not
    compressed: bool  # one of them was
    status: int  # grpc-status of the trailer frame, -1 before or without one
    message: bytes | None  # its grpc-message, percent-decoded

    def __init__(self, text: bool) -> None: ...
    def feed(self, data: bytes) -> int:
        """Take what came of the body, cut anywhere; returns how many messages began in it."""

def content_type_of(value: bytes) -> ContentType:
    """What the value of a content-type field announces."""

def messages_begun(pieces: Iterable[bytes]) -> tuple[int, bool]:
    """How many messages began in one direction's DATA, cut anywhere, and whether one was compressed."""

def timeout_seconds(value: bytes) -> float:
    """The value of grpc-timeout in seconds; -1 when it is not 1 to 8 digits and one of ``HMSmun``."""

def percent_decoded(message: bytes) -> bytes:
    """The text of a grpc-message, at most 1024 bytes of it; what is no escape stays as it is."""

def status_of(value: bytes) -> int:
    """The number in a grpc-status; -1 when it is none."""

def status_name(status: int) -> str:
    """The name of a grpc-status, or the number as text: ``UNAVAILABLE``, ``42``."""
