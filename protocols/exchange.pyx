"""One request with its response, as every protocol engine reports it.

A plain record: engines fill it in while bytes pass, nobody computes in it. Times are seconds of the
monotonic clock that the caller hands to the engine; texts stay the bytes that were on the wire.
``End`` says how the exchange ended as the two sockets showed it; whose fault that was is a verdict
and is decided elsewhere.
"""

cimport cython

PROTOCOL_NAMES = ("http/1.0", "http/1.1", "http/2", "grpc", "thrift", "mqtt", "websocket", "tls", "tcp")


@cython.no_gc
@cython.freelist(256)
cdef class Rpc:
    """What gRPC says beside HTTP; see ``exchange.pyi``."""

    def __cinit__(self):
        self.status = -1
        self.timeout = -1.0
        self.first_message = -1.0


@cython.no_gc
@cython.freelist(256)
cdef class ThriftCall:
    """What Thrift says of a call; see ``exchange.pyi``."""

    def __cinit__(self):
        self.exception_type = -1


@cython.no_gc
@cython.freelist(256)
cdef class MqttPacket:
    """What MQTT says of a packet and its answer; see ``exchange.pyi``."""

    def __cinit__(self):
        self.reason = -1
        self.keep_alive = -1
        self.session_present = -1
        self.silence = -1.0


# Exchanges are queued in one direction and never form a cycle: the collector need not know them.
@cython.no_gc
@cython.freelist(256)
cdef class Exchange:
    """See ``exchange.pyi`` for the meaning and unit of each field."""

    def __cinit__(self, Protocol protocol = TCP, double started = 0.0):
        self.protocol = protocol
        self.started = started
        self.end = COMPLETE
        self.stream_error = -1
        self.connect = -1.0
        self.first_byte = -1.0
        self.ended = -1.0

    def __repr__(self):
        method = self.method.decode("latin-1") if self.method else "-"
        target = self.target.decode("latin-1") if self.target else "-"
        return f"<Exchange {PROTOCOL_NAMES[self.protocol]} {method} {target} {self.status} {End(self.end).name}>"
