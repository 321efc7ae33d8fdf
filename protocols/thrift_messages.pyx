"""Thrift messages as bytes: the binary and the compact protocol.

The grammars are those of Apache Thrift's doc/specs (thrift-binary-protocol.md, thrift-compact-protocol.md). One
reader goes over a message in whatever pieces it comes and remembers where it stands; what it notes is the head, of
a reply the first field of its result, and of an exception its type and its first text. Everything else is skipped
by type, and elements of one size by multiplication, so that the work is bounded by the bytes that came.

Where a frame says how long the message is, reading ends as soon as there is nothing more to note.
"""

from libc.string cimport memcpy

# What is read next. Up to COMPACT_NAME it belongs to the head.
cdef enum State:
    FIRST
    STRICT_VERSION
    STRICT_NAME_SIZE
    STRICT_NAME
    STRICT_SEQUENCE
    OLD_NAME_SIZE
    OLD_NAME
    OLD_TYPE
    OLD_SEQUENCE
    COMPACT_VERSION
    COMPACT_SEQUENCE
    COMPACT_NAME_SIZE
    COMPACT_NAME
    FIELD
    FIELD_ID
    STRING_SIZE
    STRING_TEXT
    LIST_HEAD
    LIST_SIZE
    MAP_SIZE
    MAP_TYPES
    MAP_HEAD
    EXCEPTION_TYPE
    VARINT_VALUE
    SKIPPING
    NEXT

# The types of both protocols as one set; 0 ends a struct.
cdef enum Type:
    STOP
    BOOL
    BYTE
    I16
    I32
    I64
    DOUBLE
    UUID
    STRING
    STRUCT
    LIST      # a set is no different
    MAP
    TRUTH     # compact: a bool whose value is in its field's header
    UNKNOWN

cdef unsigned char[32] BINARY_TYPES
cdef unsigned char[16] COMPACT_TYPES


cdef void _fill_tables():
    cdef int i
    for i in range(32):
        BINARY_TYPES[i] = UNKNOWN
    for i, kind in (
        (0, STOP), (2, BOOL), (3, BYTE), (4, DOUBLE), (6, I16), (8, I32), (10, I64), (11, STRING), (12, STRUCT),
        (13, MAP), (14, LIST), (15, LIST), (16, UUID),
    ):
        BINARY_TYPES[i] = kind
    for i, kind in enumerate(
        (STOP, TRUTH, TRUTH, BYTE, I16, I32, I64, DOUBLE, STRING, LIST, LIST, MAP, STRUCT, UUID, UNKNOWN, UNKNOWN)
    ):
        COMPACT_TYPES[i] = kind


_fill_tables()

FAULTS = {
    MAGIC: "a message that begins as none of the binary or the compact protocol",
    VERSION: "a message of the compact protocol with a version other than 1",
    TYPE: "a message type other than call, reply, exception and oneway",
    NAME: f"a method name of negative length or of more than {MAX_NAME} bytes",
    VARINT: f"a variable-length integer of more than {MAX_VARINT} bytes",
    VALUE_TYPE: "a value of a type that the protocol does not have",
    SIZE: "a string or container of negative size",
    TOO_DEEP: f"structs and containers more than {MAX_DEPTH} deep",
}


cdef inline unsigned int _u32(const unsigned char* p) noexcept nogil:
    return (<unsigned int>p[0] << 24) | (<unsigned int>p[1] << 16) | (<unsigned int>p[2] << 8) | p[3]


cdef inline int _type_of(Reader* r, unsigned char wire) noexcept nogil:
    if r.encoding == COMPACT:
        return COMPACT_TYPES[wire & 0x0F]
    return BINARY_TYPES[wire] if wire < 32 else UNKNOWN


cdef inline int _width(Reader* r, int kind) noexcept nogil:
    """How many bytes every value of the type takes; 0 where that differs."""
    if kind == BOOL or kind == BYTE:
        return 1
    if kind == TRUTH:
        return 1  # as an element
    if kind == DOUBLE:
        return 8
    if kind == UUID:
        return 16
    if r.encoding == COMPACT:
        return 0
    if kind == I16:
        return 2
    if kind == I32:
        return 4
    if kind == I64:
        return 8
    return 0


cdef inline void _expect(Reader* r, int state, int need) noexcept nogil:
    """Read ``need`` bytes next, or a varint where that is 0."""
    r.state = state
    r.need = need
    r.have = 0
    r.varint = 0


