"""A protocol that travels in the binary messages of a WebSocket connection (RFC 6455), observed.

Frames are read in both directions, their payload is unmasked into a buffer of its own and shown to the engine
inside; the bytes themselves go on untouched, as the very objects they came in. Nothing is held back: a header cut
anywhere is kept as a copy. Messages may be divided into frames, and those of other messages, at any byte: the
inner protocol is one stream (MQTT 5.0 section 6).

What this cannot read it must not guess at: a text message, an extension (reserved bits), a frame masked that must
not be or the other way round. Then the connection is carried opaque from there.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.string cimport memcpy, memset

from protocols.assembly cimport Assembly
from protocols.codec cimport Codec, EXCEEDED, FINISHED, Opaque, REFUSED, Refusal, RESUMABLE, SUCCEEDED
from protocols.exchange cimport UNREADABLE, WEBSOCKET

# RFC 6455 section 5.2.
cdef enum:
    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA
    CONTROL = 0x8        # the bit that all control frames have
    FIN = 0x80           # first byte: the last frame of its message
    RESERVED = 0x70
    MASK = 0x80          # second byte
    MAX_CONTROL = 125

# Used up before the call returns.
cdef Assembly scratch = Assembly()


cdef inline int _header_length(const unsigned char* header) noexcept nogil:
    """Of a frame whose first two bytes are known."""
    cdef int length = header[1] & 0x7F
    return 2 + (8 if length == 127 else 2 if length == 126 else 0) + (4 if header[1] & MASK else 0)


cdef void _unmask(char* at, Py_ssize_t n, const unsigned char* mask, unsigned int turn) noexcept nogil:
    """Section 5.3. Eight bytes at a time: the mask repeats every four."""
    cdef unsigned char turned[8]
    cdef unsigned long long wide, piece
    cdef Py_ssize_t i
    for i in range(8):
        turned[i] = mask[(turn + i) & 3]
    memcpy(&wide, turned, 8)
    i = 0
    while i + 8 <= n:
        memcpy(&piece, at + i, 8)
        piece ^= wide
        memcpy(at + i, &piece, 8)
        i += 8
    while i < n:
        at[i] ^= turned[i & 7]
        i += 1


cdef class WebSocket(Codec):
    """The engine of one connection after its handshake; see ``codec.pyi`` for its methods."""

    def __init__(self, Codec inner, bint strict = False):
        self.inner = inner
        self.strict = strict
        memset(&self.downstream, 0, sizeof(Frames))
        memset(&self.upstream, 0, sizeof(Frames))
        self.downstream.masked = True
        # One list each, whoever fills it: the caller empties them.
        self.finished = inner.finished
        self.exceeded = inner.exceeded
        self.silent_after = inner.silent_after

    cpdef bytes from_downstream(self, bytes data, double now):
        return self._read(&self.downstream, data, now)

    cpdef bytes from_upstream(self, bytes data, double now):
        return self._read(&self.upstream, data, now)

    cdef bytes _read(self, Frames* frames, bytes data, double now):
        """Show the inner engine what the frames in ``data`` carry, and pass ``data`` on."""
        cdef str fault
        cdef bytes payload
        if self.over:
            return b""
        if frames.closed:
            return data
        self.inner.read_since = self.read_since
        scratch.length = 0
        fault = self._take(frames, <const unsigned char*>PyBytes_AS_STRING(data), len(data), scratch)
        if scratch.length or not data:
            payload = scratch.take()
            if frames is &self.downstream:
                self.inner.from_downstream(payload, now)
            else:
                self.inner.from_upstream(payload, now)
            self._follow(now)
        if fault is not None and not self.over:
            self._give_up(fault, now)
        return b"" if self.signals & REFUSED else data

    cdef str _take(self, Frames* frames, const unsigned char* p, Py_ssize_t n, Assembly out):
        """Add the payload of binary frames in ``p`` to ``out``. Answers why the frames cannot be read, or None."""
        cdef Py_ssize_t position = 0, piece, before
        cdef int whole
        cdef str fault
        while position < n and not frames.closed:
            if frames.in_payload:
                piece = n - position
                if <unsigned long long>piece > frames.remaining:
                    piece = <Py_ssize_t>frames.remaining
                if not frames.opcode & CONTROL:
                    before = out.length
                    out.add(p + position, piece)
                    if frames.masked:
                        _unmask(out.bytes + before, piece, frames.header + frames.have - 4, frames.mask_at)
                        frames.mask_at = (frames.mask_at + <unsigned int>(piece & 3)) & 3
                position += piece
                frames.remaining -= piece
            else:
                whole = _header_length(frames.header) if frames.have >= 2 else 2
                while frames.have < whole and position < n:
                    frames.header[frames.have] = p[position]
                    frames.have += 1
                    position += 1
                    if frames.have == 2:
                        whole = _header_length(frames.header)
                if frames.have < 2:
                    break
                if frames.have == 2 or frames.have == whole:
                    fault = _begin_frame(frames, frames.have == whole)
                    if fault is not None:
                        return fault
                if frames.have < whole:
                    continue
                frames.in_payload = True
            if frames.in_payload and frames.remaining == 0:
                frames.in_payload = False
                frames.have = 0
                frames.mask_at = 0
                frames.closed = frames.opcode == CLOSE
        return None

    cdef _follow(self, double now):
        """Take over what the inner engine has to say."""
        cdef int signals = self.inner.signals
        self.inner.signals = 0
        self.signals |= signals & (FINISHED | EXCEEDED | RESUMABLE)
        self.in_flight = self.inner.in_flight
        self.silent_after = self.inner.silent_after
        self.heard = self.inner.heard
        if signals & REFUSED:
            self.over = True
            self.refusal = self.inner.refusal
            self.signals |= REFUSED
        elif signals & SUCCEEDED:
            self._hand_over(self.inner.fallback, now)

    cdef _give_up(self, str reason, double now):
        """The frames cannot be read any further."""
        self.framing_lost = True
        self.inner.end(UNREADABLE, 0, now)
        self._follow(now)
        if not self.over:
            self._hand_over(reason, now)

    cdef bint _hand_over(self, str reason, double now):
        self.over = True
        if self.strict:
            self.refusal = Refusal(b"")
            self.signals |= REFUSED
            return False
        self.successor = Opaque(WEBSOCKET, now)
        self.fallback = reason
        self.signals |= SUCCEEDED
        return True

    cpdef bytes downstream_eof(self, double now):
        if not self.over:
            self.inner.downstream_eof(now)
            self._follow(now)
        return b""

    cpdef bytes upstream_eof(self, double now):
        if not self.over:
            self.inner.read_since = self.read_since
            self.inner.upstream_eof(now)
            self._follow(now)
        return b""

    cpdef end(self, End how, int error, double now):
        if not self.over:
            self.inner.read_since = self.read_since
            self.inner.end(how, error, now)
            self._follow(now)
            self.over = True

    cpdef list running(self, double before):
        return self.inner.running(before)

    cpdef gone_silent(self, double now):
        if not self.over:
            self.inner.read_since = self.read_since
            self.inner.gone_silent(now)
            self._follow(now)

    cpdef str protocol_name(self):
        """A fault of the frames is WebSocket's; all else is told of what it carries."""
        return "websocket" if self.framing_lost else self.inner.protocol_name()


cdef str _begin_frame(Frames* frames, bint whole):
    """Two bytes of a header were read, or all of it. Answers what forbids reading on, or None."""
    cdef unsigned char first = frames.header[0], second = frames.header[1]
    cdef unsigned char opcode = first & 0x0F
    cdef int length = second & 0x7F, i
    if first & RESERVED:
        return "extension"  # none was agreed on
    if bool(second & MASK) != frames.masked:
        return "mask"
    if opcode & CONTROL:
        if opcode > PONG or not first & FIN or length > MAX_CONTROL:
            return "control_frame"
    elif opcode == TEXT:
        return "text"
    elif opcode > BINARY:
        return "opcode"
    elif (opcode == CONTINUATION) != frames.in_message:
        return "fragment"
    if not whole:
        return None
    frames.opcode = opcode
    if not opcode & CONTROL:
        frames.in_message = not first & FIN
    if length == 126:
        frames.remaining = frames.header[2] << 8 | frames.header[3]
    elif length == 127:
        if frames.header[2] & 0x80:
            return "length"
        frames.remaining = 0
        for i in range(8):
            frames.remaining = frames.remaining << 8 | frames.header[2 + i]
    else:
        frames.remaining = length
    return None
