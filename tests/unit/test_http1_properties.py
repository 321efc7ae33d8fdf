"""What holds for the HTTP/1 engine whatever comes, and however it was cut into pieces.

A script is what the two sides did, in order. It is generated as valid HTTP/1, or spoilt afterwards. The
engine is driven by ``Caller`` as a pair drives it; trace headers stay out of the scripts, so that what was
added to the bytes can be taken out of them again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, TypeAlias

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocols.exchange import End, Exchange
from protocols.http1 import Http1
from tests.unit.conversation import ADDED, GIVEN_BACK, Caller, fixed_ids
from tests.unit.http1_corpus import REQUESTS, RESPONSES

# Bounded, and the same in every run: a failure is a change of the code.
bounded = settings(max_examples=200, deadline=None, derandomize=True, database=None)

DOWNSTREAM, UPSTREAM = "downstream", "upstream"
Event: TypeAlias = tuple[str, bytes]
Script: TypeAlias = list[Event]

KIB: Final = 1024
MAX_HEAD: Final = 8 * KIB + 1 + 60 * KIB + 8 * 80


@dataclass(frozen=True)
class Outcome:
    to_upstream: bytes
    to_downstream: bytes
    exchanges: list[dict[str, object]]
    refusal: bytes | None
    fallback: str | None
    handed_over: bool


TIMES = ("connect", "started", "first_byte", "ended")


def facts(exchange: Exchange) -> dict[str, object]:
    """All that an exchange says, its times only by whether they came."""
    told: dict[str, object] = {
        name: getattr(exchange, name)
        for name in dir(Exchange)
        if not name.startswith("_") and name not in TIMES
    }
    return told | {name: getattr(exchange, name) >= 0 for name in TIMES}


def play(script: Script, *, strict: bool = False, closed: bool = True) -> tuple[Caller, Outcome]:
    caller = Caller(Http1(fixed_ids(), strict=strict))
    for side, data in script:
        if not data:
            continue
        if side == DOWNSTREAM:
            caller.downstream(data)
        else:
            caller.upstream(data)
    if closed:
        caller.downstream_eof()
        caller.upstream_eof()
    caller.end(End.DRAINED)
    return caller, Outcome(
        bytes(caller.to_upstream),
        bytes(caller.to_downstream),
        [facts(exchange) for exchange in caller.exchanges],
        caller.refusal,
        caller.fallback,
        caller.handed_over,
    )


# -- scripts

token = st.sampled_from(
    [b"Accept", b"x-a", b"COOKIE", b"!#$%&'*+-.^_`|~", b"bx3", b"T", b"uh", b"Hos", b"X-B"]
)
value = st.sampled_from([b"", b" ", b"  a b \t", b"\xe4\xff", b'"q;, "', b"chunked", b"5", b"a" * 300])
fields = st.lists(st.tuples(token, value), max_size=4).map(
    lambda pairs: b"".join(name + b":" + content + b"\r\n" for name, content in pairs)
)
payload = st.binary(max_size=40) | st.sampled_from(
    [b"GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n", b"\r\n", b"x" * 700]
)
extension = st.sampled_from([b"", b"", b";a", b" \t;a", b";a=b", b';a="\t;\xff"', b"; "])
size_format = st.sampled_from([b"%x", b"%X", b"%04x", b"%016X"])


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    out = b""
    for chunk in draw(st.lists(payload.filter(bool), max_size=3)):
        out += draw(size_format) % len(chunk) + draw(extension) + b"\r\n" + chunk + b"\r\n"
    return out + draw(st.sampled_from([b"0", b"000"])) + draw(extension) + b"\r\n" + draw(fields) + b"\r\n"


content_length = st.sampled_from(
    [b"Content-Length: %d\r\n", b"content-length:%d \t\r\n", b"CONTENT-LENGTH: 00%d\r\n"]
)
coding = st.sampled_from([b"chunked", b"gzip, Chunked ", b"\tCHUNKED"])


@st.composite
def framed(draw: st.DrawFn, head: bytes, *kinds: str) -> bytes:
    """``head`` (without its empty line) with a body of one of these kinds."""
    match draw(st.sampled_from(kinds)):
        case "length":
            body = draw(payload)
            return head + draw(content_length) % len(body) + draw(fields) + b"\r\n" + body
        case "chunked":
            return (
                head
                + b"Transfer-Encoding:"
                + draw(coding)
                + b"\r\n"
                + draw(fields)
                + b"\r\n"
                + draw(chunked())
            )
        case "until close":
            return head + b"\r\n" + draw(payload)
        case "promised":
            return head + draw(content_length) % 7 + b"\r\n"
        case _:
            return head + b"\r\n"


@st.composite
def exchange(draw: st.DrawFn, *, last: bool) -> tuple[bytes, bytes]:
    """A request and its response; only the last one of a connection may end with it, or become a tunnel."""
    method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"BREW"]))
    target = draw(st.sampled_from([b"/", b"/a?b=%20", b"*", b"http://h/", b"/\xc3\xa4"]))
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.2"]))
    empty = draw(st.sampled_from([b"", b"", b"", b"\r\n", b"\r\n\r\n"]))
    upgrade = draw(st.sampled_from(["no", "no", "no", "declined", "granted" if last else "no"]))
    lines = draw(fields) + (b"" if upgrade == "no" else b"Connection: upgrade\r\nUpgrade: websocket\r\n")
    head = empty + method + b" " + target + b" HTTP/" + version + b"\r\nHost: a\r\n" + lines
    request: bytes = draw(framed(head, "length", "chunked", "none"))
    response = b"".join(
        draw(
            st.lists(
                st.sampled_from([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 E\r\nLink: a\r\n\r\n"]),
                max_size=2,
            )
        )
    )
    if upgrade == "granted":
        return request, response + b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\n\r\n" + draw(payload)
    status = draw(st.sampled_from([b"200 OK", b"204 ", b"304 Not", b"404", b"500 \xe4"]))
    if method == b"HEAD" or status[:3] in (b"204", b"304"):
        kinds = ["none", "promised"]
    else:
        kinds = ["length", "chunked", *(["until close"] if last else [])]
    head = b"HTTP/1.1 " + status + b"\r\n" + draw(fields)
    answer: bytes = draw(framed(head, *kinds))
    return request, response + answer


@st.composite
def valid(draw: st.DrawFn) -> Script:
    """Exchanges; requests may come before earlier responses, responses before their request is complete."""
    number = draw(st.integers(1, 4))
    waiting: list[bytes] = []
    script: Script = []
    for i in range(number):
        request, response = draw(exchange(last=i == number - 1))
        split = draw(st.sampled_from([len(request), len(request), request.find(b"\r\n\r\n", 8) + 4]))
        script.append((DOWNSTREAM, request[:split]))
        waiting.append(response)
        answered = draw(st.integers(0, len(waiting)))
        script += [(UPSTREAM, response) for response in waiting[:answered]]
        del waiting[:answered]
        script.append((DOWNSTREAM, request[split:]))
    script += [(UPSTREAM, response) for response in waiting]
    return script


SPOILERS: Final = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\r\n\r\n",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"0",
    b"1",
    b"f",
    b"\xff",
    b"HTTP/1.0",
    b"GET ",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: x\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    b"Upgrade: x\r\n",
    b"HTTP/1.1 101 S\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"-",
    b"ffffffffffffffff",
    b"a:b\r\n" * 101,
    b"x" * 9000,
]


@st.composite
def hostile(draw: st.DrawFn) -> Script:
    """A valid script with bytes put in, taken out or replaced, events moved, or messages of the corpus."""
    script = draw(valid())
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, len(script) - 1))
        side, data = script[i]
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["put in", "take out", "replace", "move", "corpus"])):
            case "put in":
                script[i] = side, data[:at] + draw(st.sampled_from(SPOILERS)) + data[at:]
            case "take out":
                script[i] = side, data[:at] + data[at + draw(st.integers(1, 12)) :]
            case "replace":
                new = draw(st.sampled_from(SPOILERS))
                script[i] = side, data[:at] + new + data[at + len(new) :]
            case "move":
                script.insert(draw(st.integers(0, len(script) - 1)), script.pop(i))
            case _:
                script.insert(
                    i,
                    draw(
                        st.sampled_from(
                            [(DOWNSTREAM, data) for data in REQUESTS.values()]
                            + [(UPSTREAM, data) for data in RESPONSES.values()]
                        )
                    ),
                )
    return script


@st.composite
def recut(draw: st.DrawFn, script: Script) -> Script:
    """The same bytes in the same order, in other pieces."""
    pieces: Script = []
    for side, data in script:
        if draw(st.booleans()) and len(data) < 2000:
            pieces += [(side, data[i : i + 1]) for i in range(len(data))]
            continue
        cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
        pieces += [(side, data[i:j]) for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return pieces


def sent(script: Script, side: str) -> bytes:
    return b"".join(data for who, data in script if who == side)


# -- properties


@bounded
@given(valid())
def test_valid_messages_pass_with_nothing_but_lines_added(script: Script) -> None:
    caller, outcome = play(script)
    assert outcome.refusal is None
    assert outcome.fallback is None
    assert outcome.to_upstream.replace(ADDED, b"") == sent(script, DOWNSTREAM)
    assert outcome.to_downstream.replace(GIVEN_BACK, b"") == sent(script, UPSTREAM)
    http = [found for found in caller.exchanges if found.method is not None]
    assert [found.end for found in http] == [End.COMPLETE] * len(http)
    assert outcome.to_upstream.count(ADDED) == outcome.to_downstream.count(GIVEN_BACK) == len(http)


@bounded
@given(st.data(), valid(), st.booleans())
def test_valid_messages_pass_the_same_however_they_are_cut(
    data: st.DataObject, script: Script, closed: bool
) -> None:
    _, whole = play(script, closed=closed)
    _, pieces = play(data.draw(recut(script)), closed=closed)
    assert pieces == whole


@settings(bounded, max_examples=600)
@given(st.data(), hostile(), st.booleans(), st.booleans())
def test_whatever_comes_ends_the_same_however_it_is_cut(
    data: st.DataObject, script: Script, strict: bool, closed: bool
) -> None:
    caller, whole = play(script, strict=strict, closed=closed)
    # Requests that had to wait are read when a piece of upstream's was, so finer pieces let them be read
    # earlier. That is another order of events: where they are at fault, something else was in flight.
    assume(not caller.resumed or (whole.refusal is None and whole.fallback is None))
    _, pieces = play(data.draw(recut(script)), strict=strict, closed=closed)
    assert pieces == whole


@settings(bounded, max_examples=600)
@given(hostile())
def test_whatever_comes_goes_on_as_it_came_or_is_refused(script: Script) -> None:
    caller, outcome = play(script)
    request, response = sent(script, DOWNSTREAM), sent(script, UPSTREAM)
    to_upstream = outcome.to_upstream.replace(ADDED, b"")
    to_downstream = outcome.to_downstream.replace(GIVEN_BACK, b"")
    assert request.startswith(to_upstream)
    assert response.startswith(to_downstream)
    if not any(found.fault for found in caller.exchanges):
        assert outcome.refusal is None
        assert to_upstream == request
        assert to_downstream == response


@settings(bounded, max_examples=300)
@given(hostile(), st.sampled_from(list(End)), st.data())
def test_every_exchange_ends_exactly_once_wherever_the_connection_ends(
    script: Script, how: End, data: st.DataObject
) -> None:
    script = data.draw(recut(script))
    caller = Caller(Http1(fixed_ids()))
    begun = 0
    for side, piece in script[: data.draw(st.integers(0, len(script)))]:
        if side == DOWNSTREAM:
            caller.downstream(piece)
        else:
            caller.upstream(piece)
        assert caller.codec.in_flight + len(caller.exchanges) >= begun
        begun = caller.codec.in_flight + len(caller.exchanges)
    caller.end(how)
    assert caller.codec.in_flight == 0
    assert begun <= len(caller.exchanges) <= begun + 1  # a head that was not complete is told, too
    assert len({id(found) for found in caller.exchanges}) == len(caller.exchanges)
    assert all(found.ended >= found.started for found in caller.exchanges)
    assert all(found.following is None for found in caller.exchanges)
    ended = len(caller.exchanges)
    caller.end(End.INTERNAL)
    assert len(caller.exchanges) == ended


# -- bounds


@pytest.mark.parametrize("piece", [1, 7, 4096])
@pytest.mark.parametrize(
    "endless",
    [
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
        b"GET / HTTP/1.1\r\na: " + b"b" * 100_000,
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\n\r\n"[:-2] + b":" * 100_000,
    ],
)
def test_a_head_that_never_ends_is_held_to_its_limit_and_read_once(endless: bytes, piece: int) -> None:
    caller = Caller(Http1(fixed_ids()))
    began = time.process_time()
    for at in range(0, len(endless), piece):
        caller.downstream(endless[at : at + piece])
        if caller.refusal is not None:
            break
        assert at + piece <= MAX_HEAD + piece
    assert caller.refusal is not None
    assert not caller.to_upstream
    # Reading every byte again at each piece would be 2 * 10^9 steps.
    assert time.process_time() - began < 1.0


def test_a_response_head_that_never_ends_is_held_to_its_limit_and_read_once() -> None:
    caller = Caller(Http1(fixed_ids()))
    caller.downstream(b"GET / HTTP/1.1\r\n\r\n")
    endless = b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000
    began = time.process_time()
    taken = 0
    while caller.refusal is None:
        caller.upstream(endless[taken : taken + 1])
        taken += 1
    assert taken <= MAX_HEAD
    assert time.process_time() - began < 1.0


def test_a_flood_of_empty_lines_is_not_held() -> None:
    caller = Caller(Http1(fixed_ids()))
    caller.downstream(b"\r\n" * 500_000 + b"\r")
    assert len(caller.to_upstream) == 1_000_000
    assert not caller.exchanges


@pytest.mark.parametrize("answers", [1, 50])
def test_a_flood_of_pipelined_requests_is_held_by_reading_no_more(answers: int) -> None:
    request = b"GET / HTTP/1.1\r\n\r\n"
    answer = b"HTTP/1.1 204 No\r\n\r\n"
    caller = Caller(Http1(fixed_ids()))
    read = request * 3_640  # 64 KiB
    taken = 0
    began = time.process_time()
    while len(caller.exchanges) < 20_000:
        while not caller.codec.pause_downstream:
            caller.downstream(read)
            taken += len(read)
        assert caller.codec.in_flight <= 64
        passed = len(caller.exchanges) + caller.codec.in_flight
        assert taken - passed * len(request) <= len(read)
        caller.upstream(answer * answers)
    assert time.process_time() - began < 5.0
