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


class TunnelState(enum.Enum):
    OPEN = "open"
    RELEASING = "releasing"
    DRAINING = "draining"
    LEAVING = "leaving"
    CLOSING = "closing"
    GONE = "gone"


class TunnelInput(enum.Enum):
    RELEASE = "nobody will ask for more streams"
    DRAIN = "we take no more requests"
    GOAWAY = "the peer takes no more requests"
    EMPTY = "the last stream has ended, and all that was announced before the end has been said"
    END = "all streams end now"
    LOST = "the transport is over"


_ALWAYS: Final = {TunnelInput.END: TunnelState.CLOSING, TunnelInput.LOST: TunnelState.GONE}

# What is not in the table changes nothing.
MOVES: Final[dict[TunnelState, dict[TunnelInput, TunnelState]]] = {
    TunnelState.OPEN: {
        TunnelInput.RELEASE: TunnelState.RELEASING,
        TunnelInput.DRAIN: TunnelState.DRAINING,
        TunnelInput.GOAWAY: TunnelState.LEAVING,
        **_ALWAYS,
    },
    # A client that releases has the last word, whatever the peer said in between.
    TunnelState.RELEASING: {TunnelInput.EMPTY: TunnelState.CLOSING, **_ALWAYS},
    # A peer that leaves while we drain need not hear our second GOAWAY.
    TunnelState.DRAINING: {
        TunnelInput.EMPTY: TunnelState.CLOSING,
        TunnelInput.GOAWAY: TunnelState.LEAVING,
        **_ALWAYS,
    },
    TunnelState.LEAVING: {
        TunnelInput.EMPTY: TunnelState.CLOSING,
        TunnelInput.RELEASE: TunnelState.RELEASING,
        **_ALWAYS,
    },
    TunnelState.CLOSING: {TunnelInput.LOST: TunnelState.GONE},
    TunnelState.GONE: {},
}

ALIVE: Final = frozenset((TunnelState.OPEN, TunnelState.RELEASING, TunnelState.DRAINING, TunnelState.LEAVING))
