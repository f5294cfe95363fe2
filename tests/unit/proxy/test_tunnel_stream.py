import pytest

from ztunnel_trio.proxy.tunnel_stream import TunnelStream, reason_text
from ztunnel_trio.wire.http2.codes import ErrorCode


def test_error_codes_read_as_in_the_reference() -> None:
    assert reason_text(7) == "refused stream before processing any application logic"
    assert reason_text(0) == "not a result of an error"
    assert reason_text(99) == "unknown reason"


class Told:
    """A tunnel that only remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.lost_text: str | None = None
        self.failure_text = "stream closed because of a broken pipe"

    def reset(self, stream_id: int, code: int) -> None:
        self.calls.append(("reset", code))

    def credit(self, stream_id: int, taken: int) -> None:
        self.calls.append(("credit", taken))

    def end(self, stream_id: int) -> None:
        self.calls.append(("end", stream_id))


class Reader:
    """A reader that takes everything and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def take(self, data: memoryview) -> int:
        self.told.append(bytes(data).decode())
        return len(data)

    def ended(self) -> None:
        self.told.append("ended")

    def was_reset(self, code: int) -> None:
        self.told.append(f"reset {code}")

    def resume(self) -> None:
        self.told.append("resume")


def stream_of(tunnel: Told) -> TunnelStream:
    return TunnelStream(tunnel, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "end_text", "failure"),
    [
        (ErrorCode.NO_ERROR, None, None),
        (ErrorCode.CONNECT_ERROR, None, None),
        (ErrorCode.CANCEL, "io error: broken pipe", None),
        (ErrorCode.STREAM_CLOSED, "io error: broken pipe", None),
        (
            ErrorCode.INTERNAL_ERROR,
            "io error: protocol error: unexpected internal error encountered",
            "protocol error: unexpected internal error encountered",
        ),
    ],
)
def test_how_a_received_reset_reads(code: ErrorCode, end_text: str | None, failure: str | None) -> None:
    stream = stream_of(Told())
    stream.peer_reset(code)

    assert stream.is_gone
    assert stream.end() == end_text
    assert stream.failure() == failure
    assert stream.no_answer_text() == f"stream error received: {reason_text(code)}"


def test_no_error_is_an_end_of_data_and_any_other_reset_one_of_the_connection() -> None:
    for code, told in ((0, ["ended", "resume"]), (8, ["reset 8"])):
        stream, reader = stream_of(Told()), Reader()
        stream.attach(reader)
        stream.peer_reset(code)
        assert reader.told == told


def test_a_reset_before_the_reader_came_is_told_to_it() -> None:
    stream, reader = stream_of(Told()), Reader()
    stream.peer_reset(8)
    stream.attach(reader)
    assert reader.told == ["reset 8"]


@pytest.mark.parametrize(("lost", "text"), [(None, None), ("Connection reset by peer (os error 104)",) * 2])
def test_a_lost_tunnel_is_an_end_and_fails_the_last_word(lost: str | None, text: str | None) -> None:
    tunnel = Told()
    tunnel.lost_text = lost
    stream, reader = stream_of(tunnel), Reader()
    stream.attach(reader)
    stream.tunnel_lost()
    stream.tunnel_lost()

    assert reader.told == ["ended", "resume"]
    assert stream.end() == (None if text is None else f"io error: {text}")
    assert stream.no_answer_text() == "stream closed because of a broken pipe"


def test_closing_resets_only_what_is_not_over() -> None:
    tunnel = Told()
    stream = stream_of(tunnel)
    assert stream.end() is None
    stream.close()
    stream.close()
    over = stream_of(tunnel)
    over.peer_ended()
    over.end()
    over.close()

    assert tunnel.calls == [("end", 1), ("reset", 8), ("end", 1)]


def test_what_is_kept_when_it_is_left_goes_back_to_the_peer() -> None:
    tunnel = Told()
    stream = stream_of(tunnel)
    stream.deliver(memoryview(b"abc"))
    stream.deliver(memoryview(b"de"))
    stream.peer_ended()
    stream.end()
    stream.close()
    assert tunnel.calls == [("end", 1), ("credit", 5)]


def test_the_peers_fault_reads_as_detected() -> None:
    stream = stream_of(Told())
    stream.peer_reset(1, by_us=True)
    assert stream.no_answer_text() == "stream error detected: unspecific protocol error detected"
