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
    KEEPALIVE_MISSED = 17  # downstream was silent for longer than it had promised to be
    LIMIT = 18  # refused: more than ARCA reads, and ``strict`` is set; ``fault`` says what

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

class ThriftCall:
    """What a Thrift call is beside its method; ``Exchange.method`` is the name as it was sent, with the
    ``Service:`` of a multiplexed one.
    """

    transport: str  # "framed", "buffered" or "header"
    encoding: str  # "binary", "binary-old" or "compact"
    oneway: bool
    sequence: int
    exception_type: int  # of TApplicationException, whatever its server says; -1 without one
    exception_field: int  # field id of the declared exception that the result holds, 0 without one
    message: bytes | None  # of the exception, where its first string is one; cut off at 1 KiB

class MqttPacket:
    """What an MQTT exchange is beside its type (``Exchange.method``) and topic (``Exchange.target``).

    What does not belong to the packet's type is -1, 0, False or None.
    """

    version: int  # protocol level: 3 (3.1), 4 (3.1.1), 5
    packet_id: int  # 0 without one
    qos: int
    retain: bool
    duplicate: bool
    reason: int  # reason or return code of the answer, or of the packet itself; -1 where none is said
    reason_string: bytes | None  # version 5; cut off at 1 KiB
    client_id: bytes | None  # of the session; as the server assigned it where the client sent none
    keep_alive: int  # seconds, of CONNECT and of a missed keep-alive; -1 elsewhere
    clean_start: bool  # of CONNECT (clean session before version 5)
    session_present: int  # of CONNACK: 0, 1; -1 before it
    will_topic: bytes | None  # of CONNECT, and of the end of a session that makes the will due
    filters: int  # topic filters of SUBSCRIBE and UNSUBSCRIBE
    filters_refused: int  # of them
    silence: float  # seconds since downstream's last packet, of a missed keep-alive; -1 elsewhere

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
    by_upstream: bool  # upstream asked and downstream answers: MQTT alone
    failed: bool  # what was said in answer says that it failed: an exception of Thrift, a reason code of MQTT
    method: bytes | None
    target: bytes | None
    authority: bytes | None
    request_id: bytes | None
    trace_id: bytes | None  # 32 lower-case hex digits
    span_id: bytes | None  # 16; the span that went on to upstream, None where the header passed as it came
    parent_id: bytes | None  # 16; the span that the request came from
    code: str | None  # the protocol's own result code, where it is not an HTTP status
    rpc: Rpc | None  # of gRPC alone
    thrift: ThriftCall | None
    mqtt: MqttPacket | None
    fault: str | None  # what was wrong with the bytes, in the parser's words
    request_bytes: int
    response_bytes: int
    connect: float  # seconds that the dial took; -1 on exchanges that found the connection open
    started: float  # first byte of the request
    first_byte: float  # first byte of the final response
    ended: float
    following: Exchange | None  # the next one in flight on the same connection

    def __init__(self, protocol: Protocol = ..., started: float = ...) -> None: ...
