"""Thrift, observed and passed on.

Every message is read as far as its name, and every reply as far as what it came to, as their bytes pass; the long
rest of a frame passes by count, and a message without a frame is skipped by type (``thrift_messages``). Transport
and encoding are told by the first bytes of each direction, for a server may answer in its own way. Calls wait in the
order they came; a reply belongs to the call with its sequence id, or, where a server does not give that back, to one
of its method.

Nothing is changed but the head of the header transport's frames, where trace headers have a place (``thrift_header``):
no other byte is held back. What cannot be read is carried untouched from there, for no peer may depend on ARCA
knowing its dialect.
"""

import zlib
from collections import deque
from operator import attrgetter

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING
from libc.string cimport memcmp

from protocols.assembly cimport Assembly
from protocols.codec cimport EXCEEDED, FINISHED, Opaque, REFUSED, Refusal, SUCCEEDED
from protocols.exchange cimport (
    COMPLETE, DIAL_FAILED, DOWNSTREAM_FAULT, DOWNSTREAM_FIN, End, Exchange, HEAD_TIMEOUT, LIMIT, TCP, THRIFT,
    ThriftCall, UNREADABLE, UPSTREAM_FAULT, UPSTREAM_FIN, UPSTREAM_RST,
)
from protocols.thrift_header cimport (
    BROKEN, HEADER_PREFIX, HeaderBlock, MAX_HEADER, MIN_HEADER_FRAME, OTHER, ZLIB,
)
from protocols.thrift_messages cimport (
    BINARY_OLD, CALL, EXCEPTION, FAULTY, Fault, HEAD_READ, MAX_NAME, MORE, ONEWAY, OVER, REPLY, Reader, Step, TOO_DEEP,
    begin_message, read_message,
)

from protocols.thrift_messages import FAULTS

cdef enum:
    DEFAULT_FRAME_LIMIT = 16384000  # Thrift's own (TConfiguration::DEFAULT_MAX_FRAME_SIZE)
    MAX_IN_FLIGHT = 4096            # exchanges of one connection
    MAX_AT_ONCE = 16384             # of them that one call ends: a read holds more of the shortest oneway calls
    MAX_KEPT = 1024 * 1024          # bytes of their names and ids
    MAX_ID = 1024                   # of a request id
    # What is inflated of one payload, and how much of it at a time.
    MAX_INFLATED = 64 * 1024
    INFLATED_PIECE = 4096
    INFLATED_HEAD = 1200            # of a message until its head was read, whose name is the longest of it
    # Of all inflated bytes in one read: to read on in what takes none on the wire would stall all other connections.
    MAX_READ_AT_ONCE = 1024 * 1024
    MAX_LOOKED_AT = 64              # calls, for one with the name of a reply

_TRANSPORTS = ("", "buffered", "framed", "header")
_ENCODINGS = ("binary", "binary-old", "compact")

# TApplicationExceptionType, thrift-rpc.md.
_EXCEPTION_TYPES = (
    "UNKNOWN", "UNKNOWN_METHOD", "INVALID_MESSAGE_TYPE", "WRONG_METHOD_NAME", "BAD_SEQUENCE_ID", "MISSING_RESULT",
    "INTERNAL_ERROR", "PROTOCOL_ERROR", "INVALID_TRANSFORM", "INVALID_PROTOCOL", "UNSUPPORTED_CLIENT_TYPE",
)

cdef str BEYOND_FRAME = "a message that goes on beyond its frame"

_STARTED = attrgetter("started")

cdef Assembly assembly = Assembly()


cdef inline unsigned int _u32(const unsigned char* p) noexcept nogil:
    return (<unsigned int>p[0] << 24) | (<unsigned int>p[1] << 16) | (<unsigned int>p[2] << 8) | p[3]


