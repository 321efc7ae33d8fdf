FAULTS: dict[int, str]

class HpackError(ValueError):
    """A header block that RFC 7541 does not allow, or for which the table is too small: see ``FAULTS``."""

class Decoder:
    total: int
    list_size: int
    def __init__(self, limit: int = 4096) -> None: ...
    def read(self, block: bytes) -> list[tuple[bytes, bytes, int, int, int, int, int, int]]:
        """Decode a block: (name, value, kind, start, end, value_start, entry, added) of each kept field.

        ``kind`` is 0 for indexed, 1 for a literal that is added to the table, 2 for one that is not, 3 for
        one that must never be. For tests; raises ``HpackError``, after which the decoder is of no use.
        """

    def allow(self, size: int) -> None:
        """The receiver's SETTINGS_HEADER_TABLE_SIZE; see ``set_limit``."""

    def table(self) -> list[tuple[bytes, bytes]]:
        """The dynamic table, newest entry first."""

    def numbers(self) -> tuple[int, int]:
        """The numbers of the oldest live entry and of the newest."""

def integer(prefix_bits: int, high_bits: int, value: int) -> bytes:
    """What ``write_integer`` writes. For tests."""
