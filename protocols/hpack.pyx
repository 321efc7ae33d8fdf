"""HPACK, RFC 7541: what a header block says, and where in the block each field lies.

One ``Decoder`` follows one direction of a connection. It observes: the block goes on as it came, so each field
is reported with the bytes that represent it and with the numbers of the dynamic entries that it uses and adds.
Entries are numbered 1, 2, 3, ... as they come and keep their number for life; an index does not.

The cost of a block is linear in its encoded length. A reference of one byte may stand for a text of 64 KiB, so
what is kept of a block is bounded, names are shared rather than copied from entry to entry, and a field that is
not kept is only counted. The dynamic table takes memory for what is in it, not for what it might hold.
"""

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

# RFC 7541 Appendix A. Index 1 is the first; no value is the empty value.
STATIC_TABLE = [
    tuple(line.strip().partition(b"=")[::2])
    for line in b"""
        :authority
        :method=GET
        :method=POST
        :path=/
        :path=/index.html
        :scheme=http
        :scheme=https
        :status=200
        :status=204
        :status=206
        :status=304
        :status=400
        :status=404
        :status=500
        accept-charset
        accept-encoding=gzip, deflate
        accept-language
        accept-ranges
        accept
        access-control-allow-origin
        age
        allow
        authorization
        cache-control
        content-disposition
        content-encoding
        content-language
        content-length
        content-location
        content-range
        content-type
        cookie
        date
        etag
        expect
        expires
        from
        host
        if-match
        if-modified-since
        if-none-match
        if-range
        if-unmodified-since
        last-modified
        link
        location
        max-forwards
        proxy-authenticate
        proxy-authorization
        range
        referer
        refresh
        retry-after
        server
        set-cookie
        strict-transport-security
        transfer-encoding
        user-agent
        vary
        via
        www-authenticate
    """.split(b"\n") if line.strip()
]

