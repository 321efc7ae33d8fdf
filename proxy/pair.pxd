from protocols.codec cimport Codec, Refusal
from protocols.exchange cimport End, Exchange, Protocol
from proxy.cells cimport Gauge
from proxy.telemetry cimport Connection, Telemetry


cdef class Side:
    cdef Pair pair
    cdef readonly bint is_downstream
    cdef object transport
    cdef object write
    cdef readonly int fd
    cdef int paused
    cdef bint eof
    cdef bint queued
    cdef bint finished
    cdef bint closing
    cdef bint watched
    cdef int error                  # what the kernel said of a write that failed

    cdef bytes rescue(self)
    cdef Py_ssize_t untaken(self)
    cdef send(self, bytes data)
    cdef finish(self)
    cdef pause(self, int reason)
    cdef resume(self, int reason)
    cdef watch(self)
    cdef unwatch(self)
    cdef close(self)
    cdef close_soon(self)
    cdef reset(self)
    cdef abort(self)


cdef class Pair:
    cdef object interceptor
    cdef Telemetry telemetry
    cdef readonly Connection connection
    cdef readonly Side downstream
    cdef readonly Side upstream
    cdef readonly object destination
    cdef object fixed_destination
    cdef Codec codec
    cdef bytes first                # what downstream said, while its protocol is undecided
    cdef double first_came
    cdef object dial
    cdef double dialed
    cdef double connect_seconds
    cdef list backlog               # for upstream, while it is being dialed
    cdef Py_ssize_t backlog_size
    cdef tuple no_upstream
    cdef object timer
    cdef Gauge in_flight
    cdef list unsent                # exchanges that ask for no answer, while their bytes wait for the dial
    cdef int counted_in_flight
    cdef int counted_grpc           # of them
    cdef bint refused               # what still comes is not read
    cdef bint draining              # downstream was told so
    cdef bint over

    cdef accepted(self)
    cdef _begin(self, interceptor)
    cdef _dial_failed(self, int error)
    cdef _tell_dial_failed(self)
    cdef _mirror_failed_dial_in(self, double seconds)
    cdef from_side(self, Side side, bytes data)
    cdef _from_downstream(self, bytes data, double now)
    cdef _from_upstream(self, bytes data, double now)
    cdef _reply(self, Side heard)
    cdef _to_upstream(self, bytes data)
    cdef bytes _recognise(self, bytes data, double now)
    cdef _rename_opaque(self, Protocol protocol)
    cdef Codec _engine(self, found)
    cdef _take_back_stand_in(self)
    cdef _recognise_server(self, bytes data, double now)
    cdef _go_on_opaque(self, str how, double now)
    cdef _adopt(self, Codec codec)
    cdef _attend(self, double now)
    cdef _take_finished(self)
    cdef _keep_unsent(self, Exchange exchange)
    cdef _tell_unsent(self, End how, int error)
    cdef _record(self, Exchange exchange)
    cdef _excuse_silence(self, double now)
    cdef bint unread(self)
    cdef dict _tcp_facts(self)
    cdef _count_in_flight(self)
    cdef eof_of_side(self, Side side)
    cdef side_eof(self, Side side)
    cdef bint _close_if_both_ended(self, End how)
    cdef _pass_fin_on(self)
    cdef _defect(self)
    cdef _carry_out(self, Refusal refusal)
    cdef _drop_upstream(self)
    cdef _fail(self, End how, int error)
    cdef _end(self, End how, int error)
