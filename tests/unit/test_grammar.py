import pytest

from ztunnel_trio.errors import ConfigError
from ztunnel_trio.grammar import (
    Localhost,
    parse_bool,
    parse_cpus,
    parse_duration,
    parse_header,
    parse_listen_address,
    parse_socket,
    parse_threads,
    parse_unsigned,
    parse_uri,
)
from ztunnel_trio.model.address import SocketAddress
from ztunnel_trio.model.socket_target import SocketTarget, TcpAddress, UnixPath


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_booleans_are_two_words(text: str, *, value: bool) -> None:
    assert parse_bool(text) is value


@pytest.mark.parametrize("text", ["", "1", "True", "yes", " true"])
def test_other_words_are_no_booleans(text: str) -> None:
    with pytest.raises(ConfigError, match="provided string was not `true` or `false`"):
        parse_bool(text)


@pytest.mark.parametrize(
    ("text", "bits", "value"),
    [
        ("0", 16, 0),
        ("+7", 16, 7),
        ("65535", 16, 65535),
        ("007", 32, 7),
        ("18446744073709551615", 64, 2**64 - 1),
    ],
)
def test_numbers_are_decimal_digits(text: str, bits: int, value: int) -> None:
    assert parse_unsigned(text, bits) == value


@pytest.mark.parametrize(
    ("text", "bits", "reason"),
    [
        ("", 32, "cannot parse integer from empty string"),
        ("-1", 32, "invalid digit found in string"),
        ("+", 32, "invalid digit found in string"),
        ("4k", 32, "invalid digit found in string"),
        (" 1", 32, "invalid digit found in string"),
        ("0x10", 32, "invalid digit found in string"),
        ("1_000", 32, "invalid digit found in string"),
        ("²", 32, "invalid digit found in string"),
        ("65536", 16, "number too large to fit in target type"),
        ("9" * 5000, 64, "number too large to fit in target type"),
    ],
)
def test_what_is_no_number_says_why(text: str, bits: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_unsigned(text, bits)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1h30m", 5400),
        ("3m 31s", 211),
        ("3m+31", 211),
        ("3m + 31 s", 211),
        ("1m*10", 600),
        ("1m*1m", 3600),
        ("500ms*2", 1),
        ("0", 0),
        ("1 2", 3),
        (" 5 ", 5),
        ("1Y", 365 * 86400),
        ("2years", 730 * 86400),
        ("1mon", 30 * 86400),
        ("1week1d", 8 * 86400),
        ("2hr", 7200),
        ("1MIN", 60),
        ("250msec", 0.25),
        ("7us", 7e-6),
        ("7µs", 7e-6),
        ("7μsecond", 7e-6),
        ("9nanoseconds", 9e-9),
        ("18446744073s", 18446744073),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Empty input"),
        ("1.5s", "expected a number"),
        ("-1s", "expected a number"),
        ("abc", "expected a number"),
        (" ", "expected a number"),
        ("1s+", "expected a number"),
        ("+1s", "expected a number"),
        ("1s++1s", "expected a number"),
        ("1fortnight", "unknown unit: fortnight"),
        ("1mss", "unknown unit: mss"),
        ("1h+2m*3", "cannot be mixed"),
        ("1h 2m*3", "cannot be mixed"),
        ("1h*2 3m", "cannot be mixed"),
        ("18446744074s", "overflow"),
        ("1y*1y", "overflow"),
        ("9" * 30, "expected a number"),
    ],
)
def test_what_is_no_duration_says_why(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "cpus"), [("500m", 1), ("2500m", 3), ("1.5", 2), ("2", 2), (".5", 1), ("1e1", 10), ("+3", 3)]
)
def test_cpu_quantities_are_rounded_up(text: str, cpus: int) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize("text", ["0", "-1", "inf", "NaN", "0m", "1e999"])
def test_cpu_quantities_are_positive(text: str) -> None:
    with pytest.raises(ConfigError, match="must be a positive CPU quantity"):
        parse_cpus(text)


@pytest.mark.parametrize("text", ["", "m", "two", "1 ", "1_0", "1mm"])
def test_what_is_no_cpu_quantity(text: str) -> None:
    with pytest.raises(ConfigError, match="invalid float literal"):
        parse_cpus(text)


