"""The HPACK decoder against the examples of RFC 7541 and, by random blocks, against the library ``hpack``.

Beside what a block says, they hold where it says so: the fields tile the block, a piece cut out at a field's
edges says the same again, and the numbers of entries name the entries that were added under them. ARCA and
``hpack`` accept and refuse the same; they differ only above the 64 KiB that ARCA's table holds, which no
block here asks for where both are compared.
"""

from __future__ import annotations

import random
import sys
from functools import cache
from typing import Final, NamedTuple

import hpack
import pytest
from hpack.hpack import decode_integer
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocols.hpack import FAULTS, Decoder, HpackError, integer

INDEXED, INDEXING, PLAIN, NEVER = range(4)
# Of each kind of literal: the bits above its name's index, and how many bits that begins with (section 6.2).
LITERALS: Final = {INDEXING: (0x40, 6), PLAIN: (0x00, 4), NEVER: (0x10, 4)}
STATIC_ENTRIES = 61
MAX_KEPT = 110
MAX_TEXTS = 64 * 1024

huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)

Pair = tuple[bytes, bytes]


class Field(NamedTuple):
    name: bytes
    value: bytes
    kind: int
    start: int
    end: int
    value_start: int
    entry: int
    added: int


def read(decoder: Decoder, block: bytes) -> list[Field]:
    return [Field(*field) for field in decoder.read(block)]


def pairs(decoder: Decoder, block: bytes) -> list[Pair]:
    return [(field.name, field.value) for field in read(decoder, block)]


@cache  # for hpack is slow to write large texts
def string(text: bytes, coded: bool = False) -> bytes:
    if coded:
        code = huffman.encode(text)
        return integer(7, 0x80, len(code)) + code
    return integer(7, 0, len(text)) + text


def literal(kind: int, name: int | bytes, value: bytes, coded: tuple[bool, bool] = (False, False)) -> bytes:
    high_bits, prefix_bits = LITERALS[kind]
    if isinstance(name, int):
        return integer(prefix_bits, high_bits, name) + string(value, coded[1])
    return bytes([high_bits]) + string(name, coded[0]) + string(value, coded[1])


def indexed(index: int) -> bytes:
    return integer(7, 0x80, index)


def size_update(size: int) -> bytes:
    return integer(5, 0x20, size)


def fault_of(block: bytes, decoder: Decoder | None = None) -> str | None:
    try:
        (decoder or Decoder()).read(block)
    except HpackError as error:
        return str(error)
    return None


def fault_named(words: str) -> str:
    """The one fault that says these words."""
    (fault,) = (fault for fault in FAULTS.values() if words in fault)
    return fault


# RFC 7541 Appendix C