cdef inline Step _fail(Reader* r, Fault fault) noexcept nogil:
    r.fault = fault
    return FAULTY


cdef void begin_message(Reader* r, bint brief) noexcept nogil:
    r.brief = brief
    r.fault = NONE
    r.type = 0
    r.text_length = 0
    r.text_read = r.result_known = r.wants_text = False
    r.result_field = 0
    r.exception_type = 0
    r.type_read = False
    r.skip = 0
    r.depth = 0
    _expect(r, FIRST, 1)


cdef inline Step _push(Reader* r, int kind, int first, int second, unsigned long long left) noexcept nogil:
    cdef Level* level
    if r.depth == MAX_DEPTH:
        return _fail(r, TOO_DEEP)
    level = &r.levels[r.depth]
    level.kind = kind
    level.first = first
    level.second = second
    level.left = left
    level.field = 0
    r.depth += 1
    return MORE


cdef inline Step _begin_struct(Reader* r) noexcept nogil:
    if _push(r, STRUCT, 0, 0, 0) == FAULTY:
        return FAULTY
    _expect(r, FIELD, 1)
    return MORE


cdef inline void _skip(Reader* r, unsigned long long n) noexcept nogil:
    r.skip = n
    r.state = SKIPPING


cdef Step _begin_value(Reader* r, int kind) noexcept nogil:
    cdef int width = _width(r, kind)
    if width:
        _skip(r, width)
    elif kind == STRING:
        _expect(r, STRING_SIZE, 0 if r.encoding == COMPACT else 4)
    elif kind == I16 or kind == I32 or kind == I64:
        _expect(r, VARINT_VALUE, 0)
    elif kind == STRUCT:
        return _begin_struct(r)
    elif kind == LIST:
        _expect(r, LIST_HEAD, 1 if r.encoding == COMPACT else 5)
    elif kind == MAP:
        if r.encoding == COMPACT:
            _expect(r, MAP_SIZE, 0)
        else:
            _expect(r, MAP_HEAD, 6)
    else:
        return _fail(r, VALUE_TYPE)
    return MORE


cdef Step _begin_elements(Reader* r, int kind, int first, int second, unsigned long long size) noexcept nogil:
    """A list, set or map. The types of one without elements may say anything."""
    cdef int width
    if size > 0x7FFFFFFF:
        return _fail(r, SIZE)
    if size == 0:
        r.state = NEXT
        return MORE
    if first == STOP or first == UNKNOWN or (kind == MAP and (second == STOP or second == UNKNOWN)):
        return _fail(r, VALUE_TYPE)
    width = _width(r, first)
    if kind == LIST:
        if width:
            _skip(r, size * width)
            return MORE
        r.state = NEXT
        return _push(r, LIST, first, first, size)
    if width and _width(r, second):
        _skip(r, size * (width + _width(r, second)))
        return MORE
    r.state = NEXT
    return _push(r, MAP, first, second, 2 * size)


cdef Step _begin_field(Reader* r) noexcept nogil:
    """The header of a field was read: ``field`` and ``field_type``."""
    cdef bint outermost = r.depth == 1
    if outermost and r.type == REPLY and not r.result_known:
        # What a call can come to is a struct of which one field is set: 0 for its value, else an exception.
        r.result_known = True
        r.result_field = r.field
        if r.field != 0 and r.field_type == STRUCT:
            r.wants_text = True
        elif r.brief:
            return OVER
    elif outermost and r.type == EXCEPTION:
        # TApplicationException: 1: string message, 2: i32 type (thrift-rpc.md, "Response struct").
        if r.field == 2 and r.field_type == I32:
            _expect(r, EXCEPTION_TYPE, 0 if r.encoding == COMPACT else 4)
            return MORE
        if r.field == 1 and r.field_type == STRING and not r.text_read:
            r.wants_text = True
    if r.field_type == TRUTH:
        r.state = NEXT
        return MORE
    return _begin_value(r, r.field_type)


cdef Step _end_struct(Reader* r) noexcept nogil:
    r.depth -= 1
    r.state = NEXT
    if r.depth == 0:
        r.result_known = True
        return OVER
    if r.depth == 1 and r.type == REPLY and r.result_field != 0:
        r.wants_text = False
        if r.brief:
            return OVER
    return MORE


