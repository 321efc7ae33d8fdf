"""Trace headers within HTTP/2's header blocks, changed so that no dynamic table goes out of step.

A literal that its sender indexes is replaced by one that takes the same place: as many octets (RFC 7541 section
4.1), indexed alike. The receiver's entry then reads otherwise than the sender's, so from there on whatever
refers to such an entry is spelled out. What must vanish, or change its length, leaves an empty tracestate of its
size behind, which says nothing (W3C Trace Context section 3.3.1.1).
"""

from cpython.bytes cimport PyBytes_AS_STRING

from protocols.assembly cimport Assembly
from protocols.hpack cimport Decoder, HpackField, INDEXED, INDEXING, write_integer
from protocols.trace_context cimport Ids, TraceContext, continue_trace

# Which part of an entry of the table differs between the two ends.
cdef enum Diverged:
    VALUE_DIFFERS = 1
    NAME_DIFFERS = 2


cdef int _write_string(Assembly out, const unsigned char* text, Py_ssize_t n) except -1:
    """A string literal as it is, without Huffman (RFC 7541 section 5.2)."""
    cdef unsigned char prefix[16]
    out.add(prefix, write_integer(prefix, 7, 0, n))
    return out.add(text, n)


cdef int write_plain(Assembly out, bytes name, bytes value) except -1:
    """A literal without indexing, its name spelled out (RFC 7541 section 6.2.2)."""
    out.add(b"\x00", 1)
    _write_string(out, <const unsigned char*>PyBytes_AS_STRING(name), len(name))
    return _write_string(out, <const unsigned char*>PyBytes_AS_STRING(value), len(value))


cdef bytes _no_members(Py_ssize_t n):
    """A tracestate of ``n`` octets without members: empty ones and white space are allowed (W3C section 3.3.1.1)."""
    return b"," * n if n < 2 else b"," + b" " * (n - 2) + b","


cdef class TraceRewriter:
    """What one direction's sender and receiver have otherwise in their tables."""

    def __init__(self, Decoder decoder):
        self.decoder = decoder

    cdef TraceContext rewrite(self, Ids ids, const unsigned char* block, Py_ssize_t n, Assembly out):
        """Write the block that ``decoder`` has just read to ``out``, with its trace headers continued."""
        cdef list traceparents = [], tracestates = [], found = []
        cdef dict b3 = {}
        cdef bytes name, value, became
        cdef HpackField* field
        cdef Py_ssize_t copied = 0, i
        cdef TraceContext trace
        for i in range(self.decoder.count):
            field = &self.decoder.fields[i]
            if not 1 < field.name_length < 18:
                continue
            name = field.name[:field.name_length]
            if name == b"traceparent":
                traceparents.append(field.value[:field.value_length])
            elif name == b"tracestate":
                tracestates.append(field.value[:field.value_length])
            elif name == b"b3" or name.startswith(b"x-b3-"):
                b3.setdefault(name, field.value[:field.value_length])
            else:
                continue
            found.append((i, name))
        trace = continue_trace(ids, traceparents, tracestates, b3)
        for i, name in found:
            field = &self.decoder.fields[i]
            value = became = field.value[:field.value_length]
            if name == b"traceparent":
                if trace.traceparent is not None:
                    became = trace.traceparent if trace.in_place else None
            elif name == b"tracestate":
                if not trace.keep_tracestate:
                    became = None
            elif trace.b3 is not None and name in trace.b3:
                became = trace.b3[name]
            out.add(block + copied, field.start - copied)
            copied = field.end
            self._write_field(block, field, name, value, became, out)
        out.add(block + copied, n - copied)
        self._forget_evicted()
        return trace

    cdef bint translate(self, const unsigned char* block, Py_ssize_t n, Assembly out) except -1:
        """Spell out what refers to entries that the receiver has in another form; answers whether anything did, and
        then the block is in ``out``."""
        cdef HpackField* field
        cdef Py_ssize_t copied = 0, i
        cdef bytes value
        if not self.diverged:
            return False
        out.length = 0
        for i in range(self.decoder.count):
            field = &self.decoder.fields[i]
            if field.entry in self.diverged:
                out.add(block + copied, field.start - copied)
                copied = field.end
                value = field.value[:field.value_length]
                self._write_field(block, field, field.name[:field.name_length], value, value, out)
        out.add(block + copied, n - copied)
        self._forget_evicted()
        return copied > 0

    cdef _forget_evicted(self):
        cdef unsigned long long oldest
        if self.diverged:
            oldest = self.decoder.oldest()
            self.diverged = {entry: how for entry, how in self.diverged.items() if entry >= oldest}

    cdef _write_field(
        self, const unsigned char* block, HpackField* field, bytes name, bytes value, bytes became, Assembly out
    ):
        """One trace header, which is to read ``became`` (None: is to vanish) at the other end, in a form that does to
        the receiver's table what it did to the sender's."""
        cdef int refers = self.diverged.get(field.entry, 0) if self.diverged and field.entry else 0
        cdef bytes place
        if field.kind == INDEXED:
            if became is not None:
                if became == value and not refers:
                    out.add(block + field.start, field.end - field.start)
                else:
                    write_plain(out, name, became)
            return
        if field.kind == INDEXING and (became is None or len(became) != len(value)):
            if len(name) + len(value) < 10:
                # Too short for the place holder: a b3 of one character, which says nothing but the decision.
                became = value if became is None else became.split(b"-")[2] if len(value) == 1 else value
                if len(became) != len(value):
                    became = value
            else:
                # What it put into the table must be put there, in the same size, and say nothing.
                place = _no_members(len(name) + len(value) - 10)
                out.add(b"\x40", 1)
                _write_string(out, b"tracestate", 10)
                _write_string(out, <const unsigned char*>PyBytes_AS_STRING(place), len(place))
                self._diverge(field, VALUE_DIFFERS | NAME_DIFFERS)
                if became is not None:
                    write_plain(out, name, became)
                return
        if became is None:
            return
        if refers & NAME_DIFFERS:
            # The four bits of the kind stay; an index of 0 says that the name is spelled out.
            out.add(b"\x40" if field.kind == INDEXING else b"\x10" if block[field.start] & 0x10 else b"\x00", 1)
            _write_string(out, <const unsigned char*>PyBytes_AS_STRING(name), len(name))
        else:
            out.add(block + field.start, field.value_start - field.start)
        if became == value:
            out.add(block + field.value_start, field.end - field.value_start)
            return
        _write_string(out, <const unsigned char*>PyBytes_AS_STRING(became), len(became))
        if field.kind == INDEXING:
            self._diverge(field, VALUE_DIFFERS)

    cdef _diverge(self, HpackField* field, int how):
        if field.added:
            if self.diverged is None:
                self.diverged = {}
            self.diverged[field.added] = how
