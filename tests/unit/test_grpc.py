"""What gRPC says in fields, prefixes and trailer frames, in whatever pieces it comes."""

from __future__ import annotations

import base64
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.grpc import (
    ContentType,
    WebMessages,
    content_type_of,
    messages_begun,
    percent_decoded,
    status_name,
    status_of,
    timeout_seconds,
)
from protocols.http2_codes import ErrorCode, error_name

TRAILERS = b"grpc-status: 14\r\nGRPC-Message:  no%20route \r\nx-more: 1\r\n"


def frame(payload: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(payload)) + payload


def in_two(data: bytes) -> list[tuple[bytes, bytes]]:
    return [(data[:cut], data[cut:]) for cut in range(len(data) + 1)]


def cut_at(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


def read(pieces: list[bytes], *, text: bool = False) -> WebMessages:
    web = WebMessages(text)
    assert sum(web.feed(piece) for piece in pieces) == web.count
    return web


def said(web: WebMessages) -> tuple[int, bool, int, bytes | None]:
    return web.count, web.compressed, web.status, web.message


# -- fields


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"application/grpc", ContentType.RPC),
        (b"application/grpc+proto", ContentType.RPC),
        (b"Application/GRPC+json", ContentType.RPC),
        (b"application/grpc;charset=utf-8", ContentType.RPC),
        (b"application/grpc ; a=b", ContentType.RPC),
        (b"application/grpc-web", ContentType.WEB),
        (b"application/grpc-web+proto", ContentType.WEB),
        (b"application/gRPC-Web;a=b", ContentType.WEB),
        (b"application/grpc-web-text", ContentType.WEB_TEXT),
        (b"application/grpc-web-TEXT+proto", ContentType.WEB_TEXT),
        (b"application/grpc-web-text; a=b", ContentType.WEB_TEXT),
        (b"application/grpcfoo", ContentType.OTHER),
        (b"application/grpc-foo", ContentType.OTHER),
        (b"application/grpc-we", ContentType.OTHER),
        (b"application/grpc-webfoo", ContentType.OTHER),
        (b"application/grpc-web-tex", ContentType.OTHER),
        (b"application/grpc-web-textual", ContentType.OTHER),
        (b"application/grp", ContentType.OTHER),
        (b"application/json", ContentType.OTHER),
        (b"", ContentType.OTHER),
    ],
)
def test_content_types_are_told_apart_by_their_whole_name(value: bytes, found: ContentType) -> None:
    assert content_type_of(value) == found


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"300m", 0.3),
        (b"250u", 0.00025),
        (b"99999999n", 0.099999999),
        (b"00000001S", 1.0),
        (b"0m", 0.0),
    ],
)
def test_a_timeout_is_read_in_each_of_its_units(value: bytes, seconds: float) -> None:
    assert timeout_seconds(value) == seconds


@pytest.mark.parametrize(
    "value",
    [b"", b"S", b"1", b"123456789S", b"1s", b"1h", b"-1S", b"1.5S", b" 1S", b"1S ", b"1 S", b"\xb21S"],
)
def test_a_timeout_that_breaks_the_grammar_is_none(value: bytes) -> None:
    assert timeout_seconds(value) == -1.0


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"", b""),
        (b"plain", b"plain"),
        (b"no%20route%0ahere", b"no route\nhere"),
        (b"%E2%82%ac", "€".encode()),
        (b"100%", b"100%"),
        (b"100%2", b"100%2"),
        (b"%zz%4", b"%zz%4"),
        (b"%%41", b"%A"),
        (b"%25" * 4, b"%%%%"),
    ],
)
def test_a_message_is_percent_decoded_and_bad_escapes_stay(message: bytes, text: bytes) -> None:
    assert percent_decoded(message) == text


def test_of_a_long_message_the_beginning_is_kept() -> None:
    assert percent_decoded(b"a" * 1024) == b"a" * 1024
    assert percent_decoded(b"a" * 1025) == b"a" * 1024
    assert percent_decoded(b"%62" * 5000) == b"b" * 1024


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (b"0", 0),
        (b"14", 14),
        (b"00", 0),
        (b"42", 42),
        (b"", -1),
        (b"-1", -1),
        (b"OK", -1),
        (b"1 ", -1),
        (b"9" * 10, -1),
    ],
)
def test_a_status_is_a_decimal_number(value: bytes, status: int) -> None:
    assert status_of(value) == status


def test_statuses_have_the_names_that_grpc_gives_them() -> None:
    grpc = pytest.importorskip("grpc")
    for code in grpc.StatusCode:
        assert status_name(code.value[0]) == code.name
    assert status_name(17) == "17"
    assert status_name(4242) == "4242"


def test_error_codes_of_http_2_have_names() -> None:
    errors = pytest.importorskip("h2.errors")
    assert {code.value: code.name for code in errors.ErrorCodes} == {
        code.value: code.name for code in ErrorCode
    }
    assert error_name(0) == "NO_ERROR"
    assert error_name(8) == "CANCEL"
    assert error_name(0x1F) == "0x1f"
    assert error_name(0xFFFFFFFF) == "0xffffffff"


# -- messages


def test_messages_are_counted_however_their_bytes_are_cut() -> None:
    data = frame(b"one") + frame(b"") + frame(b"x" * 300) + frame(b"z", flags=1)
    for pieces in in_two(data):
        assert messages_begun(pieces) == (4, True)
    assert messages_begun([data[i : i + 1] for i in range(len(data))]) == (4, True)


