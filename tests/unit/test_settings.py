"""Settings: which layer wins, and what a person reads when a value is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from netfilter.rules import RuleSettings
from proxy.addresses import Address, Listener, parse_address, parse_forward
from proxy.configuration import SettingsError, check_together, load, unknown_variables
from proxy.settings import Limits, Settings, changed, keeping, needs_restart

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "arca.toml"


def refusal(file: Path, text: str) -> str:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file)
    return str(caught.value).replace(str(file), "FILE")


def test_nothing_given_is_the_defaults() -> None:
    assert load() == Settings()


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(file: Path) -> None:
    file.write_text("slow = 3\nworkers = 3\nsample = 0.3\n")
    environment = {"ARCA_WORKERS": "4", "ARCA_SAMPLE": "0.4"}
    settings = load(file, {"sample": "0.5"}, environment)
    assert (settings.slow, settings.workers, settings.sample, settings.mark) == (3.0, 4, 0.5, 15001)


def test_variables_reach_the_tables_and_lists_are_separated_by_commas() -> None:
    settings = load(
        environment={
            "ARCA_LISTEN": ":1000, [::1]:1000",
            "ARCA_STRICT": "true",
            "ARCA_LIMITS_MAX_CONNECTIONS": "10",
            "ARCA_RULES_INBOUND_PORTS": "80,8000-8100",
        }
    )
    assert settings.listen == (":1000", "[::1]:1000")
    assert settings.strict
    assert settings.limits.max_connections == 10
    assert [str(port) for port in settings.rules.inbound_ports] == ["80", "8000-8100"]


def test_running_exchanges_are_reported_every_minute_as_often_as_one_likes_or_never(file: Path) -> None:
    assert load().report_running_seconds == 60
    assert load(flags={"report_running_seconds": "0"}).report_running_seconds == 0
    file.write_text("report_running_seconds = 0.5")
    assert load(file).report_running_seconds == 0.5
    assert needs_restart(Settings(), load(file)) == []


def test_forwards_alone_open_no_redirected_listener() -> None:
    settings = load(flags={"forward": [":8080=example.org:80"]})
    assert settings.listeners() == (Listener(Address("0.0.0.0", 8080), Address("example.org", 80)),)


def test_forwards_beside_an_explicit_listen_keep_it() -> None:
    settings = load(flags={"forward": [":8080=127.0.0.1:80"]}, environment={"ARCA_LISTEN": ":15001"})
    assert [listener.address.port for listener in settings.listeners()] == [15001, 8080]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("workers = -1", "arca: FILE: workers: -1 is wrong: an integer from 0 to 1024"),
        ('workers = "4"', 'arca: FILE: workers: "4" is wrong: an integer from 0 to 1024'),
        ("workers = true", "arca: FILE: workers: true is wrong: an integer from 0 to 1024"),
        ("slow = 0", "arca: FILE: slow: 0 is wrong: a number above 0 to 86400"),
        (
            "report_running_seconds = -1",
            "arca: FILE: report_running_seconds: -1 is wrong: a number from 0 to 86400",
        ),
        ("slow = nan", "arca: FILE: slow: nan is wrong: a number above 0 to 86400"),
        ("sample = 1.1", "arca: FILE: sample: 1.1 is wrong: a number from 0 to 1"),
        ("strict = 1", "arca: FILE: strict: 1 is wrong: true or false"),
        ('log_level = "loud"', 'arca: FILE: log_level: "loud" is wrong: one of debug, error, info, warning'),
        (
            "[limits]\nthrift_frame_bytes = 1023",
            "arca: FILE: limits.thrift_frame_bytes: 1023 is wrong: an integer from 1024 to 1073741823",
        ),
        (
            "[limits]\nmax_connections = 0",
            "arca: FILE: limits.max_connections: 0 is wrong: an integer from 1 to",
        ),
        ("limits = 1", "arca: FILE: limits: 1 is wrong: a table, [limits]"),
        ("listen = []", "arca: FILE: listen: [] is wrong: at least one address, or a forward"),
        (
            'listen = ":80"',
            'arca: FILE: listen: ":80" is wrong: a list, each of them: HOST:PORT, [IPV6]:PORT',
        ),
        (
            'listen = ["here:80"]',
            "arca: FILE: listen: \"here:80\" is wrong ('here' is no IP address): a list",
        ),
        (
            'admin = "1.2.3.4:70000"',
            "arca: FILE: admin: \"1.2.3.4:70000\" is wrong ('70000' is no port): HOST",
        ),
        (
            'forward = [":80"]',
            'arca: FILE: forward: ":80" is wrong (there is no =): a list, each of them: LISTEN=',
        ),
        ("exchanges = 3", 'arca: FILE: exchanges: 3 is wrong: a path, "-" for stdout, or "" for none'),
        (
            '[rules]\ninbound_ports = ["x"]',
            'arca: FILE: rules.inbound_ports: "x" is wrong: a port from 1 to 65535',
        ),
        ("[rules]\napply = 1", "arca: FILE: rules.apply: 1 is wrong: true or false"),
    ],
)
def test_a_wrong_value_is_told_with_place_key_value_and_what_is_allowed(
    file: Path, text: str, says: str
) -> None:
    assert refusal(file, text).startswith(says)


def test_a_wrong_variable_and_a_wrong_flag_are_called_by_their_names() -> None:
    with pytest.raises(SettingsError, match=r'^arca: ARCA_SLOW: slow: "fast" is wrong: a number above 0'):
        load(environment={"ARCA_SLOW": "fast"})
    with pytest.raises(SettingsError, match=r'^arca: --log-level: log_level: "x" is wrong: one of'):
        load(flags={"log_level": "x"})


def test_a_wrong_value_is_told_even_where_a_stronger_layer_overrides_it(file: Path) -> None:
    file.write_text("workers = -1")
    with pytest.raises(SettingsError, match="workers: -1 is wrong"):
        load(file, {"workers": "1"})


def test_an_unknown_key_is_told_with_the_nearest_and_all_allowed(file: Path) -> None:
    assert refusal(file, "worker = 1").startswith(
        "arca: FILE: worker: there is no such key, did you mean workers? Allowed: listen, forward, workers"
    )
    said = refusal(file, "[limits]\nqueue = 1")
    assert "limits.queue: there is no such key; Allowed: max_connections, drain_seconds" in said
    assert "[rules]" in refusal(file, "[rule]\napply = true")


def test_what_is_not_toml_is_told_with_line_and_column(file: Path) -> None:
    assert refusal(file, "workers = 1\nslow = = 2") == (
        "arca: FILE: is not TOML: Invalid value (at line 2, column 8)"
    )


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml: cannot be read: No such file"):
        load(tmp_path / "nowhere.toml")
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(SettingsError, match="is not UTF-8"):
        load(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    "text",
    [
        'listen = [":1000", ":1000"]',
        'listen = [":1000", "127.0.0.1:1000"]',
        'listen = [":1000"]\nforward = ["127.0.0.1:1000=127.0.0.1:1"]',
        'metrics = "127.0.0.1:15001"',
        'metrics = "127.0.0.1:9000"\nadmin = "127.0.0.1:9000"',
    ],
)
def test_no_address_may_be_used_twice(file: Path, text: str) -> None:
    assert "it is the same as" in refusal(file, text)


def test_the_same_port_of_both_families_is_no_duplicate() -> None:
    assert len(load(flags={"listen": ["0.0.0.0:1000", "[::]:1000"]}).listeners()) == 2


def test_rules_must_lead_to_where_somebody_listens(file: Path) -> None:
    assert "rules.apply asks for [::]:1000" in refusal(file, 'listen = [":1000"]\n[rules]\napply = true')
    assert "rules.apply asks for 0.0.0.0:1000" in refusal(
        file, 'listen = ["127.0.0.1:1000", "[::]:1000"]\n[rules]\napply = true'
    )
    file.write_text('listen = [":1000"]\n[rules]\napply = true\nipv6 = false')
    assert load(file).rules.apply


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (Settings(listen=("127.0.0.1:15001",)), "asks for 0.0.0.0:15001 in it"),
        (Settings(listen=(), forward=("127.0.0.1:7000=127.0.0.1:80",)), "asks for 0.0.0.0:15001 in it"),
    ],
)
def test_rules_may_not_lead_to_where_nobody_listens_before_a_restart(before: Settings, says: str) -> None:
    after = Settings(rules=RuleSettings(apply=True, inbound_ports=(80,)))
    check_together(after)
    with pytest.raises(SettingsError, match=says) as caught:
        check_together(keeping(before, after, needs_restart(before, after)))
    assert str(caught.value).startswith("arca: with what stays until a restart: listen: ")


def test_rules_need_a_mark(file: Path) -> None:
    assert "mark: 0 is wrong" in refusal(file, "mark = 0\n[rules]\napply = true")


def test_mistyped_variables_are_found_and_those_of_kubernetes_are_not() -> None:
    environment = {"ARCA_WORKER": "1", "ARCA_PORT": "tcp://10.0.0.1:80", "ARCA_SERVICE_HOST": "10.0.0.1"}
    assert unknown_variables(environment) == [("ARCA_WORKER", "ARCA_WORKERS")]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        (":80", Address("0.0.0.0", 80)),
        ("[::1]:65535", Address("::1", 65535)),
        ("[0:0:0::1]:1", Address("::1", 1)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        "localhost:80",
        "::1:80",
        "[::1]",
        "[1.2.3.4]:80",
        "1.2.3.4:",
        "1.2.3.4:0",
        "1.2.3.4:65536",
        "1.2.3.4:-1",
        "1.2.3.4:+80",
        "1.2.3.4:8 0",
        "1.2.3:80",
        "256.1.1.1:80",
        "1.2.3.4:\N{ARABIC-INDIC DIGIT ONE}",
        "[::g]:80",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_address(text)


def test_a_forward_may_name_its_target_only() -> None:
    assert parse_forward(":1=db.internal:5432").target == Address("db.internal", 5432)
    assert parse_forward("[::1]:1=[::1]:2") == Listener(Address("::1", 1), Address("::1", 2))
    for text in ("localhost:1=1.2.3.4:1", ":1=1.2.3:1", ":1=a b:1", ":1=-x:1", ":1=", "=:1"):
        with pytest.raises(ValueError, match=r"."):
            parse_forward(text)


def test_addresses_are_written_as_they_are_read() -> None:
    for text in ("127.0.0.1:80", "[::1]:80"):
        assert str(parse_address(text)) == text


def test_changes_are_named_and_those_that_need_a_restart_are_kept_back() -> None:
    before = Settings()
    after = Settings(
        slow=1.0,
        workers=3,
        exchanges="-",
        limits=Limits(drain_seconds=1.0, max_connections=5),
        rules=RuleSettings(inbound_ports=(80,)),
    )
    assert changed(before, after) == [
        "workers",
        "exchanges",
        "slow",
        "limits.max_connections",
        "limits.drain_seconds",
        "rules.inbound_ports",
    ]
    fixed = needs_restart(before, after)
    assert fixed == ["workers", "limits.max_connections", "exchanges"]
    assert changed(before, keeping(before, after, fixed)) == [
        "slow",
        "limits.drain_seconds",
        "rules.inbound_ports",
    ]
