"""Trace headers in HTTP/2: continued in whatever form they came, with the tables of both ends in step.

``TwoTables`` follows the sender's octets with one decoder of the library ``hpack`` and the receiver's with
another, and after every block holds that the receiver's table has the sender's entries in their order.
"""

from __future__ import annotations

import random

import pytest
from hpack import Encoder, NeverIndexedHeaderTuple

from tests.unit.conversation import REQUEST_ID
from tests.unit.http2_conversation import (
    END_HEADERS,
    END_STREAM,
    GET,
    INDEXING,
    NEVER,
    PLAIN,
    Field,
    TwoTables,
    fragmented,
    headers,
    indexed,
    literal,
    opened,
    settings_frame,
    table_size,
)

TRACE = b"0af7651916cd43dd8448eb211c80319c"
PARENT = b"b7ad6b7169203331"
CAME = b"00-" + TRACE + b"-" + PARENT + b"-01"
CONTINUED = b"00-" + TRACE + b"-" + b"1" * 16 + b"-01"
UNSAMPLED = CAME[:-1] + b"0"
NEW = b"00-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01"
ID = literal(b"x-request-id", b"mine")

FORMS = [
    pytest.param(how, huffman, name, id=f"{name_of}{' huffman' * huffman}, name {spelled}")
    for how, name_of in ((INDEXING, "indexing"), (PLAIN, "plain"), (NEVER, "never"))
    for huffman in (False, True)
    for name, spelled in ((False, "plain"), (True, "huffman"))
]


def get(found: list[Field], name: bytes) -> list[bytes]:
    return [value for key, value in found if key == name]


def test_new_ids_are_literals_without_indexing() -> None:
    talk = opened(sample=1.0).downstream(headers(1, GET))
    added = literal(b"traceparent", NEW, PLAIN) + literal(b"x-request-id", REQUEST_ID, PLAIN)
    talk.to_upstream(headers(1, GET + added)).in_flight(1)


@pytest.mark.parametrize(("how", "huffman", "huffman_name"), FORMS)
def test_a_traceparent_is_replaced_in_its_place_and_form(
    how: tuple[int, int], huffman: bool, huffman_name: bool
) -> None:
    before, after = GET + literal(b"a", b"1"), literal(b"b", b"2") + ID
    came = literal(b"traceparent", CAME, how, huffman=huffman, huffman_name=huffman_name)
    gone = literal(b"traceparent", b"", how, huffman_name=huffman_name)[:-1]
    gone += literal(b"", CONTINUED)[2:]
    talk = opened(sample=1.0).downstream(headers(1, before + came + after))
    talk.to_upstream(headers(1, before + gone + after))


@pytest.mark.parametrize(("how", "huffman", "huffman_name"), FORMS)
def test_fifty_requests_with_one_traceparent_keep_the_tables_in_step(
    how: tuple[int, int], huffman: bool, huffman_name: bool
) -> None:
    tables = TwoTables()
    for i in range(50):
        if how == INDEXING and i:
            field = indexed(62 + i)  # each request adds its x-n in front of it
        else:
            field = literal(b"traceparent", CAME, how, huffman=huffman, huffman_name=huffman_name)
        found = tables.request(GET + field + literal(b"x-n", b"%d" % i, INDEXING) + ID)
        assert get(found, b"traceparent") == [CONTINUED]
        assert get(found, b"x-n") == [b"%d" % i]
    assert len(tables.differing()) == (how == INDEXING)


@pytest.mark.parametrize("huffman", [False, True])
def test_fifty_requests_of_the_hpack_encoder_each_with_its_own_trace(huffman: bool) -> None:
    tables, encoder = TwoTables(), Encoder()
    for i in range(50):
        came = b"00-%032x-%016x-01" % (i + 1, i + 1)
        sent: list[Field] = [
            (b":method", b"GET"),
            (b":path", b"/%d" % (i % 7)),
            (b"traceparent", came),
            (b"tracestate", b"a=%d" % i),
            (b"user-agent", b"me"),
            (b"x-request-id", b"%d" % i),
        ]
        found = tables.request(encoder.encode(sent, huffman=huffman))
        assert found == [
            (name, came[:36] + b"1" * 16 + b"-01" if name == b"traceparent" else value)
            for name, value in sent
        ]


def test_a_traceparent_that_the_encoder_never_indexes_stays_so() -> None:
    tables, encoder = TwoTables(), Encoder()
    for _ in range(3):
        block = encoder.encode(
            [(b":method", b"GET"), NeverIndexedHeaderTuple(b"traceparent", CAME)], huffman=False
        )
        found = tables.request(block)
        assert get(found, b"traceparent") == [CONTINUED]
        kept = [field for field in tables.receiver.lists[-1][1] if field[0] == b"traceparent"]
        assert kept == [(b"traceparent", CONTINUED)]
    assert tables.sender.table == tables.receiver.table == []


