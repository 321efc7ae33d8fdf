"""Where the body of an HTTP/1 message ends: RFC 9112 sections 6 and 7.

A body is never collected. ``advance`` walks over the bytes that came and says how many of them belong to
the message; of the chunked coding it keeps only the state of a small automaton, so any chunking of the
input ends in the same place. Chunk extensions and trailers are checked and passed.
"""

from protocols.http1_head cimport (
    BAD_CHUNK_END, BAD_CHUNK_EXTENSION, BAD_CHUNK_SIZE, BAD_TRAILER, Fault, HEX, MAX_FIELDS, NONE, TEXT, TOKEN,
    TRAILERS_TOO_LARGE,
)

# chunk = chunk-size [ chunk-ext ] CRLF chunk-data CRLF; last-chunk, trailer-section, CRLF (section 7.1)
cdef enum State:
    SIZE
    BEFORE_EXTENSION
    EXTENSION
    SIZE_LF
    DATA
    DATA_CR
    DATA_LF
    TRAILER_START
    TRAILER_NAME
    TRAILER_VALUE
    TRAILER_LF
    LAST_LF

cdef enum:
    MAX_SIZE_DIGITS = 16
    MAX_EXTENSION = 8 * 1024
    MAX_TRAILERS = 60 * 1024


cdef void begin_body(Body* body, Framing framing, unsigned long long length) noexcept nogil:
    body.framing = framing
    body.remaining = length
    body.complete = framing == EMPTY or (framing == SIZED and length == 0)
    body.state = SIZE
    body.digits = body.fields = 0
    body.line = body.trailers = 0


cdef Py_ssize_t payload(const Body* body, Py_ssize_t n) noexcept nogil:
    """How many of the ``n`` bytes that come next are payload; 0 when the first of them belongs to the coding.

    Whoever reads payload asks here before each ``advance`` and gives it these bytes, or that one.
    """
    if body.framing == UNTIL_CLOSE:
        return n
    if body.framing == SIZED or body.state == DATA:
        return n if <unsigned long long>n < body.remaining else <Py_ssize_t>body.remaining
    return 0


cdef Fault advance(Body* body, const unsigned char* p, Py_ssize_t n, Py_ssize_t* used) noexcept nogil:
    """Walk over ``n`` bytes; ``used`` is how many are this message's, ``body.complete`` whether it ended there.

    With a fault, ``used`` counts the bytes before the faulty one.
    """
    cdef Py_ssize_t i = 0
    cdef unsigned char c
    cdef int state = body.state
    cdef Fault fault = NONE
    if body.framing == UNTIL_CLOSE:
        used[0] = n
        return NONE
    if body.framing == SIZED:
        if <unsigned long long>n >= body.remaining:
            used[0] = <Py_ssize_t>body.remaining
            body.remaining = 0
            body.complete = True
        else:
            used[0] = n
            body.remaining -= n
        return NONE
    while i < n:
        c = p[i]
        if state == DATA:
            if <unsigned long long>(n - i) < body.remaining:
                body.remaining -= n - i
                i = n
                break
            i += <Py_ssize_t>body.remaining
            body.remaining = 0
            state = DATA_CR
            continue
        elif state == SIZE:
            if HEX[c] >= 0:
                body.digits += 1
                if body.digits > MAX_SIZE_DIGITS:
                    fault = BAD_CHUNK_SIZE
                    break
                body.remaining = (body.remaining << 4) | <unsigned char>HEX[c]
            elif body.digits and c == c"\r":
                state = SIZE_LF
            elif body.digits and c == c";":
                state = EXTENSION
                body.line = 0
            elif body.digits and (c == c" " or c == c"\t"):
                # The grammar counts white space before the semicolon to the extension: chunk-ext = *( BWS ";" ...
                state = BEFORE_EXTENSION
                body.line = 1
            else:
                fault = BAD_CHUNK_SIZE
                break
        elif state == BEFORE_EXTENSION:
            body.line += 1
            if c == c";":
                state = EXTENSION
            elif not (c == c" " or c == c"\t") or body.line > MAX_EXTENSION:
                fault = BAD_CHUNK_SIZE
                break
        elif state == EXTENSION:
            body.line += 1
            if c == c"\r":
                state = SIZE_LF
            elif not TEXT[c] or body.line > MAX_EXTENSION:
                fault = BAD_CHUNK_EXTENSION
                break
        elif state == SIZE_LF:
            if c != c"\n":
                fault = BAD_CHUNK_SIZE if body.line == 0 else BAD_CHUNK_EXTENSION
                break
            body.digits = 0
            body.line = 0
            state = DATA if body.remaining else TRAILER_START
        elif state == DATA_CR:
            if c != c"\r":
                fault = BAD_CHUNK_END
                break
            state = DATA_LF
        elif state == DATA_LF:
            if c != c"\n":
                fault = BAD_CHUNK_END
                break
            state = SIZE
        else:
            # Trailers: the same lines as in a head, read byte by byte.
            body.trailers += 1
            if body.trailers > MAX_TRAILERS or body.fields > MAX_FIELDS:
                fault = TRAILERS_TOO_LARGE
                break
            if state == TRAILER_START:
                if c == c"\r":
                    state = LAST_LF
                elif TOKEN[c]:
                    state = TRAILER_NAME
                    body.fields += 1
                else:
                    fault = BAD_TRAILER
                    break
            elif state == TRAILER_NAME:
                if c == c":":
                    state = TRAILER_VALUE
                elif not TOKEN[c]:
                    fault = BAD_TRAILER
                    break
            elif state == TRAILER_VALUE:
                if c == c"\r":
                    state = TRAILER_LF
                elif not TEXT[c]:
                    fault = BAD_TRAILER
                    break
            elif c != c"\n":
                fault = BAD_TRAILER
                break
            elif state == TRAILER_LF:
                state = TRAILER_START
            else:
                i += 1
                body.complete = True
                break
        i += 1
    body.state = state
    used[0] = i
    return fault
