import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from ztunnel_trio import compliance

ROOT = Path(__file__).parents[2]
ASK = "from ztunnel_trio import compliance; print(compliance.shortfall(), end='')"
KNOWS_IT = ssl.OPENSSL_VERSION_INFO >= (3, 5)


def shortfall(conf: Path) -> str:
    """What a new process says of itself with these settings of OpenSSL."""
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), compliance.OPENSSL_CONF: str(conf)}
    command = [sys.executable, "-c", ASK]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def settings(tmp_path: Path, groups: str) -> Path:
    own = Path(compliance.settings_file({"COMPLIANCE_POLICY": "pqc"})).read_text()
    changed = tmp_path / "openssl.cnf"
    changed.write_text(own.replace("Groups = X25519MLKEM768", f"Groups = {groups}"))
    return changed


def test_openssl_is_given_a_file_that_exists_when_the_policy_asks() -> None:
    assert Path(compliance.settings_file({"COMPLIANCE_POLICY": "pqc"})).is_file()


@pytest.mark.parametrize(
    "environ", [{}, {"COMPLIANCE_POLICY": "fips"}, {"COMPLIANCE_POLICY": "pqc", "OPENSSL_CONF": "own.cnf"}]
)
def test_openssl_is_left_alone_without_the_policy_and_with_a_file_of_the_operators(
    environ: dict[str, str],
) -> None:
    assert compliance.settings_file(environ) == ""


def test_the_settings_hold_where_openssl_knows_the_group() -> None:
    told = shortfall(Path(compliance.settings_file({"COMPLIANCE_POLICY": "pqc"})))

    assert told == ("" if KNOWS_IT else f"{ssl.OPENSSL_VERSION} does not know it (3.5 does)")


def test_settings_that_allow_another_group_are_seen(tmp_path: Path) -> None:
    groups = "X25519MLKEM768:X25519" if KNOWS_IT else "X25519"
    told = shortfall(settings(tmp_path, groups))

    assert "0x001d" in told if KNOWS_IT else "does not know it" in told


def test_openssl_is_not_in_use_before_it_is_given_its_settings() -> None:
    code = "from ztunnel_trio import __main__, compliance; import sys; print(sorted({*sys.modules} & TLS))"
    code = f"TLS = {{'_ssl', '_hashlib'}}; {code}"
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"