@pytest.mark.parametrize("how", [INDEXING, PLAIN, NEVER])
def test_an_unsampled_traceparent_passes(how: tuple[int, int]) -> None:
    block = (
        GET + literal(b"traceparent", UNSAMPLED, how, huffman=True) + literal(b"tracestate", b"a=1", how) + ID
    )
    opened(sample=1.0).downstream(headers(1, block)).to_upstream(headers(1, block))


def test_an_unsampled_traceparent_passes_by_its_index() -> None:
    tables = TwoTables()
    tables.request(GET + literal(b"traceparent", UNSAMPLED, INDEXING) + ID)
    tables.request(GET + indexed(62) + ID)
    assert tables.receiver.lists[0] == (1, tables.sender.lists[0][1])
    assert tables.receiver.lists[1] == (3, tables.sender.lists[1][1])
    assert tables.sender.table == tables.receiver.table


INVALID = {
    "upper case": CAME.upper(),
    "all zero": b"00-" + b"0" * 32 + b"-" + PARENT + b"-01",
    "short": CAME[:-1],
    "long": CAME + b"-00",
    "version ff": b"ff" + CAME[2:],
    "empty": b"",
    "one character": b"0",
    "garbage": b"whatever " * 20,
}


@pytest.mark.parametrize("how", [INDEXING, PLAIN, NEVER])
@pytest.mark.parametrize("came", INVALID.values(), ids=INVALID.keys())
def test_an_invalid_traceparent_counts_as_absent_and_its_tracestate_goes(
    came: bytes, how: tuple[int, int]
) -> None:
    tables = TwoTables()
    fields = literal(b"traceparent", came, how) + literal(b"tracestate", b"a=1,b=2", how)
    for _ in range(3):
        found = tables.request(GET + fields + ID)
        assert get(found, b"traceparent") == [NEW]
        assert get(found, b"tracestate") == []
    if how == INDEXING:
        # Both are in the table now: once by their indices, and once more by their names.
        for again in (
            indexed(63) + indexed(62),
            literal(63, came, INDEXING) + literal(63, b"a=1,b=2", INDEXING),
        ):
            found = tables.request(GET + again + ID)
            assert get(found, b"traceparent") == [NEW]
            assert get(found, b"tracestate") == []


@pytest.mark.parametrize("how", [INDEXING, PLAIN, NEVER])
def test_two_traceparents_count_as_none(how: tuple[int, int]) -> None:
    tables = TwoTables()
    for _ in range(3):
        found = tables.request(GET + 2 * literal(b"traceparent", CAME, how) + ID)
        assert get(found, b"traceparent") == [NEW]


@pytest.mark.parametrize("length", [1, 4, 5, 40, 300])
def test_an_entry_whose_field_goes_is_left_out_of_the_receivers_table(length: int) -> None:
    tables = TwoTables()
    state = b"?" * length  # no member has such a key
    first, last = literal(b"x-first", b"1", INDEXING), literal(b"x-last", b"2", INDEXING)
    gone = literal(b"tracestate", state, INDEXING)
    found = tables.request(GET + literal(b"traceparent", CAME) + first + gone + last + ID)
    assert get(found, b"tracestate") == []
    assert tables.receiver.table == [(b"x-last", b"2"), (b"x-first", b"1")]
    assert tables.sender.table == [(b"x-last", b"2"), (b"tracestate", state), (b"x-first", b"1")]
    # x-first has another index there, and what refers to the entry itself is nothing again.
    tables.request(GET + indexed(64) + indexed(63) + indexed(62) + ID)
    block = bytes(GET + indexed(63) + indexed(62) + ID + literal(b"traceparent", NEW))
    tables.caller.downstream(headers(5, GET + indexed(64) + indexed(62) + ID))
    assert bytes(tables.caller.to_upstream) == headers(5, block)


@pytest.mark.parametrize(
    "state", [b"?", b"a", b"A=1", b"a=1,a=2", b",".join(b"k%d=1" % i for i in range(33)), b"a=1,b="]
)
@pytest.mark.parametrize("how", [INDEXING, PLAIN, NEVER])
def test_a_tracestate_that_breaks_the_grammar_goes_while_the_traceparent_goes_on(
    state: bytes, how: tuple[int, int]
) -> None:
    tables = TwoTables()
    for i in range(4):
        field = indexed(62) if how == INDEXING and i == 3 else literal(b"tracestate", state, how)
        found = tables.request(GET + literal(b"traceparent", CAME, NEVER) + field + ID)
        assert get(found, b"traceparent") == [CONTINUED]
        assert get(found, b"tracestate") == []


