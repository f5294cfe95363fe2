"""Tokens, roots, headers and addresses of the control plane's clients."""

from pathlib import Path

import pytest

from tests.fakes.pki import Authority
from tests.fakes.trio_test import trio_test
from ztunnel_trio.control.credentials import (
    Caller,
    FromFile,
    Literal,
    check_header,
    load_roots,
    parse_target,
    root_source,
    token_source,
)
from ztunnel_trio.control.grpc import PemRoots, SystemRoots, Target
from ztunnel_trio.errors import ConfigError, Unavailable

ROOT = Authority.root("root")


def test_a_setting_is_a_file_where_there_is_one(tmp_path: Path) -> None:
    there, gone = str(tmp_path), str(tmp_path / "gone")

    assert [token_source(one) for one in (there, "abc")] == [FromFile(there), Literal("abc")]
    assert [root_source(one) for one in (there, gone, "SYSTEM")] == [
        FromFile(there),
        Literal(gone),
        SystemRoots(),
    ]


@trio_test
async def test_roots_are_every_certificate_of_the_pem(tmp_path: Path) -> None:
    text = f"# a comment\n{ROOT.pem}-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    path = tmp_path / "root.pem"
    Path(path).write_text(text)  # noqa: ASYNC240  a test's own file

    assert await load_roots(FromFile(str(path))) == PemRoots((ROOT.der,))
    assert await load_roots(Literal(text)) == PemRoots((ROOT.der,))
    assert await load_roots(Literal("./var/run/root-cert.pem")) == PemRoots(())
    assert await load_roots(SystemRoots()) == SystemRoots()
    with pytest.raises(Unavailable, match=r"No such file or directory \(os error 2\)"):
        await load_roots(FromFile(str(tmp_path / "gone")))
    with pytest.raises(Unavailable, match="invalid root certificate"):
        await load_roots(Literal("-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----"))


@trio_test
async def test_cluster_and_token_go_together_and_override_what_else_is_set() -> None:
    extra = {"authorization": "mine", "x": "1"}

    assert await Caller(token=None, cluster_id="c", extra_headers=extra).metadata() == extra
    assert await Caller(token=Literal("t"), cluster_id="c", extra_headers=extra).metadata() == {
        "authorization": "Bearer t",
        "clusterid": "c",
        "x": "1",
    }


@pytest.mark.parametrize("token", ["t\n", "t\r", "\x00", "é", ""])
@trio_test
async def test_a_token_no_header_can_carry_is_named(token: str) -> None:
    with pytest.raises(Unavailable, match="failed to parse header value"):
        await Caller(token=Literal(token), cluster_id="c").metadata()


def test_header_settings_are_lower_case_names_with_printable_values() -> None:
    assert check_header("XDS_HEADER_HEADER_FOO", "HEADER_FOO", "a b") == ("header_foo", "a b")
    for name in ("", "a b", "é", "grpc-timeout", "te", "a-bin"):
        with pytest.raises(ConfigError, match="failed to parse header key"):
            check_header("V", name, "x")
    with pytest.raises(ConfigError, match="failed to parse header value"):
        check_header("V", "a", "x\n")


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("https://istiod.istio-system.svc:15012", Target(host="istiod.istio-system.svc", port=15012)),
        ("istiod:15012", Target(host="istiod", port=15012)),
        ("https://istiod", Target(host="istiod", port=443)),
        ("https://[::1]:15012", Target(host="::1", port=15012)),
    ],
)
def test_an_address_may_come_without_scheme_or_port(address: str, target: Target) -> None:
    assert parse_target("XDS_ADDRESS", address, "") == target


@pytest.mark.parametrize("address", ["http://istiod:15010", "https://", "https://istiod:x", "istiod:99999"])
def test_an_address_that_is_not_https_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="XDS_ADDRESS: "):
        parse_target("XDS_ADDRESS", address, None)


def test_targets_read_as_addresses() -> None:
    assert str(Target(host="::1", port=1)) == "https://[::1]:1"
    assert "secret" not in repr(Literal("secret"))
