from protocols.exchange cimport End, Exchange

# What an engine wants its caller to look at after a call; several may be set.
cdef enum Signal:
    FINISHED = 1     # `finished` has exchanges to take
    REFUSED = 2      # `refusal` is to be carried out
    SUCCEEDED = 4    # `successor` takes over, with `held_request` and `held_response` fed to it first
    RESUMABLE = 8    # from_downstream(b"") would go on with what is held
    REPLY = 16       # take_reply() has bytes for the very side that was just heard
    EXCEEDED = 32    # `exceeded` has limits that a peer went over


cdef double NEVER


cdef class Refusal:
    cdef readonly bytes answer
    cdef readonly bytes to_upstream


cdef class Codec:
    cdef public int signals
    cdef public list finished
    cdef readonly Refusal refusal
    cdef readonly Codec successor
    cdef readonly str fallback
    cdef readonly bint pause_downstream
    cdef readonly int in_flight
    cdef readonly int in_flight_grpc
    cdef public list exceeded
    cdef readonly double silent_after
    cdef readonly double heard
    cdef public double read_since

    cpdef bytes from_downstream(self, bytes data, double now)
    cpdef bytes from_upstream(self, bytes data, double now)
    cpdef bytes downstream_eof(self, double now)
    cpdef bytes upstream_eof(self, double now)
    cpdef bytes take_held_request(self)
    cpdef bytes take_held_response(self)
    cpdef dial_failed(self, int error, int status, str cause, str text, double now)
    cpdef end(self, End how, int error, double now)
    cpdef bint awaits_head(self, double since)
    cpdef bytes take_reply(self)
    cpdef refuse_late_head(self, double now)
    cpdef bytes begin_drain(self)
    cpdef bytes farewell(self)
    cpdef list running(self, double before)
    cpdef str protocol_name(self)
    cpdef passed_on(self, bytes data, double now)
    cpdef gone_silent(self, double now)


cdef class Opaque(Codec):
    cdef readonly Exchange exchange
