"""The demo judges: it must notice a wrong verdict, a missing one, and one too many."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from protocols.verdict import Cause, Domain
from proxy.demo.play import BOTH, Expected, Host
from proxy.demo.records import (
    Exchange,
    Grpc,
    Injected,
    Judgement,
    Log,
    Mqtt,
    Tally,
    Thrift,
    Verdict,
    edges,
    judge,
    outcomes,
)

DIRECTIONS = {Host.CLIENT: "outbound", Host.SERVER: "inbound"}
BROKEN = Expected(Domain.APPLICATION, Cause.STATUS_5XX)


def exchange(
    host: Host, request_id: str = "one", cause: str = "status_5xx", trace_id: str = "t", direction: str = ""
) -> Exchange:
    return Exchange(
        protocol="http/1.1",
        direction=direction or DIRECTIONS[host],
        client="[fd72::1]:40000",
        server="[fd72::2]:80",
        method="GET",
        target="/",
        status=500,
        request_id=request_id,
        trace_id=trace_id,
        duration_ms=1.0,
        verdict=Verdict("application", cause, 1.0, "it said so", None),
    )


def judged(
    client: list[Exchange], server: list[Exchange], expected: Expected = BROKEN, known_as: str = "one"
) -> Judgement:
    logs = {host: Log(Path("none")) for host in BOTH}
    logs[Host.CLIENT].exchanges, logs[Host.SERVER].exchanges = client, server
    return judge([Injected("a fault", expected, [known_as])], logs, DIRECTIONS)


def test_what_is_named_as_expected_at_both_is_right() -> None:
    judgement = judged([exchange(Host.CLIENT)], [exchange(Host.SERVER)])
    assert judgement.wrong == ()
    assert judgement.findings[0].named == {Host.CLIENT: 1, Host.SERVER: 1}
    assert (judgement.at_both, judgement.joined) == (1, 1)


def test_another_verdict_is_wrong_and_told() -> None:
    judgement = judged([exchange(Host.CLIENT)], [exchange(Host.SERVER, cause="status_4xx")])
    assert judgement.findings[0].named == {Host.CLIENT: 1, Host.SERVER: 0}
    (line,) = judgement.wrong
    assert "application/status_5xx expected at the server's ARCA" in line
    assert "got application/status_4xx" in line


def test_no_verdict_and_two_verdicts_are_wrong() -> None:
    assert len(judged([exchange(Host.CLIENT)], []).wrong) == 1
    assert len(judged([exchange(Host.CLIENT)] * 2, [exchange(Host.SERVER)]).wrong) == 1


def test_what_never_came_to_the_server_must_not_be_seen_there() -> None:
    client_only = Expected(Domain.APPLICATION, Cause.STATUS_5XX, (Host.CLIENT,))
    judgement = judged([exchange(Host.CLIENT)], [], client_only)
    assert judgement.wrong == ()
    assert judgement.findings[0].named[Host.SERVER] is None
    assert len(judged([exchange(Host.CLIENT)], [exchange(Host.SERVER)], client_only).wrong) == 1


def test_an_exchange_that_nobody_began_is_wrong() -> None:
    judgement = judged([exchange(Host.CLIENT), exchange(Host.CLIENT, "stray")], [exchange(Host.SERVER)])
    assert len(judgement.wrong) == 1


def test_two_trace_ids_for_one_request_are_wrong() -> None:
    judgement = judged([exchange(Host.CLIENT)], [exchange(Host.SERVER, trace_id="other")])
    assert judgement.wrong == ("1 of 1 requests had two trace ids",)


def test_a_missing_trace_id_is_wrong_where_there_is_a_place_for_one() -> None:
    untraced = [replace(exchange(host), trace_id=None) for host in BOTH]
    assert judged(untraced[:1], untraced[1:]).wrong == ("1 of 1 requests had two trace ids",)
    calls = [replace(each, thrift=Thrift("framed", "binary", False, 7)) for each in untraced]
    judgement = judged(calls[:1], calls[1:], known_as="sequence 7")
    assert (judgement.wrong, judgement.at_both) == ((), 0)


def test_recall_and_precision_count_at_each_proxy() -> None:
    right = judged([exchange(Host.CLIENT)], [exchange(Host.SERVER)])
    assert (right.faults, right.named, right.called_faults) == (2, 2, 2)
    fine = Verdict("ok", None, 1.0, None, None)
    missed = judged([exchange(Host.CLIENT)], [replace(exchange(Host.SERVER), verdict=fine)])
    assert (missed.faults, missed.named, missed.called_faults) == (2, 1, 1)
    too_many = judged([exchange(Host.CLIENT), exchange(Host.CLIENT, "stray")], [exchange(Host.SERVER)])
    assert (too_many.faults, too_many.named, too_many.called_faults) == (2, 2, 3)


def message(host: Host, sender: str, trace_id: str | None = "t") -> Exchange:
    client_id = "publisher" if sender == "client" else "subscriber"
    packet = Mqtt(5, client_id, sender, qos=1, retain=False)
    return replace(exchange(host), method="PUBLISH", target="stock", trace_id=trace_id, mqtt=packet)


def test_a_message_shares_its_trace_with_its_delivery_at_both() -> None:
    client, server = ([message(host, sender) for sender in ("client", "server")] for host in BOTH)
    judgement = judged(client, server)
    assert (judgement.delivered, judgement.shared) == (1, 1)
    told = "1 of 1 MQTT messages had another trace id when delivered"
    assert told in judged(client, server[1:]).wrong
    assert told in judged([client[0], message(Host.CLIENT, "server", "other")], server[:1]).wrong
    assert judged(client[:1], server[:1]).delivered == 0


def test_what_a_client_knows_an_exchange_by() -> None:
    untraced = replace(exchange(Host.CLIENT), request_id=None, trace_id=None)
    assert untraced.known_as == "none"
    assert exchange(Host.CLIENT, "four").known_as == "four"
    assert replace(untraced, thrift=Thrift("framed", "binary", False, 7)).known_as == "sequence 7"
    session = replace(untraced, method="CONNECT", mqtt=Mqtt(5, "publisher", "client"))
    assert session.known_as == "publisher CONNECT"
    assert message(Host.CLIENT, "server").known_as == "subscriber PUBLISH t"


def test_a_packet_is_told_by_type_topic_and_reason() -> None:
    published = replace(message(Host.CLIENT, "client"), code="Not authorized")
    assert (published.request, published.answer) == ("PUBLISH stock", "Not authorized")
    fine = Verdict("ok", None, 1.0, None, None)
    delivered = replace(message(Host.CLIENT, "server"), verdict=fine)
    assert (delivered.request, delivered.answer) == ("PUBLISH stock to its subscriber", "done")
    gone = replace(published, method="DISCONNECT", target=None, code=None)
    assert (gone.request, gone.answer) == ("DISCONNECT", "no answer")


def test_a_wrong_direction_is_wrong() -> None:
    judgement = judged([exchange(Host.CLIENT, direction="inbound")], [exchange(Host.SERVER)])
    assert judgement.wrong == ("1 exchanges at the client's ARCA were called inbound",)


def test_edges_forget_the_clients_port() -> None:
    log = Log(Path("none"))
    log.exchanges = [exchange(Host.CLIENT)]
    assert [edge.client for edge in edges({Host.CLIENT: log})] == ["fd72::1"]


def test_a_call_is_told_by_its_method_and_its_own_status() -> None:
    call = replace(exchange(Host.CLIENT), method="demo.Stock/Find", target="/demo.Stock/Find", status=200)
    found = replace(call, code="NOT_FOUND", grpc=Grpc(1, 0, None))
    canceled = replace(call, grpc=Grpc(1, 2, 0.5))
    assert (found.request, found.answer) == ("demo.Stock/Find", "NOT_FOUND")
    assert (canceled.request, canceled.answer) == ("demo.Stock/Find", "no status")


def test_a_request_is_told_without_its_query_and_by_its_status() -> None:
    asked = replace(exchange(Host.CLIENT), target="/list?page=2")
    unanswered = replace(exchange(Host.CLIENT), status=None)
    whole_connection = replace(unanswered, method=None, target=None)
    assert (asked.request, asked.answer) == ("GET /list", "500")
    assert (unanswered.request, unanswered.answer) == ("GET /", "no answer")
    assert whole_connection.request == ""


def test_outcomes_of_two_statuses_are_two_and_those_that_are_ok_come_last() -> None:
    logs = {host: Log(Path("none")) for host in BOTH}
    fine = replace(exchange(Host.CLIENT), verdict=Verdict("ok", None, 1.0, None, None), status=200)
    broken = exchange(Host.CLIENT)
    logs[Host.CLIENT].exchanges = [fine, broken, replace(broken, status=503), broken]
    kinds = [(kind.answer, len(seen[Host.CLIENT])) for kind, seen in outcomes(logs).items()]
    assert kinds == [("500", 2), ("503", 1), ("200", 1)]


def test_percentiles_are_durations_that_occurred() -> None:
    tally = Tally(durations=[float(n) for n in range(1, 101)])
    assert (tally.percentile(0.5), tally.percentile(0.99)) == (50.0, 99.0)
    assert Tally(durations=[7.0]).percentile(0.99) == 7.0


def test_a_log_is_read_by_whole_lines(tmp_path: Path) -> None:
    line = (
        '{"protocol":"http/1.1","direction":"inbound","client":"a:1","server":"b:2","method":null,"target":null,'
        '"status":null,"request_id":null,"trace_id":null,"duration_ms":1,"verdict":{"domain":"ok","cause":null,'
        '"confidence":1,"explain":null,"check":null}}\n'
    )
    path = tmp_path / "log"
    log = Log(path)
    log.read_on()
    path.write_text(line + line[:50])
    log.read_on()
    assert len(log.exchanges) == 1
    path.write_text(line + line)
    log.read_on()
    assert len(log.exchanges) == 2
