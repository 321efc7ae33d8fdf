"""One downstream connection and the one upstream connection that it becomes.

All socket work of a connection is here, and no knowledge of any protocol: bytes go through the codec, and
what one side does to its connection (end it, reset it, stop reading it) is done to the other. Downstream is
never read faster than upstream takes it, nor the other way round. A pair ends when both its sockets are gone;
until then it owns everything that belongs to it: the dial, the timer, the bytes that wait for the dial.
"""

import errno
import logging
import os

from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport EAGAIN, errno as c_errno
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from protocols.codec cimport (
    Codec, EXCEEDED, FINISHED, NEVER, Opaque, REFUSED, REPLY, RESUMABLE, Refusal, SUCCEEDED,
)
from protocols.exchange cimport (
    COMPLETE, DIAL_FAILED, DOWNSTREAM_FAULT, DOWNSTREAM_FIN, DOWNSTREAM_RST, DRAINED, End, Exchange, INTERNAL,
    Protocol, TCP, TLS, UPSTREAM_FIN, UPSTREAM_RST, WEBSOCKET,
)
from protocols.http1 cimport Http1
from protocols.http2 cimport Http2
from protocols.mqtt cimport Mqtt
from protocols.thrift cimport Thrift
from protocols.websocket cimport WebSocket
from proxy.cells cimport Gauge
from proxy.telemetry cimport Connection, Telemetry

from netfilter.destination import unmapped
from protocols.detect import Recognised, recognise, recognise_server
from proxy.verdicts import dial_answer

_log = logging.getLogger("arca.pair")

cdef object _HOLD = Recognised.HOLD
cdef object _PASS = Recognised.PASS
cdef object _TLS = Recognised.TLS
cdef object _THRIFT = Recognised.THRIFT
# The engines that read a protocol, made with (ids, strict). What has none here is carried opaque.
cdef dict _ENGINES = {
    Recognised.HTTP_1: Http1,
    Recognised.HTTP_2: Http2,
    Recognised.THRIFT: Thrift,
    Recognised.MQTT: Mqtt,
}
# Those whose connection is something that ends, though nothing be in flight on it.
cdef tuple _SESSIONS = (Mqtt, WebSocket)
# What a recognised protocol is called in arca_detect_total.
_LABELS = {
    Recognised.HTTP_1: "http/1.1",
    Recognised.HTTP_2: "http/2",
    Recognised.TLS: "tls",
    Recognised.THRIFT: "thrift",
    Recognised.MQTT: "mqtt",
    Recognised.TCP: "tcp",
}

cdef extern from "sys/socket.h":
    int c_setsockopt "setsockopt"(int fd, int level, int name, const void* value, unsigned int length) nogil
    ssize_t c_send "send"(int fd, const void* data, size_t n, int flags) nogil
    int MSG_DONTWAIT, MSG_NOSIGNAL
    int c_getsockopt "getsockopt"(int fd, int level, int name, void* value, unsigned int* length) nogil
    cdef struct linger:
        int l_onoff
        int l_linger
    int SOL_SOCKET, SO_LINGER, SO_KEEPALIVE

cdef extern from "netinet/tcp.h":
    cdef struct tcp_info:
        unsigned int tcpi_rtt
        unsigned int tcpi_total_retrans
    int TCP_INFO, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT

cdef extern from "netinet/in.h":
    int IPPROTO_TCP

cdef extern from "sys/ioctl.h":
    int ioctl(int fd, unsigned long request, int* value) nogil

cdef extern from "asm/ioctls.h":
    unsigned long FIONREAD

cdef extern from "linux/sockios.h":
    unsigned long SIOCOUTQ

# Why a side is not read.
cdef enum Reason:
    PEER_FULL = 1   # the other side does not take what it is sent
    ENGINE = 2      # the codec wants no more for now
    DIALING = 4     # there is no upstream yet to take it
    ANSWERING = 8   # it does not take what the codec itself has to say to it
    TURN = 16       # what was read last took long enough

cdef enum:
    # A transport with more than this unsent stops the other side being read. One read is 256 KiB at most
    # (uvloop's buffer), so a pair holds at most 2 x (64 + 256) KiB and one head.
    WRITE_HIGH = 64 * 1024
    WRITE_LOW = 16 * 1024
    RESCUE_READS = 64
    MAX_UNSENT = 1024  # exchanges kept until the dial is done; what is beyond is not told
    # libuv reads on up to 32 times while its buffer (256 KiB) comes back full, and there may be thousands of exchanges
    # in each: after as much as this, if it took as long as _TURN_SECONDS, all other connections have their turn first.
    TURN_READ = 64 * 1024
    KEEPALIVE_IDLE = 120
    KEEPALIVE_INTERVAL = 30
    KEEPALIVE_COUNT = 5

