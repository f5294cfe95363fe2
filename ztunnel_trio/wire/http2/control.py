"""Frames that carry nothing of an application's: SETTINGS, PING, WINDOW_UPDATE, RST_STREAM, PRIORITY.

The peer's SETTINGS are kept by h2's book of them, which knows what values they may have.
"""

from typing import Final

import h2.exceptions
import h2.settings

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.budgets import Excess
from ztunnel_trio.wire.http2.codes import ErrorCode
from ztunnel_trio.wire.http2.compression import TABLE_BYTES
from ztunnel_trio.wire.http2.events import Event, PingAcked, ResetReceived, SettingsReceived, WindowOpened
from ztunnel_trio.wire.http2.frames import (
    ACK,
    LARGEST_WINDOW,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTING,
    SETTINGS,
    WINDOW_UPDATE,
    WORD,
    check_priority,
)
from ztunnel_trio.wire.http2.goaway import DRAIN_PING, Farewell
from ztunnel_trio.wire.http2.ledger import Ledger
from ztunnel_trio.wire.http2.streams import Input

_Codes = h2.settings.SettingCodes
_KNOWN: Final = frozenset(int(code) for code in _Codes)
_UPDATES_A_FRAME: Final = 2  # a DATA frame of ours opens two windows again


class Control:
    """The books of one connection's control frames."""

    __slots__ = ("_acks_due", "_data_seen", "_farewell", "_ledger", "_pings_seen", "_theirs")

    def __init__(self, ledger: Ledger, farewell: Farewell) -> None:
        self._ledger = ledger
        self._farewell = farewell
        self._theirs = h2.settings.Settings(client=not ledger.is_client)
        self._acks_due = 1  # acknowledgements of what we asked: our SETTINGS, and each PING
        self._data_seen = 0  # DATA frames of ours that were counted for WINDOW_UPDATEs …
        self._pings_seen = 0  # … and for PINGs

    def ping(self, payload: bytes) -> None:
        """Ask for a sign of life; eight bytes."""
        self._acks_due += 1
        self._ledger.out.put(PING, 0, 0, payload)

    def announce_end(self) -> None:
        """See `Farewell.announce`."""
        self._acks_due += 1
        self._farewell.announce()

    def received(self, kind: int, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        """One whole frame of a length its kind can have. Kinds nobody knows mean nothing (RFC 9113 5.5).

        Raises:
            PeerBrokeProtocol: the connection is over.
        """
        if kind == WINDOW_UPDATE:
            self._window_update(stream_id, WORD.unpack(payload)[0] & LARGEST_WINDOW, events)
        elif kind == RST_STREAM:
            self._reset(stream_id, WORD.unpack(payload)[0], events)
        elif kind == SETTINGS:
            self._settings(flags, stream_id, payload, events)
        elif kind == PING:
            self._ping(flags, stream_id, payload, events)
        elif kind == PUSH_PROMISE:
            raise PeerBrokeProtocol("a push nobody allowed", ErrorCode.PROTOCOL_ERROR)
        else:
            if kind == PRIORITY:
                check_priority(stream_id, WORD.unpack_from(payload)[0])
            self._ledger.budgets.spend(Excess.IDLE_FRAMES)

    def _acknowledged(self) -> None:
        if self._acks_due:
            self._acks_due -= 1
        else:
            self._ledger.budgets.spend(Excess.ACKNOWLEDGEMENTS)

    def _ping(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise PeerBrokeProtocol("PING on a stream", ErrorCode.PROTOCOL_ERROR)
        if not flags & ACK:
            sent = self._ledger.windows.sent
            earned, self._pings_seen = sent - self._pings_seen, sent
            self._ledger.budgets.spend(Excess.PING, earned=earned)
            self._ledger.out.put(PING, ACK, 0, payload)
            return
        self._acknowledged()
        if payload == DRAIN_PING:
            self._farewell.ping_acked()
        else:
            events.append(PingAcked(payload))

    def _settings(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise PeerBrokeProtocol("SETTINGS on a stream", ErrorCode.PROTOCOL_ERROR)
        if flags & ACK:
            if payload:
                raise PeerBrokeProtocol("SETTINGS of a length they cannot have", ErrorCode.FRAME_SIZE_ERROR)
            self._acknowledged()
            return
        ledger, theirs = self._ledger, self._theirs
        ledger.budgets.spend(Excess.SETTINGS)
        try:
            for code, value in SETTING.iter_unpack(payload):
                if code in _KNOWN:
                    theirs[code] = value
                    theirs.acknowledge()  # in force at once: what follows may name it again
        except h2.exceptions.InvalidSettingsValueError as error:
            raise PeerBrokeProtocol(str(error), int(error.error_code)) from error
        ledger.out.put(SETTINGS, ACK, 0, b"")
        table = min(theirs.header_table_size, TABLE_BYTES)
        if table != ledger.encoder.header_table_size:
            ledger.encoder.header_table_size = table
        ledger.out.frame_size = theirs.max_frame_size
        ledger.windows.resize(theirs.initial_window_size, list(ledger.streams))
        events.append(SettingsReceived(theirs.get(_Codes.MAX_CONCURRENT_STREAMS)))
        events.append(WindowOpened(0))

    def _window_update(self, stream_id: int, increment: int, events: list[Event]) -> None:
        ledger = self._ledger
        sent = ledger.windows.sent
        earned, self._data_seen = _UPDATES_A_FRAME * (sent - self._data_seen), sent
        ledger.budgets.spend(Excess.WINDOW_UPDATES, earned=earned)
        stream = None
        if stream_id:
            stream = ledger.hear(stream_id, Input.WINDOW_UPDATE, events)
            if stream is None:
                return
        wrong = ledger.windows.widen(stream, increment)
        if wrong is None:
            events.append(WindowOpened(stream_id))
        elif stream is not None:
            ledger.fail(stream, wrong, events)
        else:
            raise PeerBrokeProtocol("a window of a size it cannot have", wrong)

    def _reset(self, stream_id: int, code: int, events: list[Event]) -> None:
        stream = self._ledger.hear(stream_id, Input.RESET, events)
        if stream is not None:
            events.append(ResetReceived(stream_id, code))
            self._ledger.was_reset(stream)
