import errno
import os
import socket
import ssl

import pytest
import trio

from tests.fakes.tunnels import tcp_pair
from ztunnel_trio.model.ending import (
    DeadlinePassed,
    Ending,
    OtherFailure,
    SystemFailure,
    TlsLibrary,
    TlsRefused,
)
from ztunnel_trio.net.failures import (
    arm,
    disarm,
    ending_of,
    pending_error,
    reset_socket,
    shutdown_writing,
)


def test_a_reset_socket_resets_its_peer() -> None:
    near, far = tcp_pair()
    with near:
        near.setblocking(True)
        reset_socket(far)
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        reset_socket(near)
        reset_socket(near)


def test_the_kernels_failure_is_told_once() -> None:
    near, far = tcp_pair()
    with near:
        assert pending_error(near) is None
        reset_socket(far)
        error = pending_error(near)
        assert error is not None
        assert error.errno == errno.ECONNRESET
        assert pending_error(near) is None


def test_a_fin_that_cannot_be_sent_is_a_failure_unless_nobody_is_there() -> None:
    near, far = tcp_pair()
    assert shutdown_writing(near) is None
    reset_socket(far)
    with socket.socket() as alone:
        assert shutdown_writing(alone) is None
    near.close()
    assert shutdown_writing(near) == SystemFailure(errno.EBADF)


def test_an_armed_socket_resets_whoever_closes_it_and_a_disarmed_one_does_not() -> None:
    near, far = tcp_pair()
    with near:
        near.setblocking(True)
        arm(far)
        far.send(b"last words")
        disarm(far)
        far.close()
        assert near.recv(100) == b"last words"
        assert near.recv(100) == b""
    near, far = tcp_pair()
    with near:
        near.setblocking(True)
        arm(far)
        os.close(far.detach())  # as the kernel does for a process that dies
        with pytest.raises(ConnectionResetError):
            near.recv(1)


def caused(by: BaseException) -> trio.BrokenResourceError:
    try:
        raise trio.BrokenResourceError from by
    except trio.BrokenResourceError as error:
        return error


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (ConnectionRefusedError(111, "whatever"), SystemFailure(111)),
        (TimeoutError(110, "x"), SystemFailure(110)),
        (TimeoutError(), DeadlinePassed()),
        (trio.TooSlowError(), DeadlinePassed()),
        (caused(ConnectionResetError(104, "x")), SystemFailure(104)),
        (caused(trio.TooSlowError()), DeadlinePassed()),
        (trio.BrokenResourceError(), OtherFailure("broken pipe")),
        (ExceptionGroup("g", [OSError(32, "x")]), SystemFailure(32)),
        (OSError("own words"), OtherFailure("own words")),
        (ssl.SSLError(1, "wrong version number"), TlsRefused(TlsLibrary("('wrong version number',)"))),
        (EOFError(), OtherFailure("EOFError")),
    ],
)
def test_what_an_exception_says_of_the_end(error: BaseException, ending: Ending) -> None:
    if isinstance(error, ssl.SSLError):
        ending = TlsRefused(TlsLibrary(str(error)))
    assert ending_of(error) == ending
