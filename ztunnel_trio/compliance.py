"""Post-quantum key exchange and no other, where `COMPLIANCE_POLICY=pqc` asks for it.

Theory of operation. CPython's TLS can name one classical curve for a context and no other group. OpenSSL has
a file of settings for every context of the process, which it reads when it is first used. So the process is
pointed to that file (`settings_file`) before anything imports ssl or hashlib. Whether it took effect is not
believed but seen: `shortfall` makes a ClientHello and reads what it offers.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ztunnel_trio.facts import env
from ztunnel_trio.wire.client_hello import offered_groups

PQC: Final = "pqc"
OPENSSL_CONF: Final = "OPENSSL_CONF"  # read by OpenSSL itself
X25519MLKEM768: Final = 0x11EC  # IANA, TLS supported groups: 4588
_SETTINGS: Final = Path(__file__).with_name("pqc.cnf")


def settings_file(environ: Mapping[str, str]) -> str:
    """What `OPENSSL_CONF` has to be set to; empty where nothing is asked for, or it is set already.

    An operator's own file stays in force: it may name a provider. It has to restrict the groups itself then.
    """
    asked = environ.get(env.COMPLIANCE_POLICY) == PQC and OPENSSL_CONF not in environ
    return str(_SETTINGS) if asked else ""


def shortfall() -> str:
    """Why this process is not held to X25519MLKEM768 alone, for a sentence; empty when it is."""
    import ssl  # not before OPENSSL_CONF is set

    offered = offered_groups(_client_hello())
    if tuple(offered) == (X25519MLKEM768,):
        return ""
    if X25519MLKEM768 not in offered and ssl.OPENSSL_VERSION_INFO < (3, 5):
        return f"{ssl.OPENSSL_VERSION} does not know it (3.5 does)"
    return f"{ssl.OPENSSL_VERSION} offers the groups {_numbers(offered)}; see the file {OPENSSL_CONF} names"


def _client_hello() -> bytes:
    """What any client of this process would send first."""
    import ssl

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def _numbers(groups: Sequence[int]) -> str:
    return ", ".join(f"{group:#06x}" for group in groups) or "of nobody"