cdef inline bint _is_named(Exchange call, Reader* r):
    """Whether a reply has the name of the call: of a multiplexed one it leaves out the "Service:"."""
    cdef const unsigned char* m = <const unsigned char*>PyBytes_AS_STRING(call.method)
    cdef Py_ssize_t before = len(call.method) - r.text_length
    if before < 0 or memcmp(m + before, r.text, r.text_length) != 0:
        return False
    return before == 0 or m[before - 1] == c":"


cdef inline Py_ssize_t _kept(Exchange exchange):
    return len(exchange.method) + (0 if exchange.request_id is None else len(exchange.request_id))


cdef class Lane:
    def __cinit__(self, bint downstream):
        self.downstream = downstream

    cdef bytes held(self):
        """What has come of a head that waits to be complete, and what was left when the engine gave up."""
        cdef bytes held = b""
        if self.holding:
            held = self.prefix[:self.prefix_length] if self.head is None else bytes(self.head)
            self.holding = False
        if self.left is not None:
            held += self.left
            self.left = None
        return held


cdef class Thrift(Codec):
    """The engine of one connection; see ``codec.pyi`` for its methods.

    ``ids`` gives new ids and the sampling rate. With ``strict`` what cannot be read is refused, not carried.
    """

    def __init__(self, Ids ids, bint strict = False):
        self.ids = ids
        self.strict = strict
        self.frame_limit = DEFAULT_FRAME_LIMIT
        self.down = Lane(True)
        self.up = Lane(False)

    cpdef str protocol_name(self):
        return "thrift"

    cpdef bytes from_downstream(self, bytes data, double now):
        return self._relay(self.down, data, now)

    cpdef bytes from_upstream(self, bytes data, double now):
        return self._relay(self.up, data, now)

    cpdef passed_on(self, bytes data, double now):
        self.looking_on = True
        self._relay(self.down, data, now)
        self.looking_on = False
        self.down.left = None

    # -- one direction -------------------------------------------------------------------------------------

    cdef bytes _relay(self, Lane lane, bytes data, double now):
        cdef const unsigned char* p = <const unsigned char*>PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = len(data), position = 0, copied = 0
        cdef Py_ssize_t hold = 0  # where the bytes begin that are held back
        cdef Assembly out = assembly

        if self.over:
            if self.successor is not None:
                lane.left = data if lane.left is None else lane.left + data
            return b""
        out.length = 0
        self.read_at_once = 0
        while position < n and not self.over:
            if lane.stage == MESSAGE:
                position += self._read(lane, p + position, n - position, now)
            elif lane.stage == REST:
                position += self._pass(lane, n - position, now)
            elif lane.stage == BETWEEN:
                hold = position
                self._begin(lane, now)
            else:
                if lane.stage == PREFIX:
                    position += self._prefix(lane, p + position, n - position, now)
                elif lane.stage == HEAD:
                    position += self._head(lane, p + position, n - position, now)
                elif lane.stage == BEYOND:
                    position += self._beyond(lane, n - position)
                else:
                    position += self._inflate(lane, p + position, n - position, now)
                if lane.instead is not None:
                    out.add(p + copied, hold - copied)
                    out.add(PyBytes_AS_STRING(lane.instead), len(lane.instead))
                    copied = position
                    lane.instead = None
        self._count(lane)
        if self.over:
            if self.successor is not None:
                lane.left = p[position:n]
            else:
                # What is refused has not begun for the other side.
                position = max(hold, copied)
        elif not lane.holding:
            return out.passed(data, p, copied, n)
        lane.held_before = lane.holding
        return out.passed(None, p, copied, hold if lane.holding else position)

    cdef _begin(self, Lane lane, double now):
        """A message begins."""
        lane.began = now
        lane.uncounted = 0
        lane.head_read = False
        lane.request_id = lane.trace_id = lane.span_id = lane.parent_id = None
        lane.sampled = False
        if lane.transport == BUFFERED:
            lane.coming_in = BUFFERED
            lane.stage = MESSAGE
            begin_message(&lane.reader, False)
            return
        lane.stage = PREFIX
        lane.prefix_length = 0
        # A frame of the header transport has a length that changes with its head.
        lane.holding = lane.downstream and lane.transport != FRAMED and not self.looking_on
        lane.held_before = False

    cdef Py_ssize_t _prefix(self, Lane lane, const unsigned char* p, Py_ssize_t n, double now) except -1:
        """Take the first bytes of a message, until they say what it comes in."""
        cdef Py_ssize_t used, of_frame
        cdef Look look = self._look(lane, p, n, &used)
        lane.uncounted += used
        if look == READ_HEADER:
            lane.coming_in = lane.transport = HEADER
            lane.stage = HEAD
            lane.head = bytearray(lane.prefix[:LONGEST_PREFIX])
            lane.head_size = HEADER_PREFIX
        elif look == READ:
            self._let_go(lane, None)
            if lane.coming_in == BUFFERED:
                of_frame = 0
            else:
                of_frame = 4
                lane.frame_left = lane.frame_length
            lane.stage = MESSAGE
            begin_message(&lane.reader, of_frame)
            lane.uncounted -= lane.prefix_length - of_frame
            self._read(lane, lane.prefix + of_frame, lane.prefix_length - of_frame, now)
        elif look == NO_THRIFT:
            self._fault(lane, "not_thrift", "bytes that begin neither a frame nor a message of Thrift", now)
        elif look == EMPTY:
            # Of a client that flushes with nothing to say (TFramedTransport).
            self._let_go(lane, None)
            lane.stage = BETWEEN
        elif look == TOO_LARGE:
            self._fault(
                lane, "frame_too_large", f"a frame of {lane.frame_length} bytes, of which ARCA reads "
                f"{self.frame_limit} (limits.thrift_frame_bytes)", now, of_peer=False,
            )
        return used

    cdef Look _look(self, Lane lane, const unsigned char* p, Py_ssize_t n, Py_ssize_t* used):
        """What the bytes so far say: unframed messages begin with a magic or, in the old binary protocol, with the
        length of a name; frames with their own, and with a message of either or the header transport's magic in them.
        """
        cdef int k
        cdef unsigned char first
        used[0] = 0
        while True:
            k = lane.prefix_length
            if lane.transport == UNKNOWN:
                if k == 1 and (lane.prefix[0] == 0x80 or lane.prefix[0] == 0x82):
                    lane.coming_in = lane.transport = BUFFERED
                    return READ
                if k == 5:
                    first = lane.prefix[4]
                    if first != 0x80 and first != 0x82 and first != 0x0F and first != 0:
                        # The name of a message of the old binary protocol.
                        if _u32(lane.prefix) > MAX_NAME:
                            return NO_THRIFT
                        lane.coming_in = lane.transport = BUFFERED
                        return READ
            if k == 4 and _u32(lane.prefix) == 0:
                return EMPTY
            if k == 4 and lane.transport != UNKNOWN or k == 5:
                lane.frame_length = _u32(lane.prefix)
                if lane.frame_length > 0x7FFFFFFF:
                    return NO_THRIFT
                if lane.frame_length > self.frame_limit:
                    return TOO_LARGE
            if k == 5 and lane.prefix[4] != 0x0F:
                lane.coming_in = FRAMED
                if lane.transport == UNKNOWN:
                    lane.transport = FRAMED
                return READ
            if k == LONGEST_PREFIX:
                return READ_HEADER if lane.prefix[5] == 0xFF and lane.frame_length >= MIN_HEADER_FRAME else NO_THRIFT
            if used[0] == n:
                return WAIT
            lane.prefix[k] = p[used[0]]
            lane.prefix_length += 1
            used[0] += 1

    cdef _let_go(self, Lane lane, bytes instead):
        """What is held back goes on: as it came, or ``instead`` of it."""
        if not lane.holding:
            return
        if instead is None and lane.held_before:
            instead = lane.held()
        lane.holding = False
        lane.instead = instead

    cdef Py_ssize_t _read(self, Lane lane, const unsigned char* p, Py_ssize_t n, double now) except -1:
        """Read on in a message."""
        cdef Py_ssize_t used
        cdef bint framed = lane.coming_in != BUFFERED
        cdef Step step
        if framed and n > lane.frame_left:
            n = lane.frame_left
        step = read_message(&lane.reader, p, n, &used)
        lane.uncounted += used
        lane.frame_left -= used
        if step == FAULTY:
            self._message_fault(lane, now)
            return used
        if step == HEAD_READ:
            step = self._message_head(lane, now)
            if self.over:
                return used
        if step == OVER:
            self._note_result(lane)
            if framed and lane.frame_left:
                lane.stage = REST
            else:
                self._message_over(lane, now)
        elif framed and lane.frame_left == 0:
            self._fault(lane, "not_thrift", BEYOND_FRAME, now)
        return used

    cdef Py_ssize_t _pass(self, Lane lane, Py_ssize_t n, double now) except -1:
        """The rest of a frame, whatever it is: a message is followed by the next frame."""
        cdef Py_ssize_t used = min(lane.frame_left, n)
        lane.uncounted += used
        lane.frame_left -= used
        if lane.frame_left == 0:
            self._message_over(lane, now)
        return used

    # -- the header transport ------------------------------------------------------------------------------

    cdef Py_ssize_t _head(self, Lane lane, const unsigned char* p, Py_ssize_t n, double now) except -1:
        """Collect the head of a frame, and continue the trace in it."""
        cdef Py_ssize_t used = min(lane.head_size - len(lane.head), n), size
        cdef HeaderBlock block
        lane.head.extend(p[:used])
        lane.uncounted += used
        if len(lane.head) < lane.head_size:
            return used
        if lane.head_size == HEADER_PREFIX:
            size = 4 * (<Py_ssize_t>lane.head[12] << 8 | <Py_ssize_t>lane.head[13])
            if MIN_HEADER_FRAME + size > lane.frame_length:
                self._fault(lane, "not_thrift", "a header transport frame whose head is longer than the frame", now)
                return used
            lane.frame_left = lane.frame_length - MIN_HEADER_FRAME - size
            lane.head_size += size
            lane.beyond = 0
            if lane.head_size > MAX_HEADER:
                lane.beyond = lane.head_size - MAX_HEADER
                lane.head_size = MAX_HEADER
                self._let_go(lane, bytes(lane.head))
            if size:
                return used

        block = HeaderBlock()
        block.read(
            <const unsigned char*>PyByteArray_AS_STRING(lane.head), lane.head_size,
            self.ids if lane.downstream and not lane.beyond else None, lane.holding, self.frame_limit,
        )
        if block.transform == BROKEN:
            self._fault(lane, "not_thrift", "a header transport frame whose head breaks off", now)
            return used
        if block.transform == OTHER:
            self._fault(
                lane, "protocol", "a header transport frame with a protocol or transform other than binary, compact "
                "and zlib, which ARCA does not read", now, of_peer=False,
            )
            return used
        if lane.frame_left == 0:
            self._fault(lane, "not_thrift", BEYOND_FRAME, now)
            return used
        self._let_go(lane, block.became)
        lane.request_id = block.request_id
        if block.trace is not None:
            lane.parent_id = block.trace.parent_id
            if block.became is not None or lane.parent_id is not None:
                lane.trace_id = block.trace.trace_id
            if block.became is not None:
                lane.span_id = block.trace.span_id
                lane.sampled = block.trace.sampled
        lane.head = None
        lane.inflater = zlib.decompressobj() if block.transform == ZLIB else None
        lane.inflated = 0
        begin_message(&lane.reader, True)
        lane.stage = BEYOND
        self._beyond(lane, 0)
        return used

    cdef Py_ssize_t _beyond(self, Lane lane, Py_ssize_t n) except -1:
        """What of a head is too long to be collected."""
        cdef Py_ssize_t used = min(lane.beyond, n)
        lane.uncounted += used
        lane.beyond -= used
        if lane.beyond == 0:
            lane.stage = MESSAGE if lane.inflater is None else INFLATING
        return used

    cdef Py_ssize_t _inflate(self, Lane lane, const unsigned char* p, Py_ssize_t n, double now) except -1:
        """Read a message through its transform, as far as there is something to note."""
        cdef Py_ssize_t used = min(min(lane.frame_left, n), <Py_ssize_t>INFLATED_PIECE), at, read
        cdef bytes piece, waiting = p[:used]
        cdef Step step = MORE
        lane.uncounted += used
        lane.frame_left -= used
        while step == MORE and self._may_inflate(lane):
            try:
                piece = lane.inflater.decompress(waiting, INFLATED_PIECE if lane.head_read else INFLATED_HEAD)
            except zlib.error as error:
                self._fault(lane, "not_thrift", f"a payload that zlib cannot inflate: {error}", now)
                return used
            if not piece:
                break
            waiting = lane.inflater.unconsumed_tail
            lane.inflated += len(piece)
            at = 0
            while step == MORE and at < len(piece):
                step = read_message(
                    &lane.reader, <const unsigned char*>PyBytes_AS_STRING(piece) + at, len(piece) - at, &read
                )
                at += read
                if step == HEAD_READ:
                    step = self._message_head(lane, now)
                    if self.over:
                        return used
            self.read_at_once += at
        if step == FAULTY:
            self._message_fault(lane, now)
        elif step == OVER or not self._may_inflate(lane):
            self._note_result(lane)
            lane.inflater = None
            if lane.frame_left:
                lane.stage = REST
            else:
                self._message_over(lane, now)
        elif lane.frame_left == 0 or lane.inflater.eof:
            # What is behind the end of a zlib stream is nobody's, and a decompressor keeps it.
            self._fault(lane, "not_thrift", BEYOND_FRAME, now)
        return used

    cdef bint _may_inflate(self, Lane lane) noexcept:
        """Whether more of a payload is to be read; its head always is, and is never long."""
        return not lane.head_read or lane.inflated <= MAX_INFLATED and self.read_at_once <= MAX_READ_AT_ONCE

    # -- calls and replies ---------------------------------------------------------------------------------

    cdef Step _message_head(self, Lane lane, double now) except *:
        """The head of a message was read; answers whether more of the message is to be read."""
        cdef Reader* r = &lane.reader
        lane.head_read = True
        if lane.downstream:
            if r.type == CALL or r.type == ONEWAY:
                self._begin_call(lane, now)
        elif r.type == REPLY or r.type == EXCEPTION:
            lane.exchange = self._take_asked(lane)
            if lane.exchange is not None:
                lane.exchange.first_byte = lane.began
        return OVER if r.brief and (lane.downstream or r.type == CALL or r.type == ONEWAY) else MORE

    cdef _begin_call(self, Lane lane, double now):
        cdef Reader* r = &lane.reader
        cdef Exchange exchange
        cdef ThriftCall call
        cdef bint at_once = len(self.finished) >= MAX_AT_ONCE
        if at_once or self.in_flight >= MAX_IN_FLIGHT or self.kept >= MAX_KEPT:
            if not self.exceeding:
                self.exceeding = True
                self.exceeded.append(("at_once" if at_once else "in_flight", "downstream"))
                self.signals |= EXCEEDED
            return
        self.exceeding = False
        exchange = Exchange.__new__(Exchange, THRIFT, lane.began)
        if self.last_method is None or len(self.last_method) != r.text_length or memcmp(
            PyBytes_AS_STRING(self.last_method), r.text, r.text_length
        ) != 0:
            self.last_method = r.text[:r.text_length]
        exchange.method = self.last_method
        call = ThriftCall.__new__(ThriftCall)
        call.transport = _TRANSPORTS[<int>lane.coming_in]
        call.encoding = _ENCODINGS[<int>r.encoding]
        call.oneway = r.type == ONEWAY
        call.sequence = r.sequence
        exchange.thrift = call
        if lane.coming_in == HEADER:
            exchange.request_id = None if lane.request_id is None else lane.request_id[:MAX_ID]
            exchange.trace_id = lane.trace_id
            exchange.span_id = lane.span_id
            exchange.parent_id = lane.parent_id
            exchange.sampled = lane.sampled
        lane.exchange = exchange
        self.in_flight += 1
        self.kept += _kept(exchange)
        if not call.oneway:
            self._await(exchange)
        if self.no_upstream:
            self._count(lane)
            self._refuse(DIAL_FAILED, self.no_upstream, now)

    cdef _await(self, Exchange exchange):
        """A reply is to come."""
        cdef object sequence = exchange.thrift.sequence, before
        if self.asked is None:
            self.asked = {}
        before = self.asked.get(sequence)
        if before is None:
            self.asked[sequence] = exchange
        elif type(before) is deque:
            before.append(exchange)
        else:
            self.asked[sequence] = deque((before, exchange))

    cdef Exchange _take_asked(self, Lane lane):
        """The call that the reply being read belongs to: of its sequence id, and of its name where several have that.

        Or of its name alone, where a server does not give sequence ids back: who did once is taken at its word.
        """
        cdef Exchange exchange
        cdef int looked = 0
        cdef object sequence = lane.reader.sequence, waiting
        if not self.asked:
            return None
        waiting = self.asked.get(sequence)
        if waiting is not None:
            exchange = self._answered(lane, sequence, waiting)
            if exchange is not None and _is_named(exchange, &lane.reader):
                self.echoes = True
            return exchange
        if self.echoes:
            return None
        for sequence, waiting in self.asked.items():
            if _is_named(waiting[0] if type(waiting) is deque else waiting, &lane.reader):
                return self._answered(lane, sequence, waiting)
            looked += 1
            if looked == MAX_LOOKED_AT:
                break
        return None

    cdef Exchange _answered(self, Lane lane, object sequence, object waiting):
        """Who waits under a sequence id has its reply, unless that began before the call."""
        cdef bint several = type(waiting) is deque
        cdef Exchange exchange
        cdef Py_ssize_t i, at = 0
        if several:
            for i in range(min(len(waiting), <Py_ssize_t>MAX_LOOKED_AT)):
                if _is_named(waiting[i], &lane.reader):
                    at = i
                    break
        exchange = waiting[at] if several else waiting
        if lane.began < exchange.started:
            return None
        if several and len(waiting) > 1:
            del waiting[at]
        else:
            del self.asked[sequence]
        return exchange

    cdef _note_result(self, Lane lane):
        """What a reply came to, once it is known."""
        cdef Reader* r = &lane.reader
        cdef Exchange exchange = lane.exchange
        cdef ThriftCall call
        if exchange is None or lane.downstream:
            return
        call = exchange.thrift
        if r.type == EXCEPTION:
            exchange.failed = True
            # What leaves its type out is UNKNOWN.
            call.exception_type = 0 if r.exception_type == -1 else r.exception_type
            exchange.code = (
                _EXCEPTION_TYPES[call.exception_type] if 0 <= call.exception_type < len(_EXCEPTION_TYPES)
                else str(call.exception_type)
            )
        elif r.result_field:
            exchange.failed = True
            call.exception_field = r.result_field
            exchange.code = f"exception_{r.result_field}"
        if exchange.failed and r.text_read:
            call.message = r.text[:r.text_length]

    cdef _count(self, Lane lane):
        """Tell the exchange of the bytes that came."""
        if lane.exchange is None:
            return
        if lane.downstream:
            lane.exchange.request_bytes += lane.uncounted
        else:
            lane.exchange.response_bytes += lane.uncounted
        lane.uncounted = 0

    cdef _message_over(self, Lane lane, double now):
        cdef Exchange exchange = lane.exchange
        lane.stage = BETWEEN
        if exchange is None:
            return
        self._count(lane)
        lane.exchange = None
        if lane.downstream:
            self.proven = True
            exchange.request_complete = True
            if exchange.thrift.oneway:
                exchange.ended = now
        else:
            exchange.response_complete = True
            exchange.ended = now
        if exchange.ended >= 0 and (exchange.request_complete or self.down.closed):
            self._forget(exchange)
            self._finish(exchange, COMPLETE, now)

    # -- ends ----------------------------------------------------------------------------------------------

    cdef _forget(self, Exchange exchange):
        """It is in flight no more."""
        self.in_flight -= 1
        self.kept -= _kept(exchange)

    cdef list _in_flight(self):
        """All that began and did not end, the oldest first."""
        cdef list found = []
        cdef object waiting
        cdef Exchange exchange
        if self.asked is not None:
            for waiting in self.asked.values():
                if type(waiting) is deque:
                    found.extend(waiting)
                else:
                    found.append(waiting)
        for exchange in (self.up.exchange, self.down.exchange):
            if exchange is not None and not any(exchange is other for other in found):
                found.append(exchange)
        found.sort(key=_STARTED)
        return found

    cdef _finish(self, Exchange exchange, End how, double now):
        # A call that is still being sent may have its reply already.
        if self.down.exchange is exchange:
            self.down.exchange = None
        if self.up.exchange is exchange:
            self.up.exchange = None
        exchange.end = how
        if how != COMPLETE or exchange.ended < 0:
            exchange.ended = now
        self.finished.append(exchange)
        self.signals |= FINISHED

    cdef _end_all(self, End how, int error, double now):
        """Everything in flight ends; an exchange whose answer is complete ended well."""
        cdef Exchange exchange
        self._unread_reply()
        for exchange in self._in_flight():
            if exchange.response_complete:
                self._finish(exchange, COMPLETE, now)
            else:
                exchange.error = error
                self._finish(exchange, how, now)
        self.asked = None
        self.down.exchange = self.up.exchange = None
        self.in_flight = 0
        self.kept = 0

    cdef Exchange _unread_reply(self):
        """The call that a reply seems to belong to whose head has not been read to its end: the oldest."""
        cdef Exchange exchange
        if self.up.stage == BETWEEN or self.up.head_read:
            return None
        for exchange in self._in_flight():
            if exchange.first_byte < 0 and not exchange.thrift.oneway and exchange.started <= self.up.began:
                exchange.first_byte = self.up.began
                exchange.response_bytes += self.up.uncounted
                self.up.uncounted = 0
                return exchange
        return None

    cdef Exchange _unread_call(self):
        """An exchange for a message of downstream whose head has not been read to its end."""
        cdef Exchange exchange
        if self.down.stage == BETWEEN or self.down.head_read:
            return None
        exchange = Exchange.__new__(Exchange, THRIFT, self.down.began)
        exchange.request_bytes = self.down.uncounted
        return exchange

    cpdef bytes downstream_eof(self, double now):
        self.down.closed = True
        return b"" if self.over and self.successor is None else self.down.held()

    cpdef bytes upstream_eof(self, double now):
        cdef Exchange sending
        if not self.over:
            # A oneway call that is still being sent asks for no answer.
            sending = self.down.exchange
            if sending is not None and sending.thrift.oneway:
                self.down.exchange = None
            else:
                sending = None
            self._end_all(DOWNSTREAM_FIN if self.down.closed else UPSTREAM_FIN, 0, now)
            if sending is not None:
                self.down.exchange = sending
                self.in_flight = 1
                self.kept = _kept(sending)
            self.up.closed = True
        return b""

    cpdef end(self, End how, int error, double now):
        cdef Exchange exchange
        if self.over:
            return
        if how == UPSTREAM_RST and self.up.closed:
            # It had closed before: that it resets what still comes is how a kernel says so.
            how = UPSTREAM_FIN
            error = 0
        self._end_all(how, error, now)
        exchange = self._unread_call()
        if exchange is not None:
            exchange.error = error
            self._finish(exchange, how, now)
        self.over = True

    cpdef list running(self, double before):
        cdef Exchange exchange
        return [exchange for exchange in self._in_flight() if exchange.started < before]

    cpdef bint awaits_head(self, double since):
        return (
            self.down.stage != BETWEEN and not self.down.head_read and self.down.began < since
            and not self.down.closed and not self.over and not self.no_upstream
        )

    cpdef refuse_late_head(self, double now):
        self.end(HEAD_TIMEOUT, 0, now)
        self.refusal = Refusal(b"")
        self.signals |= REFUSED

    cpdef dial_failed(self, int error, int status, str cause, str text, double now):
        if self.over:
            return
        if self.in_flight == 0:
            # Nobody asked yet; whoever does is reset.
            self.no_upstream = error
            return
        self._refuse(DIAL_FAILED, error, now)

    # -- what the engine does not carry on -----------------------------------------------------------------

    cdef _fault(self, Lane lane, str reason, str text, double now, bint of_peer=True):
        """A message of this side cannot be read; whatever else is in flight cannot be followed any more.

        Unless it is ``of_peer``, others could read it.
        """
        cdef Exchange exchange = lane.exchange
        cdef End how = DOWNSTREAM_FAULT if lane.downstream else UPSTREAM_FAULT
        if lane.downstream and not self.proven and lane.reader.encoding == BINARY_OLD and not self.strict:
            # Of the old protocol there was no more to recognise than a text with its length before it.
            self.asked = None
            self.down.exchange = self.up.exchange = None
            self.in_flight = self.kept = 0
            self._give_up(reason, now)
            return
        if not of_peer:
            how = LIMIT if self.strict else UNREADABLE
        self._count(lane)
        if exchange is None:
            exchange = self._unread_call() if lane.downstream else self._unread_reply()
        elif exchange.response_complete:
            self._forget(exchange)
            self._finish(exchange, COMPLETE, now)
            exchange = None
        if exchange is None:
            exchange = Exchange.__new__(Exchange, THRIFT, lane.began)
            if lane.downstream:
                exchange.request_bytes = lane.uncounted
            else:
                exchange.response_bytes = lane.uncounted
                exchange.first_byte = lane.began
        elif exchange.thrift is not None:
            self._forget(exchange)
            self._take_out(exchange)
        exchange.fault = text
        lane.exchange = None
        lane.head_read = True
        self._finish(exchange, how, now)
        if self.strict:
            self._refuse(how, 0, now)
        else:
            self._give_up(reason, now)

    cdef _message_fault(self, Lane lane, double now):
        cdef Fault fault = lane.reader.fault
        if fault == TOO_DEEP:
            self._fault(lane, "too_deep", FAULTS[fault], now, of_peer=False)
        else:
            self._fault(lane, "not_thrift", FAULTS[fault], now)

    cdef _take_out(self, Exchange exchange):
        """A call that is not to be answered any more."""
        cdef object sequence = exchange.thrift.sequence, waiting
        waiting = None if self.asked is None else self.asked.get(sequence)
        if waiting is exchange:
            del self.asked[sequence]
        elif type(waiting) is deque and exchange in waiting:
            waiting.remove(exchange)
            if not waiting:
                del self.asked[sequence]

    cdef _give_up(self, str reason, double now):
        """From here on the bytes are carried without being read."""
        self._end_all(UNREADABLE, 0, now)
        self.fallback = reason
        self.successor = Opaque(TCP, now)
        self.signals |= SUCCEEDED
        self.over = True

    cdef _refuse(self, End how, int error, double now):
        """Both connections are cut, for Thrift has no answer that every client would take for one."""
        self._end_all(how, error, now)
        self.refusal = Refusal(b"")
        self.signals |= REFUSED
        self.over = True

    cpdef bytes take_held_request(self):
        return self.down.held()

    cpdef bytes take_held_response(self):
        return self.up.held()
