"""What is owed to speed: ways past a public interface, each beside the plain way round.

A module here holds one shortcut: what it saves, the promise of CPython, OpenSSL, Linux or Trio it rests on,
the plain form, and a proof that the short one works in this process. The proof is run once, at the first
use; where it fails the plain form is taken, and the config dump says so (`report`). Nothing here knows of
meshes, and nothing outside reaches for somebody else's private attribute. Decision 0010 lists the members,
and the cheap forms of public interfaces that live where they are used.

| Module         | Short                                 | Plain                              |
|----------------|---------------------------------------|------------------------------------|
| `accepting`    | `socket._accept` and the bare type    | `socket.accept`                    |
| `tls`          | OpenSSL's object inside `SSLSocket`   | `SSLSocket.read` and `.write`      |
| `tls_messages` | `SSLContext._msg_callback`            | nobody sees a handshake's messages |
| `queued`       | FIONREAD: is there anything to read?  | read until it would block          |
| `trio_wait`    | in front of Trio's wait for I/O       | a task that waits for a descriptor |
| `collector`    | no cyclic garbage looked for at start | CPython's thresholds               |
"""
