from ipaddress import ip_address
from pathlib import Path

import pytest

from ztunnel_trio.dns.resolv_conf import (
    ResolvConf,
    parse_hosts,
    parse_resolv_conf,
    read_hosts,
)
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.model.address import SocketAddress


def server(text: str) -> SocketAddress:
    return SocketAddress(ip_address(text), 53)


def test_a_cluster_resolv_conf_is_read() -> None:
    text = """
    # made by kubelet
    search istio-system.svc.cluster.local svc.cluster.local cluster.local
    nameserver 10.96.0.10
    options ndots:5
    """

    assert parse_resolv_conf(text) == ResolvConf(
        servers=(server("10.96.0.10"),),
        search=("istio-system.svc.cluster.local", "svc.cluster.local", "cluster.local"),
        ndots=5,
    )


def test_every_option_we_know_is_read() -> None:
    text = (
        "nameserver ::1\nnameserver 1.1.1.1\noptions timeout:3 attempts:4 edns0 rotate\ndomain Example.COM."
    )

    assert parse_resolv_conf(text) == ResolvConf(
        servers=(server("::1"), server("1.1.1.1")),
        domain="example.com",
        timeout_seconds=3,
        attempts=4,
        edns0=True,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("ndots:99 timeout:99 attempts:99", (15, 30, 5)),
        ("timeout:0 attempts:0 ndots:0", (0, 1, 1)),
        ("ndots:x timeout: attempts:-1", (1, 5, 2)),
    ],
)
def test_numbers_stay_within_what_the_c_library_allows(options: str, expected: tuple[int, int, int]) -> None:
    conf = parse_resolv_conf(f"nameserver 1.1.1.1\noptions {options}")

    assert (conf.ndots, conf.timeout_seconds, conf.attempts) == expected


def test_lines_that_make_no_sense_are_not_there() -> None:
    text = (
        "; comment\nnameserver\nnameserver nonsense\nnameserver fe80::1%eth0\nwhat\nnameserver 1.1.1.1 # dns"
    )

    assert parse_resolv_conf(text).servers == (server("1.1.1.1"),)


def test_of_several_search_lists_the_last_counts_and_equal_servers_are_one() -> None:
    conf = parse_resolv_conf("search a b\nsearch c.\nnameserver 1.1.1.1\nnameserver 1.1.1.1")

    assert (conf.search, conf.servers) == (("c",), (server("1.1.1.1"),))


def test_without_a_server_there_is_no_resolver() -> None:
    with pytest.raises(ConfigError, match="no name servers"):
        parse_resolv_conf("search a")


def test_the_hosts_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(b"1.1.1.1 one\n# \xff")

    assert read_hosts(tmp_path / "hosts") == {"one": (ip_address("1.1.1.1"),)}
    assert read_hosts(tmp_path / "missing") == {}


def test_hosts_have_all_their_addresses_under_all_their_names() -> None:
    hosts = parse_hosts("127.0.0.1 localhost\n::1 LocalHost. loop # me\nnonsense x\n1.1.1.1\n")

    assert hosts == {
        "localhost": (ip_address("127.0.0.1"), ip_address("::1")),
        "loop": (ip_address("::1"),),
    }
