from protocols.exchange cimport End, Exchange

# What an engine wants its caller to look at after a call; several may be set.
cdef enum Signal:
    FINISHED = 1     # `finished` has exchanges to take
    REFUSED = 2      # `refusal` is to be carried out
    SUCCEEDED = 4    # `successor` takes over, with `held_request` and `held_response` fed to it first
    RESUMABLE = 8    # from_downstream(b"") would go on with what is held


cdef class Refusal:
    cdef readonly bytes answer


cdef class Codec:
    cdef public int signals
    cdef public list finished
    cdef readonly Refusal refusal
    cdef readonly Codec successor
    cdef readonly str fallback
    cdef readonly bint pause_downstream
    cdef readonly int in_flight

    cpdef bytes from_downstream(self, bytes data, double now)
    cpdef bytes from_upstream(self, bytes data, double now)
    cpdef bytes downstream_eof(self, double now)
    cpdef bytes upstream_eof(self, double now)
    cpdef bytes take_held_request(self)
    cpdef bytes take_held_response(self)
    cpdef dial_failed(self, int error, int status, str cause, str text, double now)
    cpdef end(self, End how, int error, double now)
    cpdef bint awaits_head(self, double since)


cdef class Opaque(Codec):
    cdef readonly Exchange exchange
