import errno
import socket
import ssl

import pytest
import trio

from tests.fakes.tunnels import tcp_pair
from ztunnel_trio.net.failures import (
    in_direction,
    io_text,
    os_error_text,
    pending_error,
    reset_socket,
    shutdown_writing,
)


def test_errors_read_as_in_the_reference() -> None:
    assert os_error_text(OSError(errno.ECONNRESET, "x")) == "Connection reset by peer (os error 104)"
    assert os_error_text(OSError("odd")) == "odd"
    assert in_direction("send", "io error: x") == "send: io error: x"
    assert in_direction("receive", "while closing connection: x") == "while closing connection: receive: x"


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
    assert shutdown_writing(near) == "while closing connection: io error: Bad file descriptor (os error 9)"


def caused(by: BaseException) -> trio.BrokenResourceError:
    try:
        raise trio.BrokenResourceError from by
    except trio.BrokenResourceError as error:
        return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionRefusedError(111, "whatever"), "Connection refused (os error 111)"),
        (OSError(113, "x"), "No route to host (os error 113)"),
        (TimeoutError(110, "x"), "Connection timed out (os error 110)"),
        (TimeoutError(), "deadline has elapsed"),
        (trio.TooSlowError(), "deadline has elapsed"),
        (caused(ConnectionResetError(104, "x")), "Connection reset by peer (os error 104)"),
        (trio.BrokenResourceError(), "broken pipe"),
        (ExceptionGroup("g", [OSError(32, "x")]), "Broken pipe (os error 32)"),
        (OSError("own words"), "own words"),
        (ssl.SSLError(1, "wrong version number"), "('wrong version number',)"),
        (EOFError(), "EOFError"),
    ],
)
def test_io_errors_speak_as_the_system_does(error: BaseException, text: str) -> None:
    if isinstance(error, ssl.SSLError):
        text = str(error)
    assert io_text(error) == text