def test_several_tracestates_stay_as_they_came() -> None:
    block = GET + literal(b"tracestate", b"a=1", INDEXING) + literal(b"traceparent", UNSAMPLED)
    block += literal(b"tracestate", b"b=2", NEVER) + ID
    opened(sample=1.0).downstream(headers(1, block)).to_upstream(headers(1, block))


def test_a_later_version_is_continued_as_the_one_we_know_and_keeps_its_entrys_size() -> None:
    tables = TwoTables()
    came = b"cc" + CAME[2:] + b"-what-the-future-brings"
    for field in (literal(b"traceparent", came, INDEXING), indexed(62), literal(62, came, INDEXING)):
        assert get(tables.request(GET + field + ID), b"traceparent") == [CONTINUED]


B3 = {
    "single, 128 bits": [(b"b3", TRACE + b"-" + PARENT + b"-1")],
    "single, 64 bits": [(b"b3", TRACE[:16] + b"-" + PARENT + b"-1")],
    "single, debug": [(b"b3", TRACE + b"-" + PARENT + b"-d")],
    "single, with parent": [(b"b3", TRACE + b"-" + PARENT + b"-1-" + PARENT)],
    "single, undecided": [(b"b3", TRACE + b"-" + PARENT)],
    "single, not sampled": [(b"b3", TRACE + b"-" + PARENT + b"-0")],
    "decision alone: no": [(b"b3", b"0")],
    "decision alone: yes": [(b"b3", b"1")],
    "decision alone: debug": [(b"b3", b"d")],
    "nothing": [(b"b3", b"")],
    "one character": [(b"b3", b"x")],
    "seven characters": [(b"b3", b"garbage")],
    "eight characters": [(b"b3", b"garbages")],
    "long": [(b"b3", b"g" * 200)],
    "several": [
        (b"x-b3-traceid", TRACE),
        (b"x-b3-spanid", PARENT),
        (b"x-b3-parentspanid", PARENT),
        (b"x-b3-sampled", b"1"),
        (b"x-b3-flags", b"1"),
    ],
    "several, 64 bits": [(b"x-b3-traceid", TRACE[:16]), (b"x-b3-spanid", PARENT), (b"x-b3-sampled", b"true")],
    "several, not sampled": [(b"x-b3-traceid", TRACE), (b"x-b3-spanid", PARENT), (b"x-b3-sampled", b"0")],
    "several, flags without": [(b"x-b3-flags", b"0"), (b"x-b3-sampled", b"false")],
    "both": [(b"b3", TRACE + b"-" + PARENT + b"-1"), (b"x-b3-traceid", TRACE), (b"x-b3-spanid", b"?")],
    "with w3c": [(b"traceparent", CAME), (b"b3", TRACE + b"-" + PARENT + b"-1")],
    "with w3c, debug": [(b"traceparent", CAME), (b"b3", b"d")],
    "with w3c, unsampled": [(b"traceparent", UNSAMPLED), (b"b3", b"1"), (b"x-b3-flags", b"1")],
}


def meaning(tables: TwoTables, fields: list[Field], how: tuple[int, int]) -> dict[bytes, list[bytes]]:
    """What upstream reads of trace headers that come in this form."""
    found = tables.request(GET + b"".join(literal(name, value, how) for name, value in fields) + ID)
    return read(found)


def read(found: list[Field]) -> dict[bytes, list[bytes]]:
    told: dict[bytes, list[bytes]] = {}
    for name, value in found:
        if name in (b"traceparent", b"tracestate", b"b3") or name.startswith(b"x-b3-"):
            told.setdefault(name, []).append(value)
    return told


@pytest.mark.parametrize("came", B3.keys())
def test_b3_reads_the_same_at_the_other_end_whatever_form_it_came_in(came: str) -> None:
    plain = meaning(TwoTables(), B3[came], PLAIN)
    assert meaning(TwoTables(), B3[came], NEVER) == plain
    tables = TwoTables()
    added = meaning(tables, B3[came], INDEXING)
    assert added == plain
    # By their indices, which are literals at the other end where the entries differ; then by their names.
    count = len(B3[came])
    by_index = b"".join(indexed(61 + count - i) for i in range(count))
    assert read(tables.request(GET + by_index + ID)) == plain
    for how in (PLAIN, NEVER):
        by_name = b"".join(literal(61 + count - i, value, how) for i, (_, value) in enumerate(B3[came]))
        assert read(tables.request(GET + by_name + ID)) == plain
    for _ in range(3):
        # Each adds an entry, so the oldest of the last ``count`` is always at the same index.
        by_name = b"".join(literal(61 + count, value, INDEXING) for _, value in B3[came])
        assert read(tables.request(GET + by_name + ID)) == added