# After an answer of our own the connection is half closed and read on, because closing with unread bytes would
# reset it and could take the answer with it (RFC 9112 section 9.6; nginx's lingering_timeout is 5 s).
_LINGER_SECONDS = 2.0
# A dial failed and downstream has said nothing yet that could be answered in its protocol.
_SILENCE_SECONDS = 1.0
# A dial failed and downstream speaks a protocol, but asks for nothing: gRPC clients ask only when the server's
# SETTINGS came. A reset soon makes them try another address, or report the failure, as they would without us.
_UNASKED_SECONDS = 0.1
cdef double _TURN_SECONDS = 0.002
# A reset overtakes bytes still unsent: it waits for them, but not for a peer that does not read.
_RESET_POLL_SECONDS = 0.01
_RESET_POLLS = 100


cdef inline double clock() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + t.tv_nsec * 1e-9


cdef inline void set_option(int fd, int level, int name, int value) noexcept nogil:
    c_setsockopt(fd, level, name, &value, sizeof(value))


cdef dict tcp_facts(int fd):
    """What TCP_INFO says of a socket: smoothed round-trip time, and segments sent again since it began."""
    cdef tcp_info info
    cdef unsigned int length = sizeof(info)
    if fd < 0 or c_getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0:
        return None
    return {"rtt_ms": info.tcpi_rtt / 1000.0, "retransmits": info.tcpi_total_retrans}