HOST = (b":authority", b"www.example.com")
NO_CACHE = (b"cache-control", b"no-cache")
CUSTOM = (b"custom-key", b"custom-value")
REQUESTS: list[tuple[list[Pair], list[Pair]]] = [
    ([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), HOST], [HOST]),
    ([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), HOST, NO_CACHE], [NO_CACHE, HOST]),
    (
        [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/index.html"), HOST, CUSTOM],
        [CUSTOM, NO_CACHE, HOST],
    ),
]
FOUND, MOVED = (b":status", b"302"), (b":status", b"307")
PRIVATE = (b"cache-control", b"private")
DATE_1, DATE_2 = ((b"date", b"Mon, 21 Oct 2013 20:13:%d GMT" % second) for second in (21, 22))
LOCATION = (b"location", b"https://www.example.com")
GZIP = (b"content-encoding", b"gzip")
COOKIE = (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1")
RESPONSES: list[tuple[list[Pair], list[Pair]]] = [
    ([FOUND, PRIVATE, DATE_1, LOCATION], [LOCATION, DATE_1, PRIVATE, FOUND]),
    ([MOVED, PRIVATE, DATE_1, LOCATION], [MOVED, LOCATION, DATE_1, PRIVATE]),
    ([(b":status", b"200"), PRIVATE, DATE_2, LOCATION, GZIP, COOKIE], [COOKIE, GZIP, DATE_2]),
]


@pytest.mark.parametrize(
    ("block", "field", "kind", "table"),
    [
        (  # C.2.1
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            (b"custom-key", b"custom-header"),
            INDEXING,
            [(b"custom-key", b"custom-header")],
        ),
        ("040c 2f73 616d 706c 652f 7061 7468", (b":path", b"/sample/path"), PLAIN, []),  # C.2.2
        ("1008 7061 7373 776f 7264 0673 6563 7265 74", (b"password", b"secret"), NEVER, []),  # C.2.3
        ("82", (b":method", b"GET"), INDEXED, []),  # C.2.4
    ],
)
def test_rfc_7541_c_2_header_field_representations(
    block: str, field: Pair, kind: int, table: list[Pair]
) -> None:
    decoder = Decoder()
    (only,) = read(decoder, bytes.fromhex(block))
    assert (only.name, only.value) == field
    assert only.kind == kind
    assert decoder.table() == table


@pytest.mark.parametrize(
    ("table_size", "expected", "blocks"),
    [
        pytest.param(
            4096,
            REQUESTS,
            [
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                "8286 84be 5808 6e6f 2d63 6163 6865",
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
            ],
            id="C.3 requests without Huffman coding",
        ),
        pytest.param(
            4096,
            REQUESTS,
            [
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                "8286 84be 5886 a8eb 1064 9cbf",
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
            ],
            id="C.4 requests with Huffman coding",
        ),
        pytest.param(
            256,
            RESPONSES,
            [
                "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a"
                "3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                "4803 3330 37c1 c0bf",
                "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04"
                "677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49"
                "553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
            ],
            id="C.5 responses without Huffman coding",
        ),
        pytest.param(
            256,
            RESPONSES,
            [
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e"
                "919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                "4883 640e ffc1 c0bf",
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7"
                "821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed"
                "4ee5 b106 3d50 07",
            ],
            id="C.6 responses with Huffman coding",
        ),
    ],
)
def test_rfc_7541_c_3_to_c_6_examples(
    table_size: int, expected: list[tuple[list[Pair], list[Pair]]], blocks: list[str]
) -> None:
    decoder = Decoder()
    # The examples have the size from SETTINGS; an encoder says so in the first block (section 4.2).
    assert read(decoder, size_update(table_size)) == []
    for block, (fields, table) in zip(blocks, expected, strict=True):
        assert pairs(decoder, bytes.fromhex(block)) == fields
        assert decoder.table() == table


@pytest.mark.parametrize(
    ("prefix_bits", "value", "octets"), [(5, 10, "0a"), (5, 1337, "1f9a0a"), (8, 42, "2a")]
)
def test_rfc_7541_c_1_integers_are_written(prefix_bits: int, value: int, octets: str) -> None:
    assert integer(prefix_bits, 0, value) == bytes.fromhex(octets)


# Against hpack


class Both:
    """ARCA's decoder and the library's, given the same blocks."""

    def __init__(self, limit: int = 4096) -> None:
        self.arca = Decoder(limit)
        # Not a list too long, which ARCA leaves to the caller.
        self.oracle = hpack.Decoder(max_header_list_size=sys.maxsize)
        self.oracle.max_allowed_table_size = max(limit, 4096)
        self.apart = Decoder(limit)  # gets each field as a block of its own
        self.ever: list[Pair] = []  # every entry there was; number 1 is the first

    @property
    def table(self) -> list[Pair]:
        return [(bytes(name), bytes(value)) for name, value in self.oracle.header_table.dynamic_entries]

    def block(self, block: bytes) -> bool:
        """Whether both accept the block, with equal results; False when both refuse it."""
        try:
            expected = [(bytes(name), bytes(value)) for name, value in self.oracle.decode(block, raw=True)]
        except hpack.HPACKError:
            expected = None
        oldest_before, _ = self.arca.numbers()
        if expected is None:
            with pytest.raises(HpackError):
                self.arca.read(block)
            return False
        fields = read(self.arca, block)
        assert self.arca.total == len(expected)
        assert self.arca.list_size == sum(len(name) + len(value) for name, value in expected)
        assert [(field.name, field.value) for field in fields] == expected[: len(fields)]
        assert len(fields) == len(expected) or len(fields) == MAX_KEPT or self.arca.list_size > MAX_TEXTS
        self._places(block, fields, len(expected), oldest_before)
        assert self.arca.table() == self.table
        if len(fields) == len(expected):
            assert self.apart.table() == self.table
        return True

    def _places(self, block: bytes, fields: list[Field], total: int, oldest_before: int) -> None:
        if total and not fields:
            return
        position = fields[0].start if fields else len(block)
        updates = Decoder(sys.maxsize)
        assert updates.read(block[:position]) == []
        assert updates.total == 0
        self.apart.read(block[:position])
        for field in fields:
            assert field.start == position
            position = field.end
            assert field.start < field.value_start <= field.end
            (again,) = read(self.apart, block[field.start : field.end])
            assert again == field._replace(
                start=0, end=field.end - field.start, value_start=field.value_start - field.start
            )
            if field.kind == INDEXED:
                assert field.value_start == field.end
            else:
                value = b"\x00\x01n" + block[field.value_start : field.end]
                assert pairs(Decoder(), value) == [(b"n", field.value)]
            if field.entry:
                assert oldest_before <= field.entry <= len(self.ever)
                name, text = self.ever[field.entry - 1]
                assert field.name == name
                assert field.kind != INDEXED or field.value == text
            if field.added:
                assert field.kind == INDEXING
                self.ever.append((field.name, field.value))
                assert field.added == len(self.ever)
        if len(fields) == total:
            assert position == len(block)
            oldest, newest = self.arca.numbers()
            assert newest == len(self.ever)
            assert self.ever[oldest - 1 :][::-1] == self.table


names = st.sampled_from(
    [b":path", b"cookie", b"x-request-id", b"grpc-timeout", b"te", b"x", b""]
) | st.binary(max_size=40)
values = (
    st.binary(max_size=60) | st.text("abcdefghij/-0123", max_size=90).map(str.encode) | st.just(b"v" * 700)
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(names, values, st.booleans()), max_size=12),
            st.booleans(),
            st.none() | st.sampled_from([0, 50, 256, 1024, 4096]),
        ),
        max_size=12,
    )
)
def test_blocks_of_another_encoder_say_the_same(
    blocks: list[tuple[list[tuple[bytes, bytes, bool]], bool, int | None]],
) -> None:
    encoder = hpack.Encoder()
    both = Both()
    for fields, coded, size in blocks:
        if size is not None:
            encoder.header_table_size = size
        assert both.block(encoder.encode(fields, huffman=coded))
        assert both.arca.table() == [
            (bytes(name), bytes(value)) for name, value in encoder.header_table.dynamic_entries
        ]