cdef inline bint _all_noted(Reader* r) noexcept nogil:
    if not r.brief:
        return False
    return r.text_read and (r.type != EXCEPTION or r.type_read)


cdef Step _begin_body(Reader* r) noexcept nogil:
    _begin_struct(r)
    return HEAD_READ


cdef Step _take_name(Reader* r, int state, unsigned long long size) noexcept nogil:
    """``state`` is the one in which its bytes are read."""
    if size > MAX_NAME:
        return _fail(r, NAME)
    r.to_note = <unsigned int>size
    r.text_length = 0
    r.state = state
    return MORE


cdef Step _name_read(Reader* r) noexcept nogil:
    if r.state == STRICT_NAME:
        _expect(r, STRICT_SEQUENCE, 4)
    elif r.state == OLD_NAME:
        _expect(r, OLD_TYPE, 1)
    else:
        return _begin_body(r)
    return MORE


cdef Step _take(Reader* r, const unsigned char* q) noexcept nogil:
    """Take the piece at ``q``, of the length that was expected; or the varint."""
    cdef int state = r.state, kind
    cdef unsigned long long size
    cdef Level* level
    if state == FIELD:
        kind = _type_of(r, q[0])
        if r.encoding != COMPACT:
            if q[0] == 0:
                return _end_struct(r)
            r.field_type = kind
            _expect(r, FIELD_ID, 2)
            return MORE
        if kind == STOP:
            return _end_struct(r)
        r.field_type = kind
        if q[0] >> 4 == 0:
            _expect(r, FIELD_ID, 0)
            return MORE
        level = &r.levels[r.depth - 1]
        level.field = <short>(level.field + (q[0] >> 4))
        r.field = level.field
        return _begin_field(r)
    if state == FIELD_ID:
        if r.encoding == COMPACT:
            r.field = <short>(<long long>(r.varint >> 1) ^ -<long long>(r.varint & 1))
            r.levels[r.depth - 1].field = <short>r.field
        else:
            r.field = <short>(<unsigned short>(q[0] << 8 | q[1]))
        return _begin_field(r)
    if state == STRING_SIZE:
        size = r.varint if r.encoding == COMPACT else _u32(q)
        if size > 0x7FFFFFFF:
            return _fail(r, SIZE)
        # The struct that was asked for is the first level of an exception message, the second of a reply.
        if r.wants_text and r.depth == (1 if r.type == EXCEPTION else 2) and r.levels[r.depth - 1].kind == STRUCT:
            r.wants_text = False
            r.text_length = 0
            r.to_note = <unsigned int>(size if size < MAX_TEXT else MAX_TEXT)
            r.skip = size - r.to_note
            r.state = STRING_TEXT
        else:
            _skip(r, size)
        return MORE
    if state == LIST_HEAD:
        kind = _type_of(r, q[0])
        if r.encoding != COMPACT:
            return _begin_elements(r, LIST, kind, kind, _u32(q + 1))
        if q[0] >> 4 == 15:
            r.field_type = kind
            _expect(r, LIST_SIZE, 0)
            return MORE
        return _begin_elements(r, LIST, kind, kind, q[0] >> 4)
    if state == LIST_SIZE:
        return _begin_elements(r, LIST, r.field_type, r.field_type, r.varint)
    if state == MAP_HEAD:
        return _begin_elements(r, MAP, _type_of(r, q[0]), _type_of(r, q[1]), _u32(q + 2))
    if state == MAP_SIZE:
        size = r.varint
        if size == 0 or size > 0x7FFFFFFF:
            return _begin_elements(r, MAP, STOP, STOP, size)
        # The varint stays where it is until the types are read.
        r.state = MAP_TYPES
        r.need = 1
        r.have = 0
        return MORE
    if state == MAP_TYPES:
        return _begin_elements(r, MAP, _type_of(r, q[0] >> 4), _type_of(r, q[0]), r.varint)
    if state == EXCEPTION_TYPE:
        if r.encoding == COMPACT:
            r.exception_type = <int>(<long long>(r.varint >> 1) ^ -<long long>(r.varint & 1))
        else:
            r.exception_type = <int>_u32(q)
        r.type_read = True
        r.state = NEXT
        return OVER if _all_noted(r) else MORE
    if state == VARINT_VALUE:
        r.state = NEXT
        return MORE
    if state == FIRST:
        if q[0] == 0x80:
            r.encoding = BINARY
            _expect(r, STRICT_VERSION, 3)
        elif q[0] == 0x82:
            r.encoding = COMPACT
            _expect(r, COMPACT_VERSION, 1)
        elif q[0] == 0:
            # The first byte of a name's length.
            r.encoding = BINARY_OLD
            _expect(r, OLD_NAME_SIZE, 3)
        else:
            return _fail(r, MAGIC)
        return MORE
    if state == STRICT_VERSION:
        if q[0] != 1:
            return _fail(r, MAGIC)
        r.type = q[2]
        if not CALL <= r.type <= ONEWAY:
            return _fail(r, TYPE)
        _expect(r, STRICT_NAME_SIZE, 4)
        return MORE
    if state == STRICT_NAME_SIZE:
        return _take_name(r, STRICT_NAME, _u32(q))
    if state == STRICT_SEQUENCE:
        r.sequence = <int>_u32(q)
        return _begin_body(r)
    if state == OLD_NAME_SIZE:
        return _take_name(r, OLD_NAME, <unsigned int>q[0] << 16 | <unsigned int>q[1] << 8 | q[2])
    if state == OLD_TYPE:
        r.type = q[0]
        if not CALL <= r.type <= ONEWAY:
            return _fail(r, TYPE)
        _expect(r, OLD_SEQUENCE, 4)
        return MORE
    if state == OLD_SEQUENCE:
        r.sequence = <int>_u32(q)
        return _begin_body(r)
    if state == COMPACT_VERSION:
        if q[0] & 0x1F != 1:
            return _fail(r, VERSION)
        r.type = q[0] >> 5
        if not CALL <= r.type <= ONEWAY:
            return _fail(r, TYPE)
        _expect(r, COMPACT_SEQUENCE, 0)
        return MORE
    if state == COMPACT_SEQUENCE:
        r.sequence = <int><unsigned int>r.varint
        _expect(r, COMPACT_NAME_SIZE, 0)
        return MORE
    # COMPACT_NAME_SIZE
    return _take_name(r, COMPACT_NAME, r.varint)