cdef class Side:
    """One of the two connections, as the event loop's protocol object.

    ``eof``: its peer sent FIN. ``finished``: we did. ``closing``: it is being taken down by us.
    """

    def __init__(self, Pair pair, bint is_downstream):
        self.pair = pair
        self.is_downstream = is_downstream
        self.fd = -1

    # -- what the event loop tells -------------------------------------------------------------------------

    def connection_made(self, transport):
        self.transport = transport
        self.write = transport.write
        self.fd = transport.get_extra_info("socket").fileno()
        transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        set_option(self.fd, SOL_SOCKET, SO_KEEPALIVE, 1)
        set_option(self.fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE)
        set_option(self.fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        set_option(self.fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT)
        if self.is_downstream:
            self.pair.accepted()

    def data_received(self, bytes data):
        if not self.closing:
            self.pair.from_side(self, data)

    def eof_received(self):
        self.eof = True
        if not self.closing:
            self.pair.eof_of_side(self)
        return True

    def pause_writing(self):
        cdef Side other = self.pair.upstream if self.is_downstream else self.pair.downstream
        if other is not None:
            other.pause(PEER_FULL)

    def resume_writing(self):
        cdef Side other = self.pair.upstream if self.is_downstream else self.pair.downstream
        self.resume(ANSWERING)
        if other is not None:
            other.resume(PEER_FULL)

    def connection_lost(self, error):
        self.unwatch()
        try:
            if self.fd >= 0:
                self.pair.interceptor.count_retransmits(self.is_downstream, tcp_facts(self.fd))
            if not self.closing:
                self.pair.side_failed(self, error)
        finally:
            self.transport = self.write = None
            self.fd = -1
            self.pair.side_gone()

    # -- what the pair asks --------------------------------------------------------------------------------

    cdef send(self, bytes data):
        """Hand the bytes to the kernel, and what it does not take to the transport, which keeps it."""
        cdef Py_ssize_t sent = 0
        if self.write is None or self.finished or self.closing or not data:
            return
        if self.queued and not self.transport.get_write_buffer_size():
            self.queued = False
        if not self.queued:
            # The transport's own write does the same, at three times the cost of the call. An error here is met
            # again by the transport, whose to report it is; but the kernel tells each error only once.
            sent = c_send(self.fd, PyBytes_AS_STRING(data), len(data), MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent == len(data):
                return
            if sent < 0 and c_errno != EAGAIN:
                self.error = c_errno
            self.queued = True
        self.write(data if sent <= 0 else data[sent:])

    cdef finish(self):
        """Send FIN behind everything that was sent."""
        if self.transport is not None and not self.finished and not self.closing:
            self.finished = True
            self.transport.write_eof()

    cdef pause(self, int reason):
        if not self.paused and self.transport is not None and not self.closing and not self.eof:
            self.transport.pause_reading()
            if self.is_downstream:
                self.watch()
                if self.pair.codec is not None:
                    self.pair.codec.read_since = NEVER
        self.paused |= reason

    cdef resume(self, int reason):
        if not self.paused & reason:
            return
        self.paused &= ~reason
        if not self.paused and self.transport is not None and not self.closing and not self.eof:
            self.unwatch()
            self.transport.resume_reading()
            if self.is_downstream and self.pair.codec is not None:
                self.pair.codec.read_since = clock()

    def take_turn(self):
        self.resume(TURN)

    cdef watch(self):
        """The loop does not hear this side now: have a reset reported nevertheless."""
        if not self.watched and self.fd >= 0:
            self.watched = True
            self.pair.interceptor.hangups.watch(self.fd, self)

    cdef unwatch(self):
        if self.watched:
            self.watched = False
            self.pair.interceptor.hangups.unwatch(self.fd)

    def hung_up(self, int error):
        """The connection failed with ``error`` while nobody read it."""
        self.watched = False
        if self.transport is not None and not self.closing:
            self.pair.side_failed(self, OSError(error, os.strerror(error)))
            self.transport.abort()

    cdef bytes rescue(self):
        """What the kernel still holds of a connection on which a write failed: its peer may have answered first."""
        cdef list pieces = []
        while self.fd >= 0 and len(pieces) < RESCUE_READS:
            try:
                piece = os.read(self.fd, 64 * 1024)
            except OSError:
                break
            if not piece:
                break
            pieces.append(piece)
        return b"".join(pieces)

    cdef Py_ssize_t untaken(self):
        """How many of the bytes that were sent the peer has not acknowledged."""
        cdef int queued = 0
        ioctl(self.fd, SIOCOUTQ, &queued)
        if self.finished and queued:
            queued -= 1  # the FIN counts as one
        return <Py_ssize_t>self.transport.get_write_buffer_size() + queued

    cdef close(self):
        """Take it down in order: what was sent is still delivered, then FIN."""
        if self.transport is not None and not self.closing:
            self.closing = True
            self.transport.close()

    cdef close_soon(self):
        """As ``close``, but a peer that takes nothing for a second is reset."""
        self.close()
        self._abort_if_stuck(0, _RESET_POLLS)

    def _abort_if_stuck(self, Py_ssize_t last, int polls):
        """``last`` is how much waited at the last look, ``polls`` how often to look still."""
        cdef Py_ssize_t left
        if self.transport is None:
            return
        left = self.transport.get_write_buffer_size()
        polls = _RESET_POLLS if left < last else polls - 1
        if polls:
            self.pair.interceptor.loop.call_later(_RESET_POLL_SECONDS, self._abort_if_stuck, left, polls)
        else:
            self.abort()

    cdef reset(self):
        """Take it down with RST, after what was sent has been taken by the peer or did not move for a second."""
        if self.transport is None or self.closing:
            return
        self.closing = True
        if not self.eof:
            self.transport.pause_reading()
        self._reset_when_sent(0, _RESET_POLLS)

    def _reset_when_sent(self, Py_ssize_t last, int polls):
        """``last`` is how much was not taken by the peer yet at the last look, ``polls`` how often to look still."""
        cdef Py_ssize_t left
        if self.transport is None:
            return
        left = self.untaken()
        if left and polls:
            polls = _RESET_POLLS if left < last else polls - 1
            self.pair.interceptor.loop.call_later(_RESET_POLL_SECONDS, self._reset_when_sent, left, polls)
            return
        self.abort()

    cdef abort(self):
        """RST, now. SO_LINGER of 0 seconds: tcp_close() in net/ipv4/tcp.c resets instead of sending FIN."""
        cdef linger now
        if self.transport is None:
            return
        self.closing = True
        now.l_onoff = 1
        now.l_linger = 0
        c_setsockopt(self.fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now))
        self.transport.abort()


cdef class Pair:
    """Made for every accepted connection; ``destination`` is given in forward mode, else the kernel is asked."""

    def __init__(self, interceptor, Telemetry telemetry, fixed_destination):
        self.interceptor = interceptor
        self.telemetry = telemetry
        self.fixed_destination = fixed_destination
        self.downstream = Side(self, True)
        self.first = b""
        self.connect_seconds = -1.0

    # -- beginning -----------------------------------------------------------------------------------------

    cdef accepted(self):
        interceptor = self.interceptor
        interceptor.remember(self)
        try:
            self._begin(interceptor)
        except Exception as error:
            # Not all of it is there yet: nothing but the socket is to be taken down.
            if not isinstance(error, OSError):
                _log.exception("an accepted connection is reset: ARCA failed")
            self.refused = True
            self._drop_upstream()
            self.downstream.reset()

    cdef _begin(self, interceptor):
        cdef double now = clock()
        peer = self.downstream.transport.get_extra_info("peername")
        self.destination, inbound, refusal = interceptor.admit(self.downstream.fd, self.fixed_destination)
        self.connection = Connection(
            interceptor.next_id(), "unknown" if peer is None else address_text(unmapped(peer)),
            address_text(self.destination), inbound, now,
        )
        if refusal is not None:
            self._end(refusal, 0)
            self.refused = True
            self.downstream.reset()
            return
        self.dialed = now
        self.upstream = Side(self, False)
        self.dial = interceptor.start_dial(self)

    def connected(self, double at):
        """The upstream side has its connection, since ``at``; what waited for it goes on."""
        self.dial = None
        if self.refused or self.downstream.closing or self.downstream.transport is None:
            self.upstream.reset()
            self.side_gone()
            return
        self.connect_seconds = at - self.dialed
        self.interceptor.connect_duration.observe(self.connect_seconds)
        if self.backlog is not None:
            for data in self.backlog:
                self.upstream.send(data)
            self.backlog = None
            self._tell_unsent(COMPLETE, 0)
        self.downstream.resume(DIALING)
        self._pass_fin_on()
        self._close_if_both_ended(UPSTREAM_FIN)

    def dial_failed(self, int error):
        try:
            self._dial_failed(error)
        except Exception:
            self._defect()

    cdef _dial_failed(self, int error):
        """The dial came to nothing: downstream is told in its own protocol, as soon as that is known."""
        self.dial = self.upstream = self.backlog = None
        if self.refused or self.downstream.closing or self.downstream.transport is None:
            self.side_gone()
            return
        self.connect_seconds = clock() - self.dialed
        self.interceptor.connect_duration.observe(self.connect_seconds)
        if error == errno.ECONNRESET or error == errno.EPIPE:
            # A SYN is refused with another error (tcp_reset() in tcp_input.c): this connection was made, and
            # reset before it was looked at.
            self._fail(UPSTREAM_RST, errno.ECONNRESET)
            return
        self._tell_unsent(DIAL_FAILED, error)
        self.no_upstream = (error, *dial_answer(error, self.connection.server))
        if self.first and self.codec is not None:
            # Undecided yet, and what went on went nowhere.
            self._take_back_stand_in()
        if self.codec is not None:
            self._tell_dial_failed()
        if self.refused:
            return
        if self.downstream.eof:
            self._fail(DIAL_FAILED, error)
            return
        self.downstream.resume(DIALING)
        if self.codec is None:
            self._mirror_failed_dial_in(_SILENCE_SECONDS)

    cdef _tell_dial_failed(self):
        cdef double now = clock()
        error, status, cause, text = self.no_upstream
        self.codec.dial_failed(error, status, cause, text, now)
        self._attend(now)
        if not self.refused:
            self._mirror_failed_dial_in(_UNASKED_SECONDS)

    cdef _mirror_failed_dial_in(self, double seconds):
        """Downstream is reset then, unless it asked for something that can be answered."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.interceptor.loop.call_later(seconds, self._silence)

    def _silence(self):
        self.timer = None
        if self.refused:
            return
        if self.awaits_head(clock()) and not (self.codec is None and recognise(self.first) == _PASS):
            # It may become a request that can be answered, or after all none (HTTP/2's SETTINGS, in pieces).
            self._mirror_failed_dial_in(_SILENCE_SECONDS)
        else:
            self._fail(DIAL_FAILED, self.no_upstream[0])

    # -- bytes ---------------------------------------------------------------------------------------------

    cdef from_side(self, Side side, bytes data):
        cdef double now
        if self.refused:
            return
        now = clock()
        try:
            if side.is_downstream:
                self._from_downstream(data, now)
            else:
                self._from_upstream(data, now)
            if len(data) >= TURN_READ and clock() - now > _TURN_SECONDS:
                side.pause(TURN)
                self.interceptor.loop.call_soon(side.take_turn)
        except Exception:
            self._defect()

    cdef eof_of_side(self, Side side):
        try:
            self.side_eof(side)
        except Exception:
            self._defect()

    cdef _defect(self):
        """An exception is being handled that no code here should raise: the two ends learn of it as of a reset."""
        _log.exception("connection %s to %s is reset: ARCA failed", self.connection.id, self.connection.server)
        self._fail(INTERNAL, 0)

    cdef _from_downstream(self, bytes data, double now):
        cdef bytes out
        if self.first is not None:
            data = self._recognise(data, now)
            if data is None:
                return
        out = self.codec.from_downstream(data, now)
        if out:
            self._to_upstream(out)
        if self.codec.signals & REPLY:
            self._reply(self.downstream)
        if self.codec.signals or self.codec.in_flight != self.counted_in_flight or self.codec.pause_downstream:
            self._attend(now)

    cdef _from_upstream(self, bytes data, double now):
        cdef bytes out
        if self.codec is None:
            self._recognise_server(data, now)
            if self.refused:
                return
        if now - self.codec.heard > 1.0:
            self._excuse_silence(now)
        out = self.codec.from_upstream(data, now)
        if out:
            self.downstream.send(out)
        if self.codec.signals & REPLY:
            self._reply(self.upstream)
        if self.codec.signals or self.codec.in_flight != self.counted_in_flight:
            self._attend(now)

    cdef _reply(self, Side heard):
        """What the codec itself has to say to the side that was just heard, behind what was sent there before."""
        cdef bytes reply
        if not self.codec.signals & REPLY:
            return
        self.codec.signals &= ~REPLY
        reply = self.codec.take_reply()
        if not reply:
            return
        heard.send(reply)
        if heard.transport is not None and heard.transport.get_write_buffer_size() > WRITE_HIGH:
            heard.pause(ANSWERING)

    cdef _to_upstream(self, bytes data):
        if self.upstream is None:
            return
        if self.dial is None:
            self.upstream.send(data)
            return
        if self.backlog is None:
            self.backlog = []
            self.backlog_size = 0
        self.backlog.append(data)
        self.backlog_size += len(data)
        if self.backlog_size > WRITE_HIGH:
            self.downstream.pause(DIALING)

    cdef bytes _recognise(self, bytes data, double now):
        """What is to be given to the codec now; None while the protocol is undecided and bytes are held back."""
        cdef Protocol protocol
        cdef Codec engine
        cdef bytes passed
        if not self.first:
            self.first_came = now
        self.first += data
        found = recognise(self.first)
        if found == _HOLD:
            return None
        if self.codec is None:
            data = self.first
        if found == _PASS:
            if self.no_upstream is not None:
                return None  # there is nowhere to go on to, and it can still be told what nobody answers
            if self.codec is None:
                self._adopt(Opaque(TCP, self.connection.opened))
            return data
        passed = self.first[:len(self.first) - len(data)]
        if passed and found in _ENGINES and (<Opaque>self.codec).exchange.first_byte >= 0:
            # The server spoke meanwhile, to nobody who reads: the engine would not know what was said.
            self._go_on_opaque("server_first", now)
            return data
        self.first = None
        if found in _ENGINES:
            engine = self._engine(found)
            if passed:
                self._take_back_stand_in()
                engine.passed_on(passed, self.first_came)
            self._adopt(engine)
        else:
            protocol = TLS if found == _TLS else TCP
            if self.codec is None:
                self._adopt(Opaque(protocol, self.connection.opened))
            else:
                self._rename_opaque(protocol)
        self.interceptor.detected(_LABELS[found], "first_bytes", self.connection.inbound)
        return data

    cdef Codec _engine(self, found):
        cdef Codec engine = _ENGINES[found](self.interceptor.ids, self.interceptor.strict)
        if found == _THRIFT:
            (<Thrift>engine).frame_limit = self.interceptor.thrift_frame_bytes
        return engine

    cdef _take_back_stand_in(self):
        """The opaque exchange that stood in while the protocol was undecided is none: nobody hears of it."""
        self.in_flight.add(-self.counted_in_flight)
        self.counted_in_flight = 0
        self.codec = None

    cdef _rename_opaque(self, Protocol protocol):
        """Bytes that could go on already turned out to be of this protocol."""
        self.in_flight.add(-self.counted_in_flight)
        (<Opaque>self.codec).exchange.protocol = protocol
        self.in_flight = self.interceptor.in_flight_gauge(self.codec.protocol_name())
        self.in_flight.add(self.counted_in_flight)

    cdef _recognise_server(self, bytes data, double now):
        """The server speaks before downstream was recognised: what it says decides, once and for all.

        What downstream said that was held back goes to the engine first. The server may have been asked for nothing
        else: an engine that finds downstream speaking another protocol gives up by itself.
        """
        cdef bytes held = self.first
        cdef bytes out
        found = recognise_server(data)
        if found not in _ENGINES:
            self._go_on_opaque("server_first", now)
            return
        self.first = None
        self.interceptor.detected(_LABELS[found], "server_first", self.connection.inbound)
        self._adopt(self._engine(found))
        if held:
            out = self.codec.from_downstream(held, now)
            if out:
                self._to_upstream(out)
            self._reply(self.downstream)
            self._attend(now)

    cdef _go_on_opaque(self, str how, double now):
        """Nothing that downstream may still say will be read: what was held back goes on."""
        cdef bytes held = self.first
        self.first = None
        self.interceptor.detected("tcp", how, self.connection.inbound)
        if self.codec is None:
            opaque = Opaque(TCP, self.connection.opened)
            if held:
                held = opaque.from_downstream(held, now)
            self._adopt(opaque)
            if held:
                self._to_upstream(held)

    cdef _adopt(self, Codec codec):
        self.codec = codec
        if self.downstream.paused:
            codec.read_since = NEVER
        self.in_flight = self.interceptor.in_flight_gauge(codec.protocol_name())
        if self.no_upstream is not None:
            self._tell_dial_failed()

    cdef _attend(self, double now):
        """Do what the codec asks for besides the bytes."""
        cdef Codec codec = self.codec
        cdef int signals
        cdef bytes held_request, held_response
        while codec.signals:
            signals = codec.signals
            codec.signals = 0
            if signals & FINISHED:
                self._take_finished()
            if signals & EXCEEDED:
                for limit, side in codec.exceeded:
                    self.interceptor.exceeded(codec.protocol_name(), limit, side)
                codec.exceeded.clear()
            if signals & SUCCEEDED:
                self._count_in_flight()
                if codec.fallback is not None:
                    self.interceptor.fell_back(codec.protocol_name(), codec.fallback)
                held_request = codec.take_held_request()
                held_response = codec.take_held_response()
                self.counted_in_flight = self.counted_grpc = 0
                codec = codec.successor
                self._adopt(codec)
                if held_request:
                    self._to_upstream(codec.from_downstream(held_request, now))
                    self._reply(self.downstream)
                if held_response:
                    self.downstream.send(codec.from_upstream(held_response, now))
                    self._reply(self.upstream)
            elif signals & RESUMABLE:
                self._to_upstream(codec.from_downstream(b"", now))
                self._reply(self.downstream)
            if signals & REFUSED:
                self._count_in_flight()
                self._carry_out(codec.refusal)
                return
        self._count_in_flight()
        if codec.pause_downstream:
            self.downstream.pause(ENGINE)
        else:
            self.downstream.resume(ENGINE)
            self._pass_fin_on()

    cdef _take_finished(self):
        cdef Exchange exchange
        cdef list finished = self.codec.finished
        for exchange in finished:
            if exchange.end == COMPLETE and self.dial is not None:
                self._keep_unsent(exchange)
                continue
            if exchange.end == COMPLETE and self.no_upstream is not None:
                exchange.end = DIAL_FAILED
                exchange.error = self.no_upstream[0]
            self._record(exchange)
        finished.clear()

    cdef _keep_unsent(self, Exchange exchange):
        """It asks for no answer, and what became of it is known when the dial is done."""
        if self.unsent is None:
            self.unsent = []
        if len(self.unsent) < MAX_UNSENT:
            self.unsent.append(exchange)
        else:
            self.interceptor.exceeded(self.codec.protocol_name(), "unsent", "downstream")
            self.downstream.pause(DIALING)

    cdef _tell_unsent(self, End how, int error):
        """What became of the exchanges that ended before anything of them could be sent."""
        cdef Exchange exchange
        cdef list unsent = self.unsent
        if unsent is None:
            return
        self.unsent = None
        for exchange in unsent:
            exchange.end = how
            exchange.error = error
            exchange.ended = clock()
            self._record(exchange)

    cdef _record(self, Exchange exchange):
        cdef object tcp = None
        if self.connect_seconds >= 0:
            exchange.connect = self.connect_seconds
            self.connect_seconds = -1.0
        if (
            exchange.end != COMPLETE or exchange.status >= 400 or exchange.protocol >= WEBSOCKET
            or exchange.ended - exchange.started >= self.telemetry.slow
            or exchange.failed or (exchange.rpc is not None and exchange.rpc.status != 0)
        ):
            tcp = self._tcp_facts()
        self.telemetry.record(exchange, self.connection, tcp)

    cdef inline _excuse_silence(self, double now):
        """Before a codec that watches for silence may blame downstream for it: what waits to be read is none."""
        if self.codec.silent_after < NEVER and self.unread():
            self.codec.read_since = now

    cdef bint unread(self):
        """Whether downstream said something that nobody heard yet."""
        cdef int waiting = 0
        return self.downstream.fd >= 0 and ioctl(self.downstream.fd, FIONREAD, &waiting) == 0 and waiting > 0

    cdef dict _tcp_facts(self):
        return {
            "downstream": tcp_facts(self.downstream.fd),
            "upstream": None if self.upstream is None else tcp_facts(self.upstream.fd),
        }

    cdef _count_in_flight(self):
        """gRPC is counted as such, whatever carries it; the rest under the name of the connection's protocol."""
        cdef int grpc = self.codec.in_flight_grpc - self.counted_grpc
        cdef int others = self.codec.in_flight - self.counted_in_flight - grpc
        self.counted_in_flight += others + grpc
        if others:
            self.in_flight.add(others)
        if grpc:
            self.counted_grpc += grpc
            self.interceptor.grpc_in_flight.add(grpc)

    # -- ends ----------------------------------------------------------------------------------------------

    cdef side_eof(self, Side side):
        """A FIN goes on as a FIN, behind what came before it."""
        cdef double now = clock()
        cdef bytes rest
        if self.refused:
            side.close()
            return
        if self.first is not None and (self.codec is not None or self.first or not side.is_downstream):
            self._go_on_opaque("closed", now)
        if side.is_downstream:
            if self.codec is not None:
                rest = self.codec.downstream_eof(now)
                if rest:
                    self._to_upstream(rest)
                self._reply(side)
                self._attend(now)
            if self.refused:
                return
            if self.no_upstream is not None:
                self._fail(DIAL_FAILED, self.no_upstream[0])
                return
            self._pass_fin_on()
        else:
            self._excuse_silence(now)
            rest = self.codec.upstream_eof(now)
            if rest:
                self.downstream.send(rest)
            self._reply(side)
            self._attend(now)
            if self.refused:
                return
            self.downstream.finish()
        # Whoever ended first ended it.
        if not self._close_if_both_ended(UPSTREAM_FIN if side.is_downstream else DOWNSTREAM_FIN):
            side.watch()

    cdef bint _close_if_both_ended(self, End how):
        """Not before the dial's bytes went: upstream can say its FIN before ``connected`` was told."""
        if self.dial is not None or not (self.upstream.eof and self.downstream.eof):
            return False
        self._end(how, 0)
        self.upstream.close()
        self.downstream.close()
        return True

    cdef _pass_fin_on(self):
        """Downstream's FIN goes on, once there is an upstream and nothing that came before it waits."""
        if (
            self.downstream.eof and self.dial is None and self.upstream is not None
            and not (self.codec is not None and self.codec.pause_downstream)
        ):
            self.upstream.finish()

    def side_failed(self, Side side, error):
        """A connection was reset, or failed in another way: the other is reset, behind what came before that."""
        cdef int number = side.error or getattr(error, "errno", None) or errno.ECONNRESET
        cdef bytes rest
        if number == errno.ENOTCONN:
            # shutdown(2) found the connection gone, and says no more of it than that.
            number = errno.ECONNRESET
        side.closing = True
        if self.refused:
            return
        self.interceptor.count_reset("downstream" if side.is_downstream else "upstream", number)
        rest = side.rescue()
        if rest:
            self.from_side(side, rest)
        if not self.refused:
            self._fail(DOWNSTREAM_RST if side.is_downstream else UPSTREAM_RST, number)

    def side_gone(self):
        """The pair is over when both its sockets are, and nothing is on its way to become one."""
        if self.over or self.downstream.transport is not None or self.dial is not None:
            return
        if self.upstream is not None and self.upstream.transport is not None:
            return
        self.over = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.interceptor.forget(self)
        # No cycle is left for the collector, which seldom runs.
        self.downstream.pair = None
        if self.upstream is not None:
            self.upstream.pair = None

    cdef _carry_out(self, Refusal refusal):
        """The codec goes no further: each side is told why and closed, or cut where there is nothing to tell."""
        self.refused = True
        self._tell_unsent(DOWNSTREAM_FAULT, 0)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if refusal.to_upstream and self.dial is None and self.upstream is not None:
            self.upstream.send(refusal.to_upstream)
            self.upstream.close_soon()
        else:
            self._drop_upstream()
        if not refusal.answer:
            self.downstream.reset()
            return
        self.downstream.send(refusal.answer)
        if self.downstream.eof:
            self.downstream.close()
            return
        self.downstream.finish()
        self.downstream.resume(PEER_FULL | ENGINE | DIALING | ANSWERING | TURN)
        self.timer = self.interceptor.loop.call_later(_LINGER_SECONDS, self._linger_over)

    def _linger_over(self):
        self.timer = None
        if self.downstream.transport is not None and self.downstream.untaken():
            self.downstream.reset()
        else:
            self.downstream.close()

    cdef _drop_upstream(self):
        if self.dial is not None and self.dial.cancel():
            self.dial = None
        if self.upstream is not None:
            self.upstream.reset()

    cdef _fail(self, End how, int error):
        """Both connections are cut."""
        try:
            self._end(how, error)
        finally:
            self.refused = True
            self._drop_upstream()
            self.downstream.reset()

    cdef _end(self, End how, int error):
        """Whatever is in flight ended so."""
        cdef double now = clock()
        if self.first is not None:
            self._go_on_opaque("closed", now)
        self._tell_unsent(how, error)
        self._excuse_silence(now)
        self.codec.end(how, error, now)
        self.codec.signals = 0
        self._take_finished()
        self._count_in_flight()

    # -- what the interceptor asks -------------------------------------------------------------------------

    def awaits_head(self, double since):
        """Whether a request began before ``since`` (monotonic seconds) of which no complete head came."""
        if self.refused:
            return False
        if self.codec is None:
            return bool(self.first) and self.first_came < since
        return self.codec.awaits_head(since)

    def time_out_head(self):
        """Refuse the request whose head is late, unless an older one is still being answered: then not yet."""
        cdef double now = clock()
        if self.codec is not None and self.codec.in_flight:
            return
        if self.codec is None and self.no_upstream is not None:
            self._fail(DIAL_FAILED, self.no_upstream[0])
            return
        try:
            if self.codec is None:
                # Held back because it can become HTTP: it is told so, and upstream never hears of it.
                self._adopt(Http1(self.interceptor.ids, self.interceptor.strict))
                self.codec.from_downstream(self.first, self.first_came)
                self.first = None
            self.codec.refuse_late_head(now)
            self._attend(now)
        except Exception:
            self._defect()

    def gone_silent(self, double now):
        """Downstream was silent for longer than its protocol allows."""
        try:
            self.codec.gone_silent(now)
            self._attend(now)
        except Exception:
            self._defect()

    def report_running(self, double before, double now, int room):
        """Log the exchanges, ``room`` at most, that began before ``before`` and still run; answers how many do."""
        cdef Exchange exchange
        cdef list running
        cdef object tcp
        if self.refused or self.codec is None:
            return 0
        running = self.codec.running(before)
        if running:
            tcp = self._tcp_facts()
            for exchange in running[:max(room, 0)]:
                self.telemetry.record_running(exchange, self.connection, tcp, now)
        return len(running)

    def finish_if_idle(self):
        """Close a pair on which nothing is in flight; answers whether it was."""
        if self.refused:
            return False  # it is ending already
        if self.codec is None:
            if self.first:
                return False
        else:
            try:
                if self.codec.in_flight or self.unsent is not None or self.codec.awaits_head(clock()):
                    if not self.draining:
                        self.draining = True
                        self.downstream.send(self.codec.begin_drain())
                    return False
                self.downstream.send(self.codec.farewell())
                if isinstance(self.codec, _SESSIONS):
                    self._end(DRAINED, 0)
            except Exception:
                self._defect()
                return True
        self.refused = True
        if self.upstream is not None:
            self.upstream.close()
        if self.dial is not None and self.dial.cancel():
            self.dial = None
        self.downstream.close()
        return True

    def cut(self):
        """ARCA stops: whatever is in flight ends here."""
        if not self.refused:
            self._fail(DRAINED, 0)

    def abort(self):
        """Take down what is left at once, whatever waits to be sent."""
        self.downstream.abort()
        if self.upstream is not None:
            self.upstream.abort()

    def describe(self):
        """The pair for /connections."""
        return {
            "connection": self.connection.id,
            "client": self.connection.client,
            "server": self.connection.server,
            "direction": "inbound" if self.connection.inbound else "outbound",
            "protocol": None if self.codec is None else self.codec.protocol_name(),
            "age_seconds": round(clock() - self.connection.opened, 3),
            "in_flight": 0 if self.codec is None else self.codec.in_flight,
            "connected": self.upstream is not None and self.upstream.transport is not None,
            "paused": {
                "downstream": bool(self.downstream.paused),
                "upstream": self.upstream is not None and bool(self.upstream.paused),
            },
        }


def silent_pairs(set pairs, double now, Py_ssize_t most):
    """At most so many of those whose downstream has been silent for too long. What nobody heard may have been said: a
    pair that does not read downstream for now, or whose turn to be read has not come yet, is looked at again.
    """
    cdef Pair pair
    cdef list found = []
    for pair in pairs:
        if pair.codec is None or pair.codec.silent_after >= now or pair.refused:
            continue
        if not pair.downstream.paused and not pair.unread():
            found.append(pair)
            if len(found) >= most:
                break
    return found


def address_text(address):
    """``host:port``, with brackets around an IPv6 host."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
