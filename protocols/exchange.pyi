from enum import IntEnum

PROTOCOL_NAMES: tuple[str, ...]

class Protocol(IntEnum):
    """What was spoken; ``PROTOCOL_NAMES[protocol]`` is its name in logs and labels."""

    HTTP_1_0 = 0
    HTTP_1_1 = 1
    HTTP_2 = 2
    GRPC = 3
    THRIFT = 4
    MQTT = 5
    WEBSOCKET = 6
    TLS = 7
    TCP = 8

class End(IntEnum):
    """How an exchange ended, as the two sockets showed it."""

    COMPLETE = 0  # the response came to its end
    DOWNSTREAM_FIN = 1  # downstream closed before that
    DOWNSTREAM_RST = 2  # downstream reset the connection before that
    UPSTREAM_FIN = 3  # upstream closed in the middle of a message, or without one
    UPSTREAM_RST = 4  # upstream's side was reset, or failed with ``error``
    DIAL_FAILED = 5  # upstream could not be reached: ``error`` (an errno) says why
    DOWNSTREAM_FAULT = 6  # refused: the request broke its protocol's framing, ``fault`` says how
    UPSTREAM_FAULT = 7  # cut: the response did
    UNREADABLE = 8  # the engine lost track and the bytes were carried opaque from there
    LOOP = 9  # refused: the destination was ARCA itself
    OVERLOAD = 10  # refused: more connections than the configuration allows
    DRAINED = 11  # ARCA stopped before it was done
    HEAD_TIMEOUT = 12  # the configured head timeout passed
    INTERNAL = 13  # a defect of ARCA
    DOWNSTREAM_RST_STREAM = 14  # downstream gave up this stream alone: ``stream_error`` says why
    UPSTREAM_RST_STREAM = 15  # upstream did
    UPSTREAM_GOAWAY = 16  # upstream announced that it did not and will not look at this stream

class Rpc:
    """What a gRPC call is beside the HTTP exchange that carries it."""

    status: int  # grpc-status, -1 before or without one
    message: bytes | None  # grpc-message, percent-decoded
    timeout: float  # grpc-timeout in seconds, -1 without one
    request_messages: int  # begun, complete or not
    response_messages: int
    compressed: bool  # a message of either side was
    first_message: float  # monotonic seconds: the first byte of the first response message; -1 before it
    web: bool  # gRPC-Web

class Exchange:
    """One request with its response.

    Bytes are counted as they came, heads and framing included, without what ARCA added. Times are
    monotonic seconds; -1 where the moment never came.
    """

    protocol: Protocol
    end: End
    status: int  # HTTP status, 0 before there is one
    error: int  # errno of the socket error that ended it, 0 if none
    stream: int  # HTTP/2 stream, 0 elsewhere
    stream_error: int  # code of the RST_STREAM or GOAWAY that ended it (RFC 9113 section 7), -1 if none did
    sampled: bool  # a span is to be recorded
    request_complete: bool
    response_complete: bool
    tunnel: bool  # asked to become one (CONNECT, Upgrade)
    method: bytes | None
    target: bytes | None
    authority: bytes | None
    request_id: bytes | None
    trace_id: bytes | None  # 32 lower-case hex digits
    span_id: bytes | None  # 16; the span that went on to upstream, None where the header passed as it came
    parent_id: bytes | None  # 16; the span that the request came from
    code: str | None  # the protocol's own result code, where it is not an HTTP status
    rpc: Rpc | None  # of gRPC alone
    fault: str | None  # what was wrong with the bytes, in the parser's words
    request_bytes: int
    response_bytes: int
    connect: float  # seconds that the dial took; -1 on exchanges that found the connection open
    started: float  # first byte of the request
    first_byte: float  # first byte of the final response
    ended: float
    following: Exchange | None  # the next one in flight on the same connection

    def __init__(self, protocol: Protocol = ..., started: float = ...) -> None: ...