def test_a_short_b3_becomes_a_whole_one_that_is_not_indexed() -> None:
    traceparent = literal(b"traceparent", CAME)
    block = GET + traceparent + literal(b"b3", b"0", INDEXING) + ID
    talk = opened(sample=1.0).downstream(headers(1, block))
    whole = literal(b"b3", TRACE + b"-" + b"1" * 16 + b"-1-" + PARENT, PLAIN)
    talk.to_upstream(headers(1, GET + literal(b"traceparent", CONTINUED) + whole + ID))


def test_a_name_reference_to_an_entry_that_was_left_out_is_spelled_out_and_keeps_its_kind() -> None:
    tables = TwoTables()
    b3 = TRACE + b"-" + PARENT + b"-1"
    assert b"b3" in read(tables.request(GET + literal(b"b3", b3, INDEXING) + ID))
    assert tables.receiver.table == []
    for how in (INDEXING, PLAIN, NEVER):
        told = read(tables.request(GET + literal(62, b3, how) + ID))
        assert told[b"b3"] == [TRACE + b"-" + b"1" * 16 + b"-1-" + PARENT]


def test_an_entry_larger_than_the_table_empties_both_tables() -> None:
    tables = TwoTables()
    tables.request(GET + literal(b"traceparent", CAME, INDEXING) + literal(b"a", b"b", INDEXING) + ID)
    assert len(tables.sender.table) == 2
    tables.request(table_size(80) + GET + literal(b"x", b"y", INDEXING) + ID)
    found = tables.request(GET + literal(b"traceparent", CAME, INDEXING) + ID)
    assert get(found, b"traceparent") == [CONTINUED]
    assert tables.sender.table == tables.receiver.table == []


def test_an_invalid_tracestate_larger_than_the_table_leaves_old_entries_to_the_receiver() -> None:
    tables = TwoTables()
    tables.request(GET + literal(b"traceparent", CAME, INDEXING) + ID)
    tables.request(GET + literal(b"tracestate", b"?" * 5000, INDEXING) + ID)
    assert tables.sender.table == []
    assert tables.receiver.table == [(b"traceparent", CONTINUED)]
    # They are older than any that the sender has, so they have no part in its indices.
    tables.request(GET + literal(b"x", b"y", INDEXING) + ID)
    assert get(tables.request(GET + indexed(62) + ID), b"x") == [b"y"]


def test_entries_that_differ_are_forgotten_when_they_are_evicted() -> None:
    tables = TwoTables()
    tables.request(GET + literal(b"traceparent", CAME, INDEXING) + ID)
    assert len(tables.differing()) == 1
    tables.request(table_size(0) + table_size(4096) + GET + ID)
    assert tables.sender.table == []
    # What has its index now is another entry, and an index that refers to it passes.
    tables.request(GET + literal(b"traceparent", UNSAMPLED, INDEXING) + ID)
    block = GET + indexed(62) + ID
    tables.caller.downstream(headers(7, block))
    assert bytes(tables.caller.to_upstream) == headers(7, block)


def test_an_entry_is_evicted_by_the_very_field_that_takes_its_name() -> None:
    tables = TwoTables()
    tables.request(table_size(130) + GET + literal(b"traceparent", CAME, INDEXING) + ID)
    for _ in range(5):
        found = tables.request(GET + literal(62, CAME, INDEXING) + ID)
        assert get(found, b"traceparent") == [CONTINUED]
    b3 = TRACE + b"-" + PARENT + b"-1"
    tables.request(GET + literal(b"b3", b3, INDEXING) + ID)
    for _ in range(5):
        assert b"b3" in read(tables.request(GET + literal(62, b3, INDEXING) + ID))


def test_a_larger_table_that_upstream_allowed_is_followed() -> None:
    tables = TwoTables()
    tables.caller.upstream(settings_frame((1, 16384)))
    tables.request(table_size(16384) + GET + ID)
    for i in range(100):
        tables.request(
            GET + literal(b"traceparent", CAME, INDEXING) + literal(b"x-n", b"%d" % i, INDEXING) + ID
        )
    assert len(tables.sender.table) > 100


