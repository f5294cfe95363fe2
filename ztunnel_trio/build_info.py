"""What this build is, in the words `istioctl` and people know."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ztunnel_trio import __version__
from ztunnel_trio.config import JsonValue
from ztunnel_trio.config.load import UNKNOWN_VERSION
from ztunnel_trio.facts import env

REVISION_FILE: Final = "revision.txt"  # put beside this module when a wheel or sdist is built: hatch_build.py
UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInfo:
    """What this build is; the keys are the reference's, the values tell the truth about ours."""

    version: str
    git_revision: str
    rust_version: str
    build_profile: str
    build_status: str
    istio_version: str
    crypto_provider: str

    def __str__(self) -> str:
        return (
            f'version.BuildInfo{{Version:"{self.version}", GitRevision:"{self.git_revision}", '
            f'RustVersion:"{self.rust_version}", BuildProfile:"{self.build_profile}", '
            f'BuildStatus:"{self.build_status}", IstioVersion:"{self.istio_version}", '
            f'CryptoProvider:"{self.crypto_provider}"}}'
        )

    def dump(self) -> dict[str, JsonValue]:
        """The `version` part of the config dump."""
        return {
            "version": self.version,
            "gitRevision": self.git_revision,
            "rustVersion": self.rust_version,
            "buildProfile": self.build_profile,
            "buildStatus": self.build_status,
            "istioVersion": self.istio_version,
            "cryptoProvider": self.crypto_provider,
        }


def build_info(environ: Mapping[str, str]) -> BuildInfo:
    """This build. There is no Rust in it: that field names the interpreter."""
    revision, status = git_revision(Path(__file__).with_name(REVISION_FILE))
    return BuildInfo(
        version=__version__,
        git_revision=revision,
        rust_version=f"none ({platform.python_implementation()} {platform.python_version()})",
        build_profile="release",
        build_status=status,
        istio_version=environ.get(env.META_ISTIO_VERSION, UNKNOWN_VERSION),
        crypto_provider="tls-openssl",
    )


def git_revision(path: Path) -> tuple[str, str]:
    """The commit a package was built from, and whether its files were changed since: `Clean` or `Modified`.

    Both are `unknown` in a checkout, whose files may change at any time.
    """
    try:
        revision, status = path.read_text().split()
    except (OSError, ValueError):
        return UNKNOWN, UNKNOWN
    return revision, status