# (kind, which index, name or None for that index, value, which of both are Huffman-coded)
representations = st.lists(
    st.tuples(
        st.sampled_from([INDEXED, INDEXING, INDEXING, PLAIN, NEVER]),
        st.integers(0, 500),
        st.none() | names,
        values,
        st.tuples(st.booleans(), st.booleans()),
    ),
    max_size=14,
)
Representation = tuple[int, int, bytes | None, bytes, tuple[bool, bool]]


def written(both: Both, updates: list[int], fields: list[Representation]) -> bytes:
    """The block that says this to a decoder with this table; any number becomes an index that is there."""
    block = b"".join(size_update(size) for size in updates)
    model = HeaderTable()
    model.maxsize = both.oracle.header_table.maxsize
    for entry in reversed(both.table):
        model.add(*entry)
    for size in updates:
        model.maxsize = size
    for kind, number, name, value, coded in fields:
        # Half of the numbers for the dynamic table, if there is any.
        live = len(model.dynamic_entries)
        index = (
            STATIC_ENTRIES + 1 + number // 2 % live if live and number % 2 else 1 + number % STATIC_ENTRIES
        )
        if kind == INDEXED:
            block += indexed(index)
            continue
        block += literal(kind, index if name is None else name, value, coded)
        if kind == INDEXING:
            model.add(model.get_by_index(index)[0] if name is None else name, value)
    return block


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([4096, 65536]),
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([0, 40, 90, 300, 800, 4096]), max_size=2),
            representations,
        ),
        max_size=10,
    ),
)
def test_any_mix_of_representations_says_the_same(
    limit: int, blocks: list[tuple[list[int], list[Representation]]]
) -> None:
    both = Both(limit)
    for updates, fields in blocks:
        assert both.block(written(both, updates, fields))


