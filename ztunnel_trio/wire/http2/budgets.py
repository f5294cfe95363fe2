"""How much of what carries nothing a peer may send, a second and connection.

A peer is authenticated and may still be hostile, or broken. What costs us processor time and moves no
payload has a budget of its kind; whoever goes beyond is told ENHANCE_YOUR_CALM and is cut off. Payload has
none: small DATA is honest traffic, served in turns. Each budget is at least four times what the busiest
honest traffic we know needs (tests/netns/test_honest_budgets.py).

A budget is a bucket: it holds `burst` and is refilled by `per_second`. Some grow with what we did ourselves:
a WINDOW_UPDATE or a PING answers DATA that we sent, an acknowledgement something that we asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.wire.http2.codes import ErrorCode


class Excess(Enum):
    """The kinds of abuse there are budgets against; the value is a metric's label."""

    SETTINGS = "settings"
    PING = "ping"
    ACKNOWLEDGEMENTS = "acknowledgements"
    WINDOW_UPDATES = "window_updates"
    IDLE_FRAMES = "idle_frames"
    EMPTY_DATA = "empty_data"
    GOAWAYS = "goaways"
    INFORMATIONAL_ANSWERS = "informational_answers"
    CONTINUATIONS = "continuations"
    HEADER_BLOCK = "header_block"
    STREAM_ERRORS = "stream_errors"
    UNANSWERED_RESETS = "unanswered_resets"
    UNREAD_ANSWERS = "unread_answers"


@dataclass(frozen=True, slots=True)
class Allowance:
    """So many at once, and so many more a second."""

    burst: int
    per_second: int


ALLOWANCES: Final[Mapping[Excess, Allowance]] = MappingProxyType(
    {
        # Honest: one or two in a connection's life. CVE-2019-9515: each wants an answer.
        Excess.SETTINGS: Allowance(64, 32),
        # Honest: a keepalive every few seconds, and one for a burst of DATA of ours (measuring the path).
        # CVE-2019-9512.
        Excess.PING: Allowance(256, 64),
        # Beyond those we asked for.
        Excess.ACKNOWLEDGEMENTS: Allowance(16, 4),
        # Beyond two for each DATA frame of ours: stream and connection.
        Excess.WINDOW_UPDATES: Allowance(2048, 512),
        # PRIORITY (RFC 9113 5.3.2) and kinds we do not know (5.5): some peers send one or two a stream.
        Excess.IDLE_FRAMES: Allowance(1024, 256),
        # DATA without payload or end, padding or not. CVE-2019-9518.
        Excess.EMPTY_DATA: Allowance(256, 64),
        # Honest: two, announced and final.
        Excess.GOAWAYS: Allowance(16, 2),
        # 1xx: at most a few for each request of ours.
        Excess.INFORMATIONAL_ANSWERS: Allowance(256, 64),
        # A header list of ours fits into four frames. CVE-2024-27316.
        Excess.CONTINUATIONS: Allowance(256, 128),
        # Streams that were reset because the peer broke their rules.
        Excess.STREAM_ERRORS: Allowance(1024, 64),
        # Streams reset before they were answered, whoever did: CVE-2023-44487, CVE-2025-8671. Honest: all
        # streams of a peer whose application gave up at once.
        Excess.UNANSWERED_RESETS: Allowance(512, 128),
    }
)


class OverBudget(PeerBrokeProtocol):
    """A peer sent more of one kind than any honest peer would."""

    def __init__(self, kind: Excess) -> None:
        super().__init__(f"more than its budget: {kind.value}", ErrorCode.ENHANCE_YOUR_CALM)
        self.kind = kind


class _Bucket:
    __slots__ = ("at", "peak", "used")

    def __init__(self, at: float) -> None:
        self.used = 0.0
        self.at = at
        self.peak = 0.0


class Budgets:
    """What one peer has used. `now` is set by whoever hands us input, in seconds of any steady clock."""

    __slots__ = ("_allowances", "_buckets", "now")

    def __init__(self, allowances: Mapping[Excess, Allowance] = ALLOWANCES) -> None:
        self._allowances = allowances
        self._buckets: dict[Excess, _Bucket] = {}  # those that were ever needed
        self.now = 0.0

    def spend(self, kind: Excess, *, earned: int = 0) -> None:
        """One more of this kind; `earned` were justified by what we sent since the last one.

        Raises:
            OverBudget: that was one too many.
        """
        self.charge(kind, earned=earned)
        self.check(kind)

    def check(self, kind: Excess) -> None:
        """Hold the peer to what `charge` noted.

        Raises:
            OverBudget: that was too much.
        """
        bucket = self._buckets.get(kind)
        if bucket is not None and bucket.used > self._allowances[kind].burst:
            raise OverBudget(kind)

    def charge(self, kind: Excess, *, earned: int = 0) -> None:
        """`spend` where nothing can be done about it now: `check` follows."""
        bucket = self._buckets.get(kind)
        if bucket is None:
            bucket = self._buckets[kind] = _Bucket(self.now)
        refilled = self._allowances[kind].per_second * (self.now - bucket.at)
        bucket.used = max(0.0, bucket.used - refilled - earned) + 1
        bucket.at = self.now
        bucket.peak = max(bucket.peak, bucket.used)

    def peaks(self) -> dict[Excess, float]:
        """How far each budget was ever used, as a share of it: what shows that honest peers stay below."""
        return {kind: bucket.peak / self._allowances[kind].burst for kind, bucket in self._buckets.items()}
