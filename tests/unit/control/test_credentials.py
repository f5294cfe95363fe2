"""Tokens, roots, headers and addresses of the control plane's clients."""

from pathlib import Path

import pytest

from tests.fakes.pki import Authority
from tests.fakes.trio_test import trio_test
from ztunnel_trio.control.credentials import Caller, load_roots
from ztunnel_trio.control.grpc import PemRoots, Target
from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.source import FromFile, Literal, SystemRoots

ROOT = Authority.root("root")


@trio_test
async def test_roots_are_every_certificate_of_the_pem(tmp_path: Path) -> None:
    text = f"# a comment\n{ROOT.pem}-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    path = tmp_path / "root.pem"
    Path(path).write_text(text)  # noqa: ASYNC240  a test's own file

    assert await load_roots(FromFile(str(path))) == PemRoots((ROOT.der,))
    assert await load_roots(Literal(text)) == PemRoots((ROOT.der,))
    assert await load_roots(SystemRoots()) == SystemRoots()
    with pytest.raises(Unavailable, match=r"No such file or directory \(os error 2\)"):
        await load_roots(FromFile(str(tmp_path / "gone")))
    with pytest.raises(Unavailable, match="invalid root certificate"):
        await load_roots(Literal("-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----"))


@trio_test
async def test_roots_without_a_certificate_are_told_by_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    Path(path).write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")  # noqa: ASYNC240

    with pytest.raises(Unavailable, match=f"root certificate file {path}: holds no certificate"):
        await load_roots(FromFile(str(path)))
    with pytest.raises(Unavailable, match=r"^root certificate: holds no certificate"):
        await load_roots(Literal("./var/run/root-cert.pem"))


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


def test_targets_read_as_addresses() -> None:
    assert str(Target(host="::1", port=1)) == "https://[::1]:1"
