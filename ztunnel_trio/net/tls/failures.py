"""What OpenSSL's failures say about the end of a connection."""

import re
import ssl
from typing import Final

from ztunnel_trio.model.ending import (
    AlertReceived,
    CertificateInvalid,
    Ending,
    Invalid,
    TlsCause,
    TlsLibrary,
    TlsRefused,
)

# openssl/x509_vfy.h: X509_V_ERR_*
_FINDINGS: Final = {
    2: Invalid.UNKNOWN_ISSUER,  # issuer certificate not found
    7: Invalid.BAD_SIGNATURE,
    9: Invalid.NOT_YET_VALID,
    10: Invalid.EXPIRED,
    18: Invalid.UNKNOWN_ISSUER,  # self-signed leaf
    19: Invalid.UNKNOWN_ISSUER,  # self-signed certificate in the chain
    20: Invalid.UNKNOWN_ISSUER,  # no local issuer
    21: Invalid.UNKNOWN_ISSUER,  # the leaf alone cannot be verified
    23: Invalid.REVOKED,
    24: Invalid.WRONG_PURPOSE,  # an issuer that is no CA
    26: Invalid.WRONG_PURPOSE,
    79: Invalid.WRONG_PURPOSE,
}
_NO_CERTIFICATE: Final = frozenset({"PEER_DID_NOT_RETURN_A_CERTIFICATE", "NO_CERTIFICATE_RETURNED"})
_NOT_TLS: Final = frozenset(
    {"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "BAD_RECORD_TYPE"}
)
_ALERT: Final = re.compile(r"^(?:SSLV3|TLSV1|TLSV13)_ALERT_(.+)$")


class TlsFailed(Exception):
    """No secured connection, or not with this peer; `ending` says why."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


class TlsMisconfigured(Exception):
    """OpenSSL refuses our own certificate, key or roots; the text says what it is about."""


def tls_ending(error: ssl.SSLError) -> TlsRefused:
    """What a failure of OpenSSL says."""
    reason: str = getattr(error, "reason", None) or ""  # an error made by hand has none
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsRefused(CertificateInvalid(_FINDINGS.get(error.verify_code, error.verify_message)))
    if (
        isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
        or reason == "UNEXPECTED_EOF_WHILE_READING"
    ):
        return TlsRefused(TlsCause.ENDED)
    if (alert := _ALERT.match(reason)) is not None:
        return TlsRefused(AlertReceived(alert[1]))
    if reason in _NO_CERTIFICATE:
        return TlsRefused(TlsCause.NO_CERTIFICATE)
    if reason in _NOT_TLS:
        return TlsRefused(TlsCause.NOT_TLS)
    return TlsRefused(TlsLibrary(reason.replace("_", " ").lower() if reason else str(error)))
