"""The frames of HTTP/2 as bytes: RFC 9113 sections 4 and 6.

Frames are looked at where they lie; nothing is made of them. A header block is one thing here, in however many
frames it came, for nothing may stand between them (section 4.3).
"""

from libc.string cimport memset

from protocols.assembly cimport Assembly


cdef Found find_block(
    const unsigned char* f, Py_ssize_t n, Py_ssize_t max_frame, int empty, Block* block
) noexcept nogil:
    """Find the end of the header block that begins with the frame at ``f``: RFC 9113 section 4.3.

    ``empty`` is how many empty frames came right before it.
    """
    cdef Py_ssize_t at = 0, length, fragment, total = 0
    cdef int flags
    memset(block, 0, sizeof(Block))
    while True:
        if n - at < FRAME_HEADER:
            return INCOMPLETE
        length = u24(f + at)
        flags = f[at + 4]
        if length > max_frame:
            return BROKEN
        if block.frames == 0:
            block.type = f[at + 3]
            block.flags = flags
            block.stream = u31(f + at + 5)
            block.prefix = (1 if flags & PADDED else 0)
            if block.type == PUSH_PROMISE:
                block.prefix += 4
            elif flags & HAS_PRIORITY:
                block.prefix += 5
            if length < block.prefix:
                return BROKEN
            if flags & PADDED:
                if n - at <= FRAME_HEADER:
                    return INCOMPLETE
                block.padding = f[at + FRAME_HEADER]
                if block.prefix + block.padding > length:
                    return BROKEN
            fragment = length - block.prefix - block.padding
        else:
            if f[at + 3] != CONTINUATION or u31(f + at + 5) != block.stream:
                return BROKEN
            fragment = length
        block.frames += 1
        if block.frames - 1 > MAX_CONTINUATIONS:
            return TOO_MANY_FRAMES
        if fragment:
            empty = 0
        elif block.frames > 1 or not flags & END_STREAM or block.type == PUSH_PROMISE:
            empty += 1
            if empty > MAX_EMPTY:
                return TOO_MANY_EMPTY
        total += fragment
        if total > MAX_BLOCK:
            return TOO_LARGE
        block.largest = max(block.largest, length)
        at += FRAME_HEADER + length
        if at > n:
            return INCOMPLETE
        if flags & END_HEADERS:
            block.size = at
            block.empty_frames = empty
            if block.type == PUSH_PROMISE:
                block.promised = u31(f + FRAME_HEADER + block.prefix - 4)
            return COMPLETE_BLOCK


cdef int _write_frame_header(Assembly out, Py_ssize_t length, int kind, int flags, unsigned int stream) except -1:
    cdef unsigned char header[9]
    header[0] = length >> 16
    header[1] = (length >> 8) & 0xFF
    header[2] = length & 0xFF
    header[3] = kind
    header[4] = flags
    header[5] = stream >> 24
    header[6] = (stream >> 16) & 0xFF
    header[7] = (stream >> 8) & 0xFF
    header[8] = stream & 0xFF
    return out.add(header, 9)


cdef int write_block(Assembly out, const unsigned char* f, Block* block, Assembly fragment) except -1:
    """The frames of ``block``, which came at ``f``, with ``fragment`` in them instead: in as many as it takes."""
    cdef Py_ssize_t first = u24(f)
    cdef Py_ssize_t limit = max(<Py_ssize_t>SMALLEST_MAX_FRAME, block.largest)
    cdef Py_ssize_t at = min(fragment.length, limit - block.prefix - block.padding), piece
    cdef int flags = block.flags & ~END_HEADERS
    if at == fragment.length:
        flags |= END_HEADERS
    _write_frame_header(out, block.prefix + at + block.padding, block.type, flags, block.stream)
    out.add(f + FRAME_HEADER, block.prefix)
    out.add(fragment.bytes, at)
    out.add(f + FRAME_HEADER + first - block.padding, block.padding)
    while at < fragment.length:
        piece = min(fragment.length - at, limit)
        _write_frame_header(out, piece, CONTINUATION, END_HEADERS if at + piece == fragment.length else 0, block.stream)
        out.add(fragment.bytes + at, piece)
        at += piece
    return 0


cdef int join_fragments(const unsigned char* f, Block* block, Assembly out) except -1:
    """The field block of ``block``, which came at ``f`` in several frames, in one piece."""
    cdef Py_ssize_t n = u24(f), at = FRAME_HEADER + n
    out.length = 0
    out.add(f + FRAME_HEADER + block.prefix, n - block.prefix - block.padding)
    while at < block.size:
        n = u24(f + at)
        out.add(f + at + FRAME_HEADER, n)
        at += FRAME_HEADER + n
    return 0


cdef bint well_formed(int kind, Py_ssize_t length, unsigned int stream) noexcept nogil:
    """RFC 9113 section 6: what lengths, and which stream, the frames may have that are no part of a message."""
    if kind == SETTINGS:
        return stream == 0 and length % 6 == 0
    if kind == PING:
        return stream == 0 and length == 8
    if kind == GOAWAY:
        return stream == 0 and length >= 8
    if kind == WINDOW_UPDATE:
        return length == 4
    if kind == RST_STREAM:
        return stream != 0 and length == 4
    if kind == PRIORITY:
        return stream != 0 and length == 5
    return False  # CONTINUATION without the beginning of its block