def mutated(block: bytes, edits: list[tuple[int, int, int]]) -> bytes:
    """With octets replaced, put in or taken out at some places."""
    octets = bytearray(block)
    for how, where, octet in edits:
        at = where % (len(octets) + 1)
        match how:
            case 0:
                octets[at : at + 1] = bytes([octet])
            case 1:
                octets.insert(at, octet)
            case 2:
                del octets[at : at + 1]
            case _:
                octets[at : at + 1] = bytes([octets[at] ^ (1 << octet % 8)]) if at < len(octets) else b""
    return bytes(octets)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(representations, max_size=3),
    representations,
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_what_one_refuses_of_mutated_blocks_the_other_refuses(
    before: list[list[Representation]], fields: list[Representation], edits: list[tuple[int, int, int]]
) -> None:
    both = Both()
    for block in before:
        assert both.block(written(both, [], block))
    both.block(mutated(written(both, [], fields), edits))


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=60))
@example(b"\x3f\xe1\x9f\x80\x80\x00")
@example(b"\x3f\xe1\x1f\x80\x80\x80\x80\x00")
@example(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
@example(b"\x00\x01a\x7f\xff\xff\xff\xff\xff\x7f")
def test_what_one_refuses_of_random_bytes_the_other_refuses(block: bytes) -> None:
    Both().block(block)


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=12) | st.lists(st.sampled_from(b"\xff\xfe\x7f\x00\xf8"), max_size=12).map(bytes))
@example(b"\xff\xff\xff\xff")
@example(b"\x1f\xff")
@example(b"\x1f\xff\xff")
@example(b"\x18")
@example(b"\xff\xff\xff\xfc")
def test_what_one_refuses_of_huffman_code_the_other_refuses(code: bytes) -> None:
    Both().block(b"\x00\x01n" + integer(7, 0x80, len(code)) + code)


def test_every_symbol_of_the_huffman_code_is_read_at_every_bit() -> None:
    octets = bytes(range(256))
    for shift in range(8):
        # '0' has 5 bits, so that eight of them bring each symbol to each place in an octet.
        text = b"0" * shift + octets + b"".join(bytes([octet, 48]) for octet in octets)
        assert pairs(Decoder(), literal(PLAIN, b"n", text, (False, True))) == [(b"n", text)]


# Bounds


def test_one_byte_references_to_a_large_entry_are_counted_but_not_kept() -> None:
    decoder = Decoder()
    value = b"v" * 4000
    decoder.read(literal(INDEXING, b"x", value))
    fields = read(decoder, indexed(62) * 50_000 + b"\x82")
    assert [(field.name, field.value) for field in fields] == [(b"x", value)] * (MAX_TEXTS // 4001)
    assert decoder.total == 50_001
    assert decoder.list_size == 50_000 * 4001 + len(b":methodGET")
    # The next block is read as ever.
    assert pairs(decoder, b"\x82\xbe") == [(b":method", b"GET"), (b"x", value)]


def test_more_fields_than_are_kept_are_counted_and_still_fill_the_table() -> None:
    both = Both()
    block = b"\x82" * MAX_KEPT + literal(INDEXING, b"name", b"value", (True, True)) + b"\xbe" + b"\x84" * 500
    assert both.block(block)
    assert both.arca.total == MAX_KEPT + 502
    assert both.arca.table() == [(b"name", b"value")]


def test_texts_beyond_what_is_kept_are_counted_and_still_fill_the_table() -> None:
    both = Both(MAX_TEXTS)
    large = b"l" * 30_000
    assert both.block(size_update(MAX_TEXTS))
    for coded in (False, True):
        block = b"".join(literal(PLAIN, b"large%d" % i, large, (coded, coded)) for i in range(5))
        assert both.block(
            block + literal(INDEXING, b"name", large, (coded, coded)) + literal(INDEXING, 62, b"v")
        )
        assert both.arca.total == 7
        assert both.arca.table()[:2] == [(b"name", b"v"), (b"name", large)]


@pytest.mark.parametrize("coded", [False, True])
def test_texts_larger_than_all_that_is_kept_are_counted(coded: bool) -> None:
    both = Both()
    huge = b"h" * 70_000
    for kind in (PLAIN, NEVER, INDEXING):
        assert both.block(
            literal(kind, huge, huge, (coded, coded)) + literal(kind, b"n", huge, (coded, coded))
        )
        assert both.arca.list_size == 210_001
        assert both.arca.table() == []


def test_entries_that_share_a_large_name_outlive_the_one_that_brought_it() -> None:
    both = Both(MAX_TEXTS)
    name = b"n" * 20_000
    block = size_update(MAX_TEXTS) + literal(INDEXING, name, b"0")
    block += b"".join(literal(INDEXING, 62, b"%d" % i) for i in range(1, 2000))
    assert both.block(block)
    assert both.arca.total == 2000
    assert both.arca.table() == [(name, b"1999"), (name, b"1998"), (name, b"1997")]


def test_the_text_of_a_kept_field_outlives_its_entry_within_the_block() -> None:
    decoder = Decoder()
    decoder.read(literal(INDEXING, b"name", b"value"))
    block = indexed(62) + literal(PLAIN, 62, b"x") + literal(INDEXING, 62, b"w" * 4050)
    fields = read(decoder, block)
    assert [(field.name, field.value) for field in fields] == [
        (b"name", b"value"),
        (b"name", b"x"),
        (b"name", b"w" * 4050),
    ]
    assert [(field.entry, field.added) for field in fields] == [(1, 0), (1, 0), (1, 2)]
    assert decoder.numbers() == (2, 2)


def test_an_entry_larger_than_the_table_empties_it_and_has_no_number() -> None:
    decoder = Decoder()
    decoder.read(literal(INDEXING, b"name", b"value"))
    (field,) = read(decoder, literal(INDEXING, 62, b"v" * 4096))
    assert (field.name, field.entry, field.added) == (b"name", 1, 0)
    assert decoder.table() == []
    assert decoder.numbers() == (2, 1)


def test_a_table_of_64_kib_is_held_and_a_larger_one_is_not() -> None:
    decoder = Decoder(2**20)
    entry = literal(INDEXING, b"n", b"v" * (1024 - 33))
    assert fault_of(size_update(2**20) + entry * 64, decoder) is None
    assert len(decoder.table()) == 64
    assert fault_of(literal(INDEXING, b"", b""), decoder) == fault_named("would hold more")
    # A large size alone does no harm; nor does an entry that is too large to be there at all.
    decoder = Decoder(2**20)
    assert fault_of(size_update(2**20) + entry, decoder) is None
    assert fault_of(literal(INDEXING, b"n", b"v" * 2**20), decoder) is None
    assert decoder.table() == []
    assert fault_of(literal(INDEXING, b"n", b"v" * 2**18), decoder) == fault_named("would hold more")


def test_a_fresh_decoder_is_small() -> None:
    assert sys.getsizeof(Decoder()) < 128


# Refusals


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("00016180", None),  # an empty string, said to be Huffman-coded
        ("80", "not there"),  # index 0 is none (section 6.1)
        ("be", "not there"),
        ("7e0161", "not there"),
        ("0f2f0161", "not there"),
        ("ffffffffff7f", "2^31"),
        ("ff8080808008", "2^31"),
        ("ff808080808000", "2^31"),
        ("00017affffffffff0f", "2^31"),
        ("8220", "after the first field"),
        ("3fe21f", "above the size"),
        ("00016181ff", "Huffman"),  # padding of 8 bits
        ("00016181fe", "Huffman"),  # a code that is not complete
        ("00016182ffff", "Huffman"),
        ("00016184ffffffff", "Huffman"),  # EOS
        ("0001618507ffffffff", "Huffman"),
        ("000161821fff", "Huffman"),  # padding of more than 7 bits
        ("000161811f", None),  # "a", padded
        ("0001618118", "Huffman"),  # padded by zeros
    ],
)
def test_what_rfc_7541_does_not_allow_is_a_fault(block: str, words: str | None) -> None:
    assert fault_of(bytes.fromhex(block)) == (fault_named(words) if words else None)


