"""What a source of workload certificates is to the keeper: its contract.

| Call      | What every provider promises                                                             |
|-----------|------------------------------------------------------------------------------------------|
| `fetch`   | the newest certificate of a key, or within a bounded time a failure that says what is wrong |
| `changed` | returns when `fetch` would give something else than it did last: newer, or withdrawn     |
| `close`   | ends what is held for a key, and with it the last reference to its private key           |
| `hurry`   | somebody waits: what is looked for now and then is looked for at once                    |

A failure of one key is no other key's. No text, log line or exception holds key material.
"""

from typing import Protocol

from ztunnel_trio.errors import Unavailable
from ztunnel_trio.model.certificate import WorkloadCertificate
from ztunnel_trio.model.certificate_key import CertificateKey


class Withdrawn(Unavailable):
    """The authority has taken a certificate back that it gave before: it is not to be presented again."""


class Pending(Unavailable):
    """Nothing has come yet, and something still may: no process, no registration, no answer."""


class CertificateProvider(Protocol):
    """Where certificates come from. See the module's text."""

    @property
    def attests_pods(self) -> bool:
        """Whether a key is of one pod. Such certificates cannot be had before the pod is here."""
        ...

    async def fetch(self, key: CertificateKey) -> WorkloadCertificate:
        """Get a certificate.

        Raises:
            Withdrawn: there was one, and there is to be none.
            Pending: none yet.
            Unavailable: with the text that waiters, logs and the config dump show.
        """
        ...

    async def changed(self, key: CertificateKey) -> None:
        """Return when `fetch` would give something else than it did last."""
        ...

    def close(self, key: CertificateKey) -> None:
        """Drop what is held for a key nobody needs any more. Must not block."""
        ...

    def hurry(self, key: CertificateKey) -> None:
        """Somebody waits for this key, which could not be had so far. Must not block."""
        ...