def test_a_message_counts_from_the_first_octet_of_its_prefix() -> None:
    assert messages_begun([]) == (0, False)
    assert messages_begun([b""]) == (0, False)
    assert messages_begun([b"\x00"]) == (1, False)
    assert messages_begun([frame(b"one"), b"\x01"]) == (2, True)


def test_bytes_of_a_message_are_not_taken_for_prefixes() -> None:
    assert messages_begun([frame(b"\x01\x01\x01\x01\x01\x01\x01"), frame(b"")]) == (2, False)


def test_a_message_may_announce_the_longest_length() -> None:
    pieces = [b"\x00\xff\xff\xff\xff"] + [b"\x01" * 65536] * 65535
    # 4 GiB - 1: one octet short of 65536 pieces.
    assert messages_begun([*pieces, b"\x01" * 65535]) == (1, False)
    assert messages_begun([*pieces, b"\x01" * 65536]) == (2, True)


@given(
    st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=6),
    st.lists(st.integers(min_value=0, max_value=1000), max_size=8),
)
def test_any_messages_in_any_pieces_are_counted(messages: list[tuple[bytes, bool]], cuts: list[int]) -> None:
    data = b"".join(frame(payload, flags=packed) for payload, packed in messages)
    expected = len(messages), any(packed for _, packed in messages)
    assert messages_begun(cut_at(data, cuts)) == expected
    web = read(cut_at(data, cuts))
    assert (web.count, web.compressed) == expected
    text = read(cut_at(base64.b64encode(data), cuts), text=True)
    assert (text.count, text.compressed) == expected


# -- gRPC-Web


def test_the_trailer_frame_of_grpc_web_is_read_wherever_it_is_cut() -> None:
    data = frame(b"one") + frame(b"two", flags=1) + frame(TRAILERS, flags=0x80)
    for pieces in in_two(data):
        assert said(read(list(pieces))) == (2, True, 14, b"no route")
    assert said(read([data[i : i + 1] for i in range(len(data))])) == (2, True, 14, b"no route")


def test_a_trailer_frame_says_nothing_before_it_is_complete() -> None:
    data = frame(b"one") + frame(b"grpc-status: 10", flags=0x80)
    web = read([data[:-1]])
    assert web.status == -1
    web.feed(data[-1:])
    assert web.status == 10


@pytest.mark.parametrize(
    ("trailers", "status", "message"),
    [
        (b"", -1, None),
        (b"grpc-status:0\r\n", 0, None),
        (b"grpc-status:0", 0, None),
        (b"GRPC-STATUS:5\ngrpc-message:a:b\n", 5, b"a:b"),
        (b"grpc-message:\r\ngrpc-status:2\r\n", 2, b""),
        (b"grpc-status:1\r\ngrpc-status:2\r\ngrpc-message:a\r\ngrpc-message:b\r\n", 1, b"a"),
        (b"grpc-status:none\r\n", -1, None),
        (b"x-grpc-status:1\r\ngrpc-status\r\n:\r\n\r\n", -1, None),
    ],
)
def test_trailer_lines_are_those_of_http_1(trailers: bytes, status: int, message: bytes | None) -> None:
    assert said(read([frame(trailers, flags=0x80)])) == (0, False, status, message)


def test_a_second_trailer_frame_is_not_looked_at() -> None:
    web = read([frame(b"grpc-status:3\r\n", 0x80), frame(b"grpc-status:4\r\ngrpc-message:b\r\n", 0x80)])
    assert said(web) == (0, False, 3, None)


def test_of_a_large_trailer_frame_the_first_8_kib_are_read() -> None:
    early = b"grpc-status: 5\r\nx: " + b"x" * 9000 + b"\r\ngrpc-message: late\r\n"
    for pieces in ([frame(early, 0x80)], cut_at(frame(early, 0x80), [4000, 8200, 8197, 9000])):
        assert said(read([*pieces, frame(b"")])) == (1, False, 5, None)
    # The line that the limit cuts says nothing: 1 is not 14.
    padding = 8 * 1024 - len(b"x: \r\ngrpc-status: 1")
    assert read([frame(b"x: " + b"x" * padding + b"\r\ngrpc-status: 14\r\n", 0x80)]).status == -1


def test_base64_may_be_padded_in_mid_stream() -> None:
    parts = [frame(b"o"), frame(b"tw"), frame(b"thr"), frame(TRAILERS, flags=0x80)]
    data = b"".join(base64.b64encode(part) for part in parts)
    assert data.count(b"=") > 2
    for pieces in in_two(data):
        assert said(read(list(pieces), text=True)) == (3, False, 14, b"no route")
    assert said(read([data[i : i + 1] for i in range(len(data))], text=True)) == (3, False, 14, b"no route")


def test_base64_may_be_cut_into_encoded_pieces_within_a_frame() -> None:
    data = frame(b"one") + frame(TRAILERS, flags=0x80)
    for pieces in in_two(data):
        text = b"".join(base64.b64encode(piece) for piece in pieces)
        assert said(read([text], text=True)) == (1, False, 14, b"no route")


def test_line_ends_in_base64_are_no_part_of_it() -> None:
    data = base64.encodebytes(frame(b"x" * 3000) + frame(TRAILERS, flags=0x80))
    assert said(read([data.replace(b"\n", b"\r\n")], text=True)) == (1, False, 14, b"no route")


@given(st.binary(max_size=400), st.lists(st.integers(min_value=0, max_value=1000), max_size=8), st.booleans())
def test_any_bytes_in_any_pieces_say_the_same(data: bytes, cuts: list[int], text: bool) -> None:
    assert said(read(cut_at(data, cuts), text=text)) == said(read([data], text=text))
