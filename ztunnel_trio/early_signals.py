"""What SIGTERM and SIGINT do until the app listens to them: end the process at once, with exit code 0.

Nobody depends on a proxy that is still loading, so nothing has to be drained. The kernel's own answer would
be wrong twice: an end by a signal looks like a crash, and the first process of a container never gets it.
"""

import os
import signal
from types import FrameType
from typing import Final

ENDING: Final = (signal.SIGTERM, signal.SIGINT)


def leave_on_signals() -> None:
    """From here on, until somebody else takes the signals over."""
    for number in ENDING:
        signal.signal(number, leave)


def leave(number: int, frame: FrameType | None) -> None:
    """End here: an exception could come out of any import, finalizer or callback, which may swallow it."""
    os._exit(0)
