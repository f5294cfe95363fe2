"""Which way each shortcut takes in this process, for the config dump."""

from ztunnel_trio.shortcuts import accepting, queued, tls, tls_messages


def report(*, is_in_front: bool) -> dict[str, str]:
    """The way taken, by shortcut. `is_in_front`: the engine's, which alone can prove its place."""
    return {
        "accept": "socket._accept" if accepting.is_short() else "socket.accept",
        "queued": "FIONREAD" if queued.is_short() else "read",
        "tls": "SSLSocket._sslobj" if tls.is_short() else "SSLSocket",
        "tls messages": "SSLContext._msg_callback" if tls_messages.is_short() else "not seen",
        "wait": "in front of Trio's" if is_in_front else "as a task",
    }
