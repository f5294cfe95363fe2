"""Gives memory back to the system after much of it was let go.

glibc keeps what was freed between blocks that are still in use (malloc_trim(3)); when 20 000 label sets are
gone, that is a quarter of what they took.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Final

LIBC: Final = "libc.so.6"


def give_back() -> bool:
    """Have glibc return what is free, in some milliseconds; whether there is a glibc that can."""
    trim = malloc_trim()
    if trim is None:
        return False
    trim(0)
    return True


@cache
def malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(LIBC).malloc_trim
    except (OSError, AttributeError):  # another C library
        return None
    return found
