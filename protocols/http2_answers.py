"""The frames that ARCA itself says in HTTP/2: refusals, and answers in the place of an upstream that is not
there.

Here alone the python-hyper libraries speak: nothing of this is on the way of other people's bytes. What is
put between the frames of a running connection changes no state that the two ends share: header fields are
never indexed, and no DATA is sent, for that would be counted against windows that belong to others.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes
from hpack import Encoder, NeverIndexedHeaderTuple
from hyperframe.frame import GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from protocols.detect import HTTP_2_PREFACE

_VISIBLE: Final = bytes(range(0x21, 0x7F))  # an id of other octets is not repeated
_MAX_DEBUG: Final = 256  # octets of text in a GOAWAY


class Asked(NamedTuple):
    """A request to be answered; ``grpc`` is the content type of the answer, None where it is not gRPC."""

    stream: int
    method: bytes | None
    request_id: bytes | None
    grpc: str | None
    complete: bool


def goaway(last_stream: int, code: int, text: str, *, settings_first: bool) -> bytes:
    """GOAWAY with ``text`` as debug data; behind an empty SETTINGS where the receiver has had none yet."""
    frame = GoAwayFrame(0, last_stream_id=last_stream, error_code=code)
    frame.additional_data = text.encode("ascii", "replace")[:_MAX_DEBUG]
    return (SettingsFrame(0).serialize() if settings_first else b"") + frame.serialize()


def rst_stream(stream: int, code: int) -> bytes:
    return RstStreamFrame(stream, error_code=code).serialize()


def window_update(increment: int) -> bytes:
    """Gives the connection's window back what a dropped frame took from it."""
    return WindowUpdateFrame(0, window_increment=increment).serialize()


def refusal(asked: Asked, status: int, grpc_status: int, text: str) -> bytes:
    """A whole response on a stream of a running connection, and NO_ERROR for a request still coming."""
    fields = _fields(asked, status, grpc_status, "protocol_error", text)
    if asked.grpc is None:
        fields += [(b"content-length", b"0"), (b"x-arca-fault", text.encode("ascii", "replace"))]
    frame = HeadersFrame(asked.stream, flags=("END_HEADERS", "END_STREAM"))
    frame.data = Encoder().encode([NeverIndexedHeaderTuple(*field) for field in fields], huffman=False)
    return frame.serialize() + (b"" if asked.complete else rst_stream(asked.stream, 0))


def unreachable(
    all_asked: list[Asked], status: int, cause: str, text: str, window: int, last: int, *, waiting: bytes
) -> bytes:
    """The answers to all that was asked of an upstream that cannot be reached, from the server's preface to
    a GOAWAY.

    ``window`` is the initial window that downstream announced: the text goes into a body only where it fits.
    ``waiting`` are frames that could not be said before the server's preface.
    """
    server = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    server.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 2**31 - 1
    server.local_settings.acknowledge()
    server.initiate_connection()
    server.receive_data(
        HTTP_2_PREFACE + SettingsFrame(0, settings={SettingCodes.INITIAL_WINDOW_SIZE: window}).serialize()
    )
    body = text.encode("latin-1", "replace") + b"\n"
    encoder = Encoder()
    for asked in all_asked:
        # What downstream really asked was decoded elsewhere: `h2` only has to know that the stream is open.
        frame = HeadersFrame(
            asked.stream, flags=("END_HEADERS", "END_STREAM") if asked.complete else ("END_HEADERS",)
        )
        frame.data = encoder.encode(
            [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "arca")]
        )
        server.receive_data(frame.serialize())
        fields = _fields(asked, status, 14, cause, text)
        room = min(server.local_flow_control_window(asked.stream), server.max_outbound_frame_size)
        if asked.grpc is None and asked.method != b"HEAD" and len(body) <= room:
            fields += [
                (b"content-type", b"text/plain; charset=latin-1"),
                (b"content-length", b"%d" % len(body)),
            ]
            server.send_headers(asked.stream, fields)
            server.send_data(asked.stream, body, end_stream=True)
        else:
            server.send_headers(asked.stream, fields, end_stream=True)
    answers = server.data_to_send()
    server.close_connection(last_stream_id=last)
    return answers + waiting + server.data_to_send()


def _fields(asked: Asked, status: int, grpc_status: int, cause: str, text: str) -> list[tuple[bytes, bytes]]:
    if asked.grpc is None:
        fields = [(b":status", b"%d" % status), (b"server", b"arca")]
    else:
        # Trailers-Only: gRPC over HTTP/2, "Responses".
        fields = [
            (b":status", b"200"),
            (b"content-type", asked.grpc.encode()),
            (b"server", b"arca"),
            (b"grpc-status", b"%d" % grpc_status),
            (b"grpc-message", _percent_encoded(text)),
        ]
    fields.append((b"x-arca-cause", cause.encode()))
    if asked.request_id and not asked.request_id.translate(None, _VISIBLE):
        fields.append((b"x-request-id", asked.request_id))
    return fields


def _percent_encoded(text: str) -> bytes:
    """gRPC over HTTP/2, "Status-Message": octets of its UTF-8 beyond printable ASCII, and %, are escaped."""
    return b"".join(
        bytes((octet,)) if 0x20 <= octet <= 0x7E and octet != 0x25 else b"%%%02X" % octet
        for octet in text.encode()
    )
