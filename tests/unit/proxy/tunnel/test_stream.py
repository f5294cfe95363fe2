import pytest

from ztunnel_trio.model.ending import Failure, StreamReset, SystemFailure, TunnelLost
from ztunnel_trio.proxy.tunnel.stream import TunnelStream
from ztunnel_trio.wire.http2.codes import ErrorCode


class Told:
    """Streams that only remember."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def room(self, stream: TunnelStream) -> int:
        return 0

    def send(self, stream_id: int, chunk: memoryview, length: int) -> None:
        self.calls.append(("send", length))

    def delivered(self, stream_id: int, taken: int, /) -> None:
        self.calls.append(("delivered", taken))

    def taken(self, stream_id: int, taken: int) -> None:
        self.calls.append(("taken", taken))

    def end(self, stream: TunnelStream) -> None:
        self.calls.append(("end", stream.stream_id))

    def reset(self, stream: TunnelStream, code: int) -> None:
        self.calls.append(("reset", code))


class Reader:
    """A reader that takes everything and remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def take(self, data: memoryview) -> int:
        self.told.append(bytes(data).decode())
        return len(data)

    def ended(self) -> None:
        self.told.append("ended")

    def failed(self, failure: Failure) -> None:
        self.told.append(repr(failure))

    def resume(self) -> None:
        self.told.append("resume")


def stream_of(tunnel: Told) -> TunnelStream:
    return TunnelStream(tunnel, 1)


RESET, LOST = StreamReset(ErrorCode.CANCEL), TunnelLost(SystemFailure(104))


@pytest.mark.parametrize(
    ("failure", "of_the_end"),
    [
        (StreamReset(ErrorCode.NO_ERROR), None),
        (StreamReset(ErrorCode.CONNECT_ERROR), None),
        (RESET, RESET),
        (LOST, LOST),
    ],
)
def test_what_the_last_word_of_a_failed_stream_fails_with(
    failure: Failure, of_the_end: Failure | None
) -> None:
    stream = stream_of(Told())
    stream.fail(failure)
    stream.fail(StreamReset(ErrorCode.INTERNAL_ERROR))  # the first counts

    assert stream.is_gone
    assert stream.end() == of_the_end
    assert stream.no_answer() == failure


@pytest.mark.parametrize("failure", [StreamReset(ErrorCode.NO_ERROR), RESET, LOST])
def test_nothing_but_an_end_of_data_looks_like_one(failure: Failure) -> None:
    stream, reader = stream_of(Told()), Reader()
    stream.attach(reader)
    stream.fail(failure)
    assert reader.told == [repr(failure)]


def test_a_whole_answer_may_come_without_the_rest_of_the_request() -> None:
    """RFC 9113 8.1: RST_STREAM with NO_ERROR behind END_STREAM."""
    stream, reader = stream_of(Told()), Reader()
    stream.attach(reader)
    stream.peer_ended()
    stream.fail(StreamReset(ErrorCode.NO_ERROR))
    assert reader.told == ["ended", "resume"]


@pytest.mark.parametrize("failure", [RESET, LOST])
def test_a_failure_before_the_reader_came_is_told_to_it(failure: Failure) -> None:
    stream, reader = stream_of(Told()), Reader()
    stream.fail(failure)
    stream.attach(reader)
    assert reader.told == [repr(failure)]


def test_what_is_kept_is_told_with_the_failure_and_offered_behind_it() -> None:
    class Full(Reader):
        is_full = True

        def take(self, data: memoryview) -> int:
            return 0 if self.is_full else super().take(data)

    stream, reader = stream_of(Told()), Full()
    stream.attach(reader)
    stream.deliver(memoryview(b"abc"))
    stream.fail(LOST)
    assert (reader.told, stream.kept) == ([repr(LOST)], 3)

    reader.is_full = False
    stream.flush()
    assert (reader.told, stream.kept) == ([repr(LOST), "abc"], 0)


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
    assert tunnel.calls == [("end", 1), ("taken", 5)]
