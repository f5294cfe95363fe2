"""Lines to a descriptor: directly while it takes them, else through a thread.

Lines go to the descriptor directly while it takes them at once. When it does not, they wait in a
queue of `QUEUE_LINES` that a thread empties with blocking writes, and a caller that finds the queue
full blocks: no line is ever lost, and memory is bounded (ztunnel src/telemetry.rs).
"""

import os
import select
import threading
from collections import deque
from typing import IO, Final

QUEUE_LINES: Final = 10_000  # ztunnel src/telemetry.rs
BATCH_LINES: Final = 64  # lines one write of the thread carries at most, same source
CLOSE_SECONDS: Final = 1.0
ATOMIC_BYTES: Final = select.PIPE_BUF  # a pipe that polls writable takes so much without blocking


class LineWriter:
    """Whole lines to one descriptor, in order, from any thread; see the module's theory of operation."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[bytes] = deque()
        self._thread: threading.Thread | None = None
        self._writing = False
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, line: bytes) -> None:
        """Write a line that ends with a newline. Blocks only while the queue is full."""
        with self._lock:
            if not self._waiting and not self._writing and len(line) <= ATOMIC_BYTES and self._is_free():
                try:
                    line = line[os.write(self._descriptor, line) :]
                except BlockingIOError:
                    pass
                except OSError:
                    return  # as the reference: a line that cannot be written is lost, the next is tried
                if not line:
                    return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            while len(self._waiting) >= QUEUE_LINES:
                self._changed.wait()
            self._waiting.append(line)
            self._changed.notify_all()

    def close(self, seconds: float = CLOSE_SECONDS) -> bool:
        """Wait that long for the queue to empty; whether it did. Later lines are still written."""
        with self._lock:
            return self._changed.wait_for(lambda: not self._waiting and not self._writing, seconds)

    def _is_free(self) -> bool:
        ready = self._poll.poll(0)
        return bool(ready) and ready[0][1] & select.POLLOUT != 0

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._waiting:
                    self._changed.wait()
                batch = b"".join(self._waiting.popleft() for _ in range(min(BATCH_LINES, len(self._waiting))))
                self._writing = True
                self._changed.notify_all()
            try:
                write_all(self._descriptor, batch)
            finally:
                with self._lock:
                    self._writing = False
                    self._changed.notify_all()


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, waiting as long as it takes; an error drops the rest."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except OSError:
            return


class StreamWriter:
    """Lines to a Python text stream that has no descriptor."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, line: bytes) -> None:
        self._stream.write(line.decode())

    def close(self, seconds: float = CLOSE_SECONDS) -> bool:
        self._stream.flush()
        return True
