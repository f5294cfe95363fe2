import os
import threading

import pytest

from ztunnel_trio.observe.log.writer import LineWriter


def read_all(descriptor: int) -> bytes:
    data = b""
    while piece := os.read(descriptor, 1 << 16):
        data += piece
    return data


def test_lines_reach_a_free_descriptor_at_once() -> None:
    reader, writer_end = os.pipe()
    writer = LineWriter(writer_end)

    writer.write(b"one\n")

    assert os.read(reader, 100) == b"one\n"
    assert writer.close(0)
    os.close(reader)
    os.close(writer_end)


def test_no_line_is_lost_or_torn_when_the_reader_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ztunnel_trio.observe.log.writer.QUEUE_LINES", 50)
    reader, writer_end = os.pipe()
    writer = LineWriter(writer_end)
    lines = [b"%04d " % number + b"x" * 500 + b"\n" for number in range(500)]
    found: list[bytes] = []
    late = threading.Event()

    def read() -> None:
        late.wait()
        found.append(read_all(reader))

    thread = threading.Thread(target=read)
    thread.start()
    for number, line in enumerate(lines):
        if number == 150:  # 64 KiB in the pipe, then the queue; from 180 on the call would block
            late.set()
        writer.write(line)
    writer.write(b"y" * 10_000 + b"\n")  # too long for one atomic write
    assert writer.close(5)
    os.close(writer_end)
    thread.join()
    os.close(reader)

    assert found[0].splitlines(keepends=True) == [*lines, b"y" * 10_000 + b"\n"]


def test_a_descriptor_nobody_reads_any_more_loses_lines_quietly() -> None:
    reader, writer_end = os.pipe()
    writer = LineWriter(writer_end)
    os.close(reader)

    writer.write(b"one\n")
    writer.write(b"z" * 10_000 + b"\n")

    assert writer.close(5)
    os.close(writer_end)
