"""The life of a tunnel, as a table.

| State     | Meaning                                                                                 |
|-----------|-----------------------------------------------------------------------------------------|
| OPEN      | streams run, and new ones may come                                                      |
| RELEASING | client: nobody will ask for more; it ends with its last stream, and says so             |
| DRAINING  | server: the peer has been told to ask for no more; it ends with its last stream         |
| LEAVING   | the peer said GOAWAY; it ends with its last stream                                      |
| CLOSING   | streams have ended, last words are written, input is thrown away until the peer closes  |
| GONE      | the transport is closed                                                                 |
"""

import enum
from typing import Final


class State(enum.Enum):
    OPEN = "open"
    RELEASING = "releasing"
    DRAINING = "draining"
    LEAVING = "leaving"
    CLOSING = "closing"
    GONE = "gone"


class Input(enum.Enum):
    RELEASE = "nobody will ask for more streams"
    DRAIN = "we take no more requests"
    GOAWAY = "the peer takes no more requests"
    EMPTY = "the last stream has ended, and all that was announced before the end has been said"
    END = "all streams end now"
    LOST = "the transport is over"


_ALWAYS: Final = {Input.END: State.CLOSING, Input.LOST: State.GONE}

# What is not in the table changes nothing.
MOVES: Final[dict[State, dict[Input, State]]] = {
    State.OPEN: {
        Input.RELEASE: State.RELEASING,
        Input.DRAIN: State.DRAINING,
        Input.GOAWAY: State.LEAVING,
        **_ALWAYS,
    },
    # A client that releases has the last word, whatever the peer said in between.
    State.RELEASING: {Input.EMPTY: State.CLOSING, **_ALWAYS},
    # A peer that leaves while we drain need not hear our second GOAWAY.
    State.DRAINING: {Input.EMPTY: State.CLOSING, Input.GOAWAY: State.LEAVING, **_ALWAYS},
    State.LEAVING: {Input.EMPTY: State.CLOSING, Input.RELEASE: State.RELEASING, **_ALWAYS},
    State.CLOSING: {Input.LOST: State.GONE},
    State.GONE: {},
}

ALIVE: Final = frozenset((State.OPEN, State.RELEASING, State.DRAINING, State.LEAVING))