cdef Step read_message(Reader* r, const unsigned char* p, Py_ssize_t n, Py_ssize_t* used) noexcept nogil:
    """Read on in a message: ``used`` is how many of the ``n`` bytes at ``p`` were read."""
    cdef Py_ssize_t i = 0, length
    cdef int state
    cdef Step step
    cdef Level* level
    cdef const unsigned char* q
    while True:
        state = r.state
        step = MORE
        if state == NEXT:
            level = &r.levels[r.depth - 1]
            if level.kind == STRUCT:
                _expect(r, FIELD, 1)
            elif level.left == 0:
                r.depth -= 1
            else:
                # A key where the number that is left is even.
                step = _begin_value(r, level.second if level.left & 1 else level.first)
                level.left -= 1
        elif state == SKIPPING:
            if <unsigned long long>(n - i) < r.skip:
                r.skip -= n - i
                i = n
                break
            i += r.skip
            r.skip = 0
            r.state = NEXT
        elif state == STRING_TEXT or state == STRICT_NAME or state == OLD_NAME or state == COMPACT_NAME:
            length = n - i if n - i < <Py_ssize_t>r.to_note else <Py_ssize_t>r.to_note
            memcpy(r.text + r.text_length, p + i, length)
            r.text_length += length
            r.to_note -= <unsigned int>length
            i += length
            if r.to_note:
                break
            if state == STRING_TEXT:
                r.text_read = True
                r.state = SKIPPING
                if _all_noted(r):
                    step = OVER
            else:
                step = _name_read(r)
        elif r.need:
            if r.have == 0 and n - i >= r.need:
                q = p + i
                i += r.need
            else:
                length = n - i if n - i < r.need - r.have else r.need - r.have
                memcpy(r.piece + r.have, p + i, length)
                r.have += <int>length
                i += length
                if r.have < r.need:
                    break
                q = r.piece
            step = _take(r, q)
        else:
            if i == n:
                break
            if r.have == MAX_VARINT:
                step = _fail(r, VARINT)
            else:
                r.varint |= <unsigned long long>(p[i] & 0x7F) << (7 * r.have)
                r.have += 1
                i += 1
                if p[i - 1] < 0x80:
                    step = _take(r, NULL)
        if step != MORE:
            used[0] = i
            return step
    used[0] = i
    return MORE