@pytest.mark.parametrize(
    ("text", "cpus", "threads"),
    [("30%", 16, 5), ("10%", 4, 1), ("100%", 8, 8), ("0.1%", 2, 1), ("4", 16, 4), ("0", 16, 16), ("0", 0, 1)],
)
def test_thread_counts(text: str, cpus: int, threads: int) -> None:
    assert parse_threads(text, cpus) == threads


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("150%", "percentage must be between 0 and 100"),
        ("0%", "percentage must be between 0 and 100"),
        ("nan%", "percentage must be between 0 and 100"),
        ("x%", "invalid percentage: x"),
        ("x", "invalid number: invalid digit"),
        ("-1", "invalid number: invalid digit"),
    ],
)
def test_what_is_no_thread_count(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_threads(text, 4)


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "shown"),
    [
        ("istiod.istio-system.svc:15012", "https", "istiod.istio-system.svc", 15012, None),
        ("https://10.77.0.1:15012", "https", "10.77.0.1", 15012, "https://10.77.0.1:15012"),
        ("http://ca/path?x", "http", "ca", 80, "http://ca/path?x"),
        ("HTTPS://ca", "https", "ca", 443, "HTTPS://ca"),
        ("https://[fd77::1]:1", "https", "fd77::1", 1, "https://[fd77::1]:1"),
        ("[::1]:15012", "https", "::1", 15012, None),
    ],
)
def test_addresses_of_control_planes(text: str, scheme: str, host: str, port: int, shown: str | None) -> None:
    address = parse_uri(text)

    assert (address.scheme, address.host, address.port) == (scheme, host, port)
    assert str(address) == (shown or f"https://{text}")


@pytest.mark.parametrize(
    "text",
    ["http://[bad", "", "https://", "ftp://x", "a b", "https://x:99999", "https://[1::2::3]", "/path", "ü"],
)
def test_what_is_no_uri(text: str) -> None:
    with pytest.raises(ConfigError, match="invalid uri: "):
        parse_uri(text)


def test_listen_addresses() -> None:
    assert parse_listen_address("localhost:53", ipv6=True) == Localhost(ipv6=True, port=53)
    assert parse_listen_address("127.0.0.1:53", ipv6=True) == SocketAddress.parse("127.0.0.1:53")
    assert parse_listen_address("[::]:53", ipv6=False) == SocketAddress.parse("[::]:53")


@pytest.mark.parametrize("text", ["not-an-address", "localhost", "localhost:x", "10.0.0.1", "::1:53", ""])
def test_what_is_no_listen_address(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_listen_address(text, ipv6=True)


def test_headers_come_from_variable_names() -> None:
    assert parse_header("XDS_HEADER_X_Tenant", "XDS_HEADER_", "blue") == ("x_tenant", "blue")


@pytest.mark.parametrize("name", ["XDS_HEADER_", "XDS_HEADER_A B", "XDS_HEADER_X-BIN", "XDS_HEADER_Ü"])
def test_header_names_that_cannot_be_sent(name: str) -> None:
    with pytest.raises(ConfigError, match=f"failed to parse header key: {name}"):
        parse_header(name, "XDS_HEADER_", "x")


def test_header_values_that_cannot_be_sent() -> None:
    with pytest.raises(ConfigError, match="failed to parse header value: a\nb"):
        parse_header("XDS_HEADER_A", "XDS_HEADER_", "a\nb")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("unix:///run/a.sock", UnixPath("/run/a.sock")),
        ("unix:/run/a.sock", UnixPath("/run/a.sock")),
        ("tcp://localhost:8081", TcpAddress("localhost", 8081)),
        ("tcp://[::1]:8081", TcpAddress("::1", 8081)),
    ],
)
def test_a_socket_is_a_path_or_an_address(text: str, target: SocketTarget) -> None:
    assert parse_socket(text) == target


@pytest.mark.parametrize(
    "text",
    [
        "/run/a.sock",
        "unix:",
        "unix:a.sock",
        "unix://a/b",
        "unix:////a",
        "unix:///a?b",
        "unix:///a#b",
        "tcp:localhost:1",
        "tcp://localhost",
        "tcp://:1",
        "tcp://a:65536",
        "tcp://a/b:1",
        "tcp://me@a:1",
        "http://a:1",
        "",
    ],
)
def test_what_names_no_socket_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_socket(text)
