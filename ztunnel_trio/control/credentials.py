"""What the control plane's clients authenticate with and whom they trust, read anew for every attempt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

from ztunnel_trio.control.grpc import PemRoots, Roots
from ztunnel_trio.errors import PeerBrokeProtocol, Unavailable
from ztunnel_trio.model.certificate import CERTIFICATE_LABEL, pem_blocks
from ztunnel_trio.model.source import FromFile, Literal, RootSource, SystemRoots, TokenSource
from ztunnel_trio.observe.words import os_error_text

SYSTEM: Final = "SYSTEM"
_READ_SECONDS: Final = 10.0  # a projected volume that hangs must not hang us
_MOST_BYTES: Final = 4 * 1024 * 1024


async def load_roots(source: RootSource) -> Roots:
    """The trust anchors as they are now. Blocks that are no certificate are skipped.

    Raises:
        Unavailable: the file cannot be read, or there is no certificate, so that no server could be trusted.
    """
    if isinstance(source, SystemRoots):
        return source
    if isinstance(source, FromFile):
        name = f"root certificate file {source.path}"
        text = (await _read(source.path, "root certificate")).decode("ascii", "replace")
    else:
        name, text = "root certificate", source.text
    try:
        found = tuple(der for label, der in pem_blocks(text) if label == CERTIFICATE_LABEL)
    except PeerBrokeProtocol as error:
        raise Unavailable(f"invalid root certificate: {error}") from error
    if not found:
        raise Unavailable(f"{name}: holds no certificate")
    return PemRoots(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who we are to the control plane: request metadata, by `metadata()`.

    Without a token neither it nor the cluster is named. `extra_headers` are lower case already.
    """

    token: TokenSource | None
    cluster_id: str
    extra_headers: Mapping[str, str] = field(default_factory=dict)

    async def metadata(self) -> dict[str, str]:
        """The headers of one call; the token file is read now.

        Raises:
            Unavailable: no token can be read, or it holds what no header can carry.
        """
        headers = dict(self.extra_headers)
        if self.token is None:
            return headers
        token = await _load_token(self.token)
        if not _is_header_value(token):
            raise Unavailable("failed to parse header value: the token holds a line break or is not ASCII")
        headers["clusterid"] = self.cluster_id
        headers["authorization"] = f"Bearer {token}"
        return headers


async def _load_token(token: TokenSource) -> str:
    match token:
        case Literal(text):
            return text
        case FromFile(path):
            content = await _read(path, "token")
            if not content:
                raise Unavailable("token file exists, but was empty")
            return content.decode("latin-1")


def _is_header_value(value: str) -> bool:
    return bool(value) and all(" " <= letter <= "~" for letter in value)


async def _read(path: str, what: str) -> bytes:
    """Read a small file in a thread.

    Raises:
        Unavailable: it cannot be read, or is much too large to be what it should.
    """

    def read() -> bytes:
        with open(path, "rb") as file:
            return file.read(_MOST_BYTES + 1)

    try:
        with trio.fail_after(_READ_SECONDS):
            content = await trio.to_thread.run_sync(read, abandon_on_cancel=True)
    except OSError as error:
        raise Unavailable(f"{what} file {path}: {os_error_text(error)}") from error
    except trio.TooSlowError as error:
        raise Unavailable(f"{what} file {path}: reading takes too long") from error
    if len(content) > _MOST_BYTES:
        raise Unavailable(f"{what} file {path}: larger than {_MOST_BYTES} bytes")
    return content
