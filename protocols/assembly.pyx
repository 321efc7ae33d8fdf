"""Bytes on their way out, put together from pieces in one buffer that is kept and grows as needed."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.string cimport memcpy

cdef enum:
    KEPT_ROOM = 1024 * 1024  # four times what is read at once


cdef class Assembly:
    cdef int add(self, const void* piece, Py_ssize_t n) except -1:
        if n < 0:
            raise ValueError("a piece of less than nothing")
        if n == 0:
            return 0  # to copy nothing from nowhere is undefined all the same
        memcpy(self.reserve(n), piece, n)
        self.length += n
        return 0

    cdef bytes take(self):
        """What was put together, and an empty buffer again: one that grew large is given back."""
        cdef bytes all = PyBytes_FromStringAndSize(self.bytes, self.length)
        self.length = 0
        if self.room > KEPT_ROOM:
            PyMem_Free(self.bytes)
            self.bytes = NULL
            self.room = 0
        return all

    cdef bytes passed(self, bytes whole, const unsigned char* p, Py_ssize_t copied, Py_ssize_t position):
        """What goes on of the bytes at ``p`` up to ``position``: what was put together, and behind it all from
        ``copied``. Where nothing was, they go on untouched: as ``whole``, the object that they came in, or a copy.
        """
        if self.length == 0 and copied == 0:
            return p[:position] if whole is None else whole
        self.add(p + copied, position - copied)
        return self.take()

    cdef int add_line(self, const char* name, bytes value) except -1:
        self.add(name, len(name))
        self.add(PyBytes_AS_STRING(value), len(value))
        return self.add(b"\r\n", 2)

    cdef char* reserve(self, Py_ssize_t n) except NULL:
        """Where the next ``n`` bytes go, for a writer of many small pieces; it says in ``length`` how far it came."""
        cdef Py_ssize_t room
        cdef void* grown
        if self.length + n > self.room:
            room = max(2 * self.room, self.length + n, 16 * 1024)
            grown = PyMem_Realloc(self.bytes, room)
            if grown == NULL:
                raise MemoryError
            self.bytes = <char*>grown
            self.room = room
        return self.bytes + self.length

    def __dealloc__(self):
        PyMem_Free(self.bytes)