def test_trailers_that_refer_to_an_entry_that_differs_say_what_their_sender_said() -> None:
    tables = TwoTables()
    b3 = TRACE + b"-" + PARENT + b"-1"
    tables.request(
        GET + literal(b"b3", b3, INDEXING) + literal(b"traceparent", CAME, INDEXING) + ID, END_HEADERS
    )
    said = indexed(63) + indexed(62) + literal(63, b"other", INDEXING) + literal(b"x", b"y", INDEXING)
    found = tables.say(headers(1, said))
    assert found == [(b"b3", b3), (b"traceparent", CAME), (b"b3", b"other"), (b"x", b"y")]
    found = tables.request(GET + literal(62, b"z", INDEXING) + indexed(64) + ID)
    assert get(found, b"x") == [b"z"]


def test_trailers_of_a_stream_that_is_over_keep_the_tables_in_step() -> None:
    tables = TwoTables()
    b3 = TRACE + b"-" + PARENT + b"-1"
    tables.request(GET + literal(b"b3", b3, INDEXING) + ID, END_HEADERS)
    tables.caller.upstream(headers(1, indexed(8)) + b"\0\0\4\3\0\0\0\0\1\0\0\0\0")
    assert len(tables.caller.exchanges) == 1
    for _ in range(3):
        assert tables.say(headers(1, literal(62, b3, INDEXING))) == [(b"b3", b3)]


def test_a_refused_request_that_refers_to_an_entry_that_differs_keeps_the_tables_in_step() -> None:
    tables = TwoTables()
    b3 = TRACE + b"-" + PARENT + b"-1"
    tables.request(GET + literal(b"b3", b3, INDEXING) + ID)
    many = b"".join(literal(b"x-%d" % i, b"") for i in range(101))
    assert tables.request(GET + literal(62, b3, INDEXING) + many) == []
    assert tables.caller.exceeded == [("header_list", "downstream")]
    tables.caller.to_downstream.clear()
    assert b"b3" in read(tables.request(GET + literal(62, b3, INDEXING) + ID))
    # So many fields that not all of them are kept, and the one that refers to the entry comes last.
    assert tables.request(GET + many + many + literal(62, b3, INDEXING)) == []
    assert b"b3" in read(tables.request(GET + literal(62, b3, INDEXING) + indexed(63) + ID))


def test_a_changed_head_that_came_in_fragments_keeps_the_tables_in_step() -> None:
    tables = TwoTables()
    for i in range(10):
        block = (
            GET
            + literal(b"traceparent", CAME, INDEXING, huffman=True)
            + literal(b"b3", b"%050d" % i, INDEXING)
        )
        tables.stream += 2
        found = tables.say(fragmented(tables.stream, block, 3))
        assert get(found, b"traceparent") == [CONTINUED]


@pytest.mark.parametrize("seed", range(12))
def test_long_conversations_of_all_forms_keep_the_tables_in_step(seed: int) -> None:
    """Trace headers and others in every form, references by index and by name, and sizes that change."""
    chance = random.Random(seed)
    tables = TwoTables(sample=0.5)
    values: dict[bytes, list[bytes]] = {
        b"traceparent": [CAME, UNSAMPLED, CAME[:-1], b"cc" + CAME[2:] + b"-x", b""],
        b"tracestate": [b"a=1", b"?", b"", b"a=1," + b"b" * 40],
        b"b3": [value for pairs in B3.values() for name, value in pairs if name == b"b3"],
        b"x-b3-traceid": [TRACE, TRACE[:16], b"?"],
        b"x-b3-spanid": [PARENT, b"?"],
        b"x-b3-flags": [b"1", b"0"],
        b"x-other": [b"", b"1", b"z" * 300],
    }
    differed = 0
    for _ in range(60):
        table, block = tables.sender.table, GET
        if chance.random() < 0.1:
            table, block = [], table_size(0) + table_size(chance.choice([60, 300, 1000, 4096])) + GET
        for _ in range(chance.randrange(8)):
            if table and chance.random() < 0.5:
                at = chance.randrange(len(table))
                if chance.random() < 0.5:
                    block += indexed(62 + at)
                    continue
                name: bytes | int = 62 + at
                value = chance.choice(values[table[at][0]])
            else:
                name = chance.choice(list(values))
                value = chance.choice(values[name])
            how = chance.choice([INDEXING, INDEXING, PLAIN, NEVER])
            block += literal(name, value, how, huffman=chance.random() < 0.5)
            if how == INDEXING:
                table = []  # an entry that is added moves the others, and may evict some
        found = tables.request(block, chance.choice([END_HEADERS, END_HEADERS | END_STREAM]))
        assert get(found, b"x-other") == get(tables.sender.lists[-1][1], b"x-other")
        assert len(get(found, b"traceparent")) == 1
        differed += len(tables.differing())
    assert differed
