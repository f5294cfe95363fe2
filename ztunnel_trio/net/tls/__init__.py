"""Mutual TLS between node proxies, on OpenSSL.

| File           | What                                                                             |
|----------------|----------------------------------------------------------------------------------|
| `contexts`     | SSL contexts, one a certificate and role                                         |
| `chain_choice` | which of several roots of one name a peer's chain belongs to                     |
| `handshake`    | on the connection's own descriptor, as Trio coroutines; how a refused peer is told |
| `peer`         | who is at the other end, and whether we speak to it                              |
| `failures`     | what OpenSSL's errors say                                                        |
| `memory`       | TLS inside a tunnel's stream, where there is no descriptor                       |

OpenSSL checks the chain, validity and key usage against the roots that came with the certificate this side
presents; what SPIFFE adds is checked after the handshake and before any byte of HTTP/2 is acted on.

Unlike rustls, for lack of an interface in CPython's `ssl`:
  * TLS 1.3 offers OpenSSL's default suites, ChaCha20 among them, not only AES-GCM; groups are its defaults.
  * A refusal for the peer's identity or by the verdict cannot be an alert: it is told in the protocol above.
  * CertificateRequest names no acceptable authorities. Expired trust anchors are not accepted.
  * A leaf signed by the root itself is sent with the root: OpenSSL would look for one anew each time.
"""
