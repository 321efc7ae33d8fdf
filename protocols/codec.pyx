"""What every protocol engine is to its caller, and the engine for bytes that nobody reads.

An engine is sans-io: it is given the bytes of one side with the time they came, and returns the bytes for
the other side. Whatever else it has to say is left in attributes and announced in ``signals``: exchanges
that ended, a refusal to carry out, a successor to hand the connection to. The caller clears ``signals``.
"""

from protocols.exchange cimport COMPLETE, DIAL_FAILED, DOWNSTREAM_FIN, UPSTREAM_FIN, End, Exchange, Protocol

from protocols.exchange import PROTOCOL_NAMES


cdef double NEVER = float("inf")


cdef class Refusal:
    """The end of a connection that an engine will not carry on.

    ``answer`` is what downstream is to be sent before its connection is closed; when it is empty there is
    nothing left to say (the answer had begun) and the connection is cut. Upstream is cut in either case,
    behind ``to_upstream``.
    """

    def __cinit__(self, bytes answer, bytes to_upstream=b""):
        self.answer = answer
        self.to_upstream = to_upstream


cdef class Codec:
    """The engine's side of the contract; the signatures with their meaning are in ``codec.pyi``."""

    def __cinit__(self, *args, **kwargs):
        self.finished = []
        self.exceeded = []
        self.silent_after = NEVER

    cpdef bytes from_downstream(self, bytes data, double now):
        raise NotImplementedError

    cpdef bytes from_upstream(self, bytes data, double now):
        raise NotImplementedError

    cpdef bytes downstream_eof(self, double now):
        return b""

    cpdef bytes upstream_eof(self, double now):
        return b""

    cpdef bytes take_held_request(self):
        return b""

    cpdef bytes take_held_response(self):
        return b""

    cpdef dial_failed(self, int error, int status, str cause, str text, double now):
        raise NotImplementedError

    cpdef end(self, End how, int error, double now):
        raise NotImplementedError

    cpdef bint awaits_head(self, double since):
        return False

    cpdef bytes take_reply(self):
        return b""

    cpdef refuse_late_head(self, double now):
        raise NotImplementedError

    cpdef bytes begin_drain(self):
        return b""

    cpdef bytes farewell(self):
        return b""

    cpdef list running(self, double before):
        return []

    cpdef str protocol_name(self):
        raise NotImplementedError

    cpdef passed_on(self, bytes data, double now):
        raise NotImplementedError

    cpdef gone_silent(self, double now):
        raise NotImplementedError


cdef class Opaque(Codec):
    """Carries bytes untouched; the whole connection is one exchange that ends with ``end``."""

    def __init__(self, Protocol protocol, double now):
        self.exchange = Exchange(protocol, now)
        self.in_flight = 1

    cpdef bytes from_downstream(self, bytes data, double now):
        self.exchange.request_bytes += len(data)
        return data

    cpdef bytes from_upstream(self, bytes data, double now):
        if self.exchange.first_byte < 0:
            self.exchange.first_byte = now
        self.exchange.response_bytes += len(data)
        return data

    cpdef str protocol_name(self):
        return PROTOCOL_NAMES[self.exchange.protocol]

    cpdef dial_failed(self, int error, int status, str cause, str text, double now):
        self.end(DIAL_FAILED, error, now)
        self.refusal = Refusal(b"")
        self.signals |= REFUSED

    cpdef end(self, End how, int error, double now):
        if not self.in_flight:
            return
        self.in_flight = 0
        # A stream of which nothing is understood is complete when either end closes it in order.
        self.exchange.end = COMPLETE if how == DOWNSTREAM_FIN or how == UPSTREAM_FIN else how
        self.exchange.error = error
        self.exchange.ended = now
        self.finished.append(self.exchange)
        self.signals |= FINISHED