# RFC 7541 Appendix B, as (length of the code in bits, the symbols that have one of that length). The code is
# canonical: the first symbol here has 00000, and each next one has the number that follows, with zeros appended
# where the codes become longer. EOS, 30 ones, is what remains after the last.
HUFFMAN_CODE = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\x00$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
    (19, b"\\\xc3\xd0"),
    (20, b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2"),
    (21, b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6"),
    (22, b"\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9"),
    (23, b"\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf"
         b"\xc5\xe7\xef"),
    (24, b"\t\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed"),
    (25, b"\xc7\xcf\xea\xeb"),
    (26, b"\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff"),
    (27, b"\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe"),
    (28, b"\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f"
         b"\x7f\xdc\xf9"),
    (30, b"\n\r\x16"),
]

# What was wrong, for the log.
FAULTS = {
    TRUNCATED: "the header block ends within a field",
    INTEGER_TOO_LARGE: "an integer in the header block is 2^31 or more, or longer than such a one can be",
    BAD_INDEX: "the header block refers to a table entry that is not there",
    BAD_HUFFMAN: "malformed Huffman code in the header block",
    LATE_UPDATE: "a table size update after the first field of the header block",
    UPDATE_ABOVE_LIMIT: "a table size update above the size that the receiver allows",
    TABLE_TOO_LARGE: "the dynamic table would hold more than 64 KiB",
}


class HpackError(ValueError):
    pass


cdef enum:
    STATIC_ENTRIES = 61
    ENTRY_OVERHEAD = 32  # section 4.1
    FIRST_CAPACITY = 8
    # An integer below 2^31 takes at most five octets after its prefix.
    LAST_SHIFT = 28
    # Codes of up to 8 bits, which is nearly all text, are looked up; the others are found by their length.
    SHORT_BITS = 8
    LONGEST_CODE = 30
    EOS = 256
    # Kept texts are at the front. The rest is where a text is decoded that is then put into the table (and has
    # room for any that may be) or only counted.
    SCRATCH = MAX_TEXTS + MAX_STORED

cdef Entry STATIC[STATIC_ENTRIES + 1]
cdef HpackField FIELDS[MAX_KEPT]
cdef unsigned char scratch[SCRATCH]

cdef unsigned char SHORT_LENGTH[1 << SHORT_BITS]
cdef unsigned char SHORT_SYMBOL[1 << SHORT_BITS]
# Of the codes of each length: the first, the one after the last (both as the topmost of 30 bits), and where
# their symbols begin in SYMBOLS.
cdef unsigned int FIRST_CODE[LONGEST_CODE + 1]
cdef unsigned int CODE_LIMIT[LONGEST_CODE + 1]
cdef unsigned short FIRST_SYMBOL[LONGEST_CODE + 1]
cdef unsigned short SYMBOLS[EOS + 1]


cdef inline unsigned char* _bytes(Text* text) noexcept nogil:
    return <unsigned char*>(text + 1)


cdef Text* _new_text(const unsigned char* p, Py_ssize_t n) noexcept nogil:
    cdef Text* text = <Text*>malloc(sizeof(Text) + n)
    if text != NULL:
        text.holders = 1
        text.length = n
        memcpy(_bytes(text), p, n)
    return text


cdef inline void _let_go(Text* text) noexcept nogil:
    text.holders -= 1
    if text.holders == 0:
        free(text)


cdef int _fill_tables() except -1:
    cdef unsigned int code = 0, step, short_code
    cdef int length, position = 0
    for number, (name, value) in enumerate(STATIC_TABLE, 1):
        STATIC[number].name = _new_text(name, len(name))
        STATIC[number].value = _new_text(value, len(value))
        if STATIC[number].name == NULL or STATIC[number].value == NULL:
            raise MemoryError
    for length, symbols in HUFFMAN_CODE:
        symbols = [*symbols, EOS] if length == LONGEST_CODE else [*symbols]
        step = 1 << (LONGEST_CODE - length)
        FIRST_CODE[length] = code
        FIRST_SYMBOL[length] = position
        for symbol in symbols:
            SYMBOLS[position] = symbol
            position += 1
            if length <= SHORT_BITS:
                short_code = code >> (LONGEST_CODE - SHORT_BITS)
                memset(SHORT_LENGTH + short_code, length, 1 << (SHORT_BITS - length))
                memset(SHORT_SYMBOL + short_code, symbol, 1 << (SHORT_BITS - length))
            code += step
        CODE_LIMIT[length] = code
    return 0


_fill_tables()


cdef Py_ssize_t _huffman(const unsigned char* p, Py_ssize_t n, unsigned char* out, Py_ssize_t room) noexcept nogil:
    """Decode ``n`` bytes (section 5.2): the length of the text, of which at most ``room`` is written; -1 is a fault."""
    cdef unsigned long long window = 0  # the bits that come next, from its top; zeros below them
    cdef int bits = 0                   # how many there are
    cdef int size
    cdef unsigned int code
    cdef unsigned short symbol
    cdef Py_ssize_t i = 0, length = 0
    while True:
        if bits < LONGEST_CODE:
            while bits <= 56 and i < n:
                window |= <unsigned long long>p[i] << (56 - bits)
                bits += 8
                i += 1
        code = <unsigned int>(window >> (64 - SHORT_BITS))
        size = SHORT_LENGTH[code]
        if size:
            symbol = SHORT_SYMBOL[code]
        else:
            code = <unsigned int>(window >> (64 - LONGEST_CODE))
            size = SHORT_BITS + 1
            # The limit of the longest is above every code; a length without codes has the limit 0.
            while code >= CODE_LIMIT[size]:
                size += 1
            symbol = SYMBOLS[FIRST_SYMBOL[size] + ((code - FIRST_CODE[size]) >> (LONGEST_CODE - size))]
        if size > bits:
            break
        if symbol == EOS:
            return -1
        if length < room:
            out[length] = <unsigned char>symbol
        length += 1
        window <<= size
        bits -= size
    # Padding is the beginning of EOS, and shorter than a byte.
    if bits > 7 or (bits and window != ~<unsigned long long>0 << (64 - bits)):
        return -1
    return length


cdef HpackFault _integer(
    const unsigned char* block, Py_ssize_t n, Py_ssize_t* at, unsigned int prefix_bits, Py_ssize_t* value
) noexcept nogil:
    """Section 5.1. ``at`` is where it begins, and then one past it."""
    cdef unsigned int mask = (1 << prefix_bits) - 1, shift = 0
    cdef unsigned long long number
    cdef unsigned char octet
    cdef Py_ssize_t i = at[0]
    if i >= n:
        return TRUNCATED
    number = block[i] & mask
    i += 1
    if number == mask:
        while True:
            if i >= n:
                return TRUNCATED
            if shift > LAST_SHIFT:
                return INTEGER_TOO_LARGE
            octet = block[i]
            i += 1
            number += <unsigned long long>(octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                break
        if number > 0x7FFFFFFF:
            return INTEGER_TOO_LARGE
    value[0] = <Py_ssize_t>number
    at[0] = i
    return SOUND


cdef HpackFault _string(
    const unsigned char* block, Py_ssize_t n, Py_ssize_t* at, unsigned char* out, Py_ssize_t room, Py_ssize_t* length
) noexcept nogil:
    """Section 5.2. ``length`` is that of the text, of which at most ``room`` is written."""
    cdef Py_ssize_t begin = at[0], size = 0
    cdef HpackFault fault = _integer(block, n, at, 7, &size)
    if fault != SOUND:
        return fault
    if size > n - at[0]:
        return TRUNCATED
    if block[begin] & 0x80:
        length[0] = _huffman(block + at[0], size, out, room)
        if length[0] < 0:
            return BAD_HUFFMAN
    else:
        length[0] = size
        memcpy(out, block + at[0], min(size, room))
    at[0] += size
    return SOUND


cdef int write_integer(
    unsigned char* out, unsigned int prefix_bits, unsigned char high_bits, Py_ssize_t value
) noexcept nogil:
    """Write an integer below 2^31 (section 5.1) beside the bits that share its first byte; how many bytes it took."""
    cdef unsigned int mask = (1 << prefix_bits) - 1
    cdef int i = 1
    if value < <Py_ssize_t>mask:
        out[0] = high_bits | <unsigned char>value
        return 1
    out[0] = high_bits | <unsigned char>mask
    value -= mask
    while value >= 0x80:
        out[i] = 0x80 | <unsigned char>(value & 0x7F)
        value >>= 7
        i += 1
    out[i] = <unsigned char>value
    return i + 1


cdef class Decoder:
    def __cinit__(self, unsigned long limit=4096):
        self.fields = FIELDS
        # What both sides begin with (RFC 9113 section 6.5.2).
        self.max_size = self.limit = 4096
        self.set_limit(limit)

    def __dealloc__(self):
        self._evict(0)
        free(self.entries)

    cdef void set_limit(self, unsigned long size) noexcept:
        """The receiver named this SETTINGS_HEADER_TABLE_SIZE.

        The table is as large as the encoder says, and that may be up to any size that the receiver ever named:
        when the encoder learns of a smaller one is not seen from here. It is then the receiver's to insist on it.
        """
        self.limit = max(self.limit, size)

    cdef unsigned long long oldest(self) noexcept:
        """The number of the oldest entry that is still in the table; without any, that of the next."""
        return self.inserted - self.live + 1

    cdef HpackFault decode(self, const unsigned char* block, Py_ssize_t n) noexcept:
        """Decode one complete header block into ``fields``. After a fault the table is of no use any more."""
        cdef Py_ssize_t at = 0, size = 0
        cdef HpackFault fault
        self.count = self.total = 0
        self.list_size = 0
        # Dynamic table size updates come first (sections 4.2 and 6.3).
        while at < n and block[at] & 0xE0 == 0x20:
            fault = _integer(block, n, &at, 5, &size)
            if fault != SOUND:
                return fault
            if <unsigned long>size > self.limit:
                return UPDATE_ABOVE_LIMIT
            self.max_size = size
            self._evict(size)
        while at < n:
            fault = self._field(block, n, &at)
            if fault != SOUND:
                return fault
        return SOUND

    cdef HpackFault _field(self, const unsigned char* block, Py_ssize_t n, Py_ssize_t* at) noexcept:
        """Decode the field that begins at ``at``, count it, and keep it if all before it were kept and it fits."""
        cdef HpackField field
        cdef HpackFault fault
        cdef Entry* entry = NULL
        cdef Py_ssize_t index = 0
        cdef bint keep = self.count == self.total
        # Of what is kept, every text has its place after those before it, also one that is not copied there.
        cdef unsigned char* out = scratch + (self.list_size if keep else MAX_TEXTS)
        cdef unsigned char* end = scratch + SCRATCH
        cdef unsigned char first = block[at[0]]
        cdef unsigned int prefix_bits = 4
        field.kind = PLAIN
        if first & 0x80:
            field.kind = INDEXED
            prefix_bits = 7
        elif first & 0x40:
            field.kind = INDEXING
            prefix_bits = 6
        elif first & 0x20:
            return LATE_UPDATE
        elif first & 0x10:
            field.kind = NEVER
        field.start = at[0]
        field.entry = field.added = 0
        fault = _integer(block, n, at, prefix_bits, &index)
        if fault != SOUND:
            return fault
        if index:
            entry = self._lookup(index, &field.entry)
            if entry == NULL:
                return BAD_INDEX
            field.name = _bytes(entry.name)
            field.name_length = entry.name.length
        elif field.kind == INDEXED:
            return BAD_INDEX
        else:
            fault = _string(block, n, at, out, end - out, &field.name_length)
            if fault != SOUND:
                return fault
            field.name = out
            out += min(field.name_length, end - out)
        field.value_start = at[0]
        if field.kind == INDEXED:
            field.value = _bytes(entry.value)
            field.value_length = entry.value.length
        else:
            fault = _string(block, n, at, out, end - out, &field.value_length)
            if fault != SOUND:
                return fault
            field.value = out
            out += min(field.value_length, end - out)
        field.end = at[0]
        self.total += 1
        self.list_size += field.name_length + field.value_length
        keep = keep and self.count < MAX_KEPT and self.list_size <= MAX_TEXTS
        if keep and field.entry:
            # An entry may be evicted before the block ends, so what it says is copied.
            memcpy(out, field.name, field.name_length)
            field.name = out
            if field.kind == INDEXED:
                out += field.name_length
                memcpy(out, field.value, field.value_length)
                field.value = out
        if field.kind == INDEXING:
            fault = self._add(entry.name if entry != NULL else NULL, &field)
            if fault != SOUND:
                return fault
        if keep:
            self.fields[self.count] = field
            self.count += 1
        return SOUND

    cdef Entry* _lookup(self, Py_ssize_t index, unsigned long long* number) noexcept:
        """The entry with this index (section 2.3.3), and its number if it is a dynamic one. NULL: there is none."""
        if index <= 0 or index > STATIC_ENTRIES + <Py_ssize_t>self.live:
            return NULL
        if index <= STATIC_ENTRIES:
            return &STATIC[index]
        number[0] = self.inserted - (index - STATIC_ENTRIES - 1)
        return &self.entries[number[0] & (self.capacity - 1)]

    cdef HpackFault _add(self, Text* name, HpackField* field) noexcept:
        """Add the field as an entry, by the ``name`` that it refers to if it does (section 4.4)."""
        cdef unsigned long size = field.name_length + field.value_length + ENTRY_OVERHEAD
        cdef Entry* entry
        cdef Text* value
        if size > self.max_size:
            self._evict(0)
            return SOUND
        # The entry with that name may be among those that are evicted for the new one.
        if name != NULL:
            name.holders += 1
        self._evict(self.max_size - size)
        # No memory is the same to the caller as no room.
        if self.size + size <= MAX_STORED and self._make_room():
            if name == NULL:
                name = _new_text(field.name, field.name_length)
            value = _new_text(field.value, field.value_length)
            if name != NULL and value != NULL:
                self.inserted += 1
                self.live += 1
                self.size += size
                field.added = self.inserted
                entry = &self.entries[self.inserted & (self.capacity - 1)]
                entry.name = name
                entry.value = value
                return SOUND
            if value != NULL:
                _let_go(value)
        if name != NULL:
            _let_go(name)
        return TABLE_TOO_LARGE

    cdef bint _make_room(self) noexcept:
        """Let the ring have a place for one more entry."""
        cdef unsigned int capacity
        cdef unsigned long long number
        cdef Entry* entries
        if self.live < self.capacity:
            return True
        capacity = 2 * self.capacity if self.capacity else FIRST_CAPACITY
        entries = <Entry*>malloc(capacity * sizeof(Entry))
        if entries == NULL:
            return False
        for number in range(self.oldest(), self.inserted + 1):
            entries[number & (capacity - 1)] = self.entries[number & (self.capacity - 1)]
        free(self.entries)
        self.entries = entries
        self.capacity = capacity
        return True

    cdef void _evict(self, unsigned long down_to) noexcept:
        """Drop the oldest entries until the table is no larger than this (section 4.3)."""
        cdef Entry* entry
        while self.size > down_to:
            entry = &self.entries[self.oldest() & (self.capacity - 1)]
            self.size -= entry.name.length + entry.value.length + ENTRY_OVERHEAD
            self.live -= 1
            _let_go(entry.name)
            _let_go(entry.value)

    def read(self, bytes block not None):
        cdef int i
        cdef HpackField* field
        cdef HpackFault fault = self.decode(block, len(block))
        if fault != SOUND:
            raise HpackError(FAULTS[fault])
        fields = []
        for i in range(self.count):
            field = &self.fields[i]
            fields.append((
                field.name[: field.name_length], field.value[: field.value_length], <int>field.kind,
                field.start, field.end, field.value_start, field.entry, field.added,
            ))
        return fields

    def allow(self, unsigned long size):
        self.set_limit(size)

    def table(self):
        cdef unsigned long long number
        cdef Entry* entry
        entries = []
        for number in range(self.oldest(), self.inserted + 1):
            entry = &self.entries[number & (self.capacity - 1)]
            entries.append((_bytes(entry.name)[: entry.name.length], _bytes(entry.value)[: entry.value.length]))
        return entries[::-1]

    def numbers(self):
        return self.oldest(), self.inserted


def integer(unsigned int prefix_bits, unsigned char high_bits, Py_ssize_t value):
    cdef unsigned char out[MAX_INTEGER]
    return out[: write_integer(out, prefix_bits, high_bits, value)]