def test_a_size_update_may_go_up_to_the_largest_size_that_was_ever_allowed() -> None:
    decoder = Decoder()
    decoder.allow(8192)
    decoder.allow(100)
    assert fault_of(size_update(8192), decoder) is None
    assert fault_of(size_update(8193), decoder) == fault_named("above the size")


@settings(max_examples=100, deadline=None)
@given(representations)
def test_a_block_cut_within_a_field_is_a_fault(fields: list[Representation]) -> None:
    both = Both()
    block = written(both, [], fields)
    complete = read(Decoder(), block)
    edges = {0} | {field.end for field in complete}
    for n in range(len(block) + 1):
        if n in edges:
            assert read(Decoder(), block[:n]) == [field for field in complete if field.end <= n]
        else:
            assert fault_of(block[:n]) == fault_named("ends within")


@given(st.integers(1, 8), st.integers(0, 2**31 - 1) | st.integers(0, 300))
def test_written_integers_are_read_by_another(prefix_bits: int, value: int) -> None:
    octets = integer(prefix_bits, 0, value)
    assert decode_integer(octets, prefix_bits) == (value, len(octets))


def test_many_decoders_do_not_mix() -> None:
    rng = random.Random(7541)
    decoders = [Both() for _ in range(20)]
    for i in range(400):
        both = rng.choice(decoders)
        live = len(both.table)
        block = literal(INDEXING, b"n%d" % i, b"v" * rng.randrange(300), (True, True))
        if live:
            block += indexed(STATIC_ENTRIES + 1 + rng.randrange(live))
        assert both.block(block)
