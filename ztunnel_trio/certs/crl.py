"""The revocation list of the mesh's CAs: loaded, reloaded on change, asked at every handshake, and applied
to connections that were established before.

Theory of operation. `open()` reads `CRL_PATH`; `run()` looks at the file once a second through every link
(Kubernetes swaps one of its directory) and, when it has been still for two seconds, loads it in a thread.
What fails to load leaves the list before in force. Lists that an authority pushes (`push`) are in force
beside those of the file from then on. A connection is registered with its verified path after
the handshake; each load walks all of them, a set lookup a certificate, and calls back for those whose path
is now revoked.
"""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NoReturn, Protocol

import trio

from ztunnel_trio.decide.revoked import Path, Revocations, is_revoked, joined, parse_revocations
from ztunnel_trio.errors import PeerBrokeProtocol
from ztunnel_trio.model.ending import CertificateInvalid, Invalid, TlsCause, TlsRefused
from ztunnel_trio.supervise.wall_clock import utc_now

log = logging.getLogger("ztunnel::tls::crl")

REVOKED: Final = TlsRefused(CertificateInvalid(Invalid.REVOKED))
UNREADABLE: Final = TlsRefused(TlsCause.UNREADABLE_NAMES)
Reporter = Literal["source", "destination"]
_CHECKS_AT_ONCE: Final = 256


class CrlMetrics(Protocol):
    """What is counted of revocation."""

    def crl_rejection(self, reporter: Reporter, /) -> None:
        """A handshake was refused or a connection closed."""

    def crl_untracked(self, reporter: Reporter, /) -> None:
        """A connection could not be registered and lives on unwatched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrlSettings:
    """How soon a change is seen."""

    look_seconds: float = 1.0
    still_seconds: float = 2.0
    """ztunnel src/tls/crl.rs: a change counts when nothing followed for so long."""
    most_bytes: int = 64 * 1024 * 1024


@dataclass(slots=True, eq=False)
class WatchedConnection:
    """One watched connection; `release` it when it ends."""

    _keeper: "CrlKeeper"
    reporter: Reporter
    on_revoked: Callable[[], None]

    def release(self) -> None:
        """Watch it no more. Doing it twice changes nothing."""
        self._keeper._registered.pop(self, None)


class CrlKeeper:
    """The lists in force and the connections they may end. See the module's text."""

    def __init__(
        self,
        path: str | None,
        metrics: CrlMetrics,
        settings: CrlSettings | None = None,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._path = path
        self._now = now
        self._is_late = False
        self._metrics = metrics
        self._settings = settings or CrlSettings()
        self._registered: dict[WatchedConnection, Path] = {}
        self._seen: tuple[int, ...] | None = None
        self._of_file = Revocations()
        self._pushed: dict[bytes, Revocations] = {}
        self._news = trio.Event()  # lists were pushed
        self.revocations = Revocations()
        self.generation = 0

    @classmethod
    def open(cls, path: str, metrics: CrlMetrics, settings: CrlSettings | None = None) -> "CrlKeeper | None":
        """Load the list for the first time. A file that is not there yet is waited for by `run`; one that
        cannot be read switches revocation off for the life of the process, and None is returned.
        """
        keeper = cls(path, metrics, settings)
        keeper._seen = keeper._look()
        try:
            keeper._take(keeper._load())
        except FileNotFoundError:
            log.warning("CRL file %s does not exist; waiting for it", path)
        except (OSError, PeerBrokeProtocol) as error:
            log.warning("failed to initialize crl manager: %s", error)
            return None
        return keeper

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Follow the file, if there is one, and what is pushed, until cancelled."""
        task_status.started()
        while True:
            with trio.move_on_after(self._settings.look_seconds):
                await self._news.wait()
            if self._news.is_set():
                self._news = trio.Event()
                await self._end_revoked()
            if self._look() != self._seen:
                await self._settle()
                await self._reload()
            self._look_at_clock()

    def push(self, lists_der: Collection[bytes]) -> None:
        """Replace all lists that were pushed before. One that cannot be read is left out, with a warning.

        New handshakes are judged by them at once, open connections by `run`.
        """
        before, self._pushed = self._pushed, {}
        for der in lists_der:
            try:
                self._pushed[der] = before.get(der) or parse_revocations(der)
            except PeerBrokeProtocol as error:
                log.warning("a revocation list that came with a certificate is left out: %s", error)
        self._combine()
        self._news.set()

    def verdict(self, chain_der: Sequence[bytes], *, reporter: Reporter) -> TlsRefused | None:
        """Judge a new peer by its verified chain, the leaf first and the anchor last.

        Returns why it is refused, or None. A chain that cannot be read is refused: it cannot be checked.
        """
        if self.revocations.is_empty:
            return None
        try:
            path = Path.parse(chain_der)
        except PeerBrokeProtocol:
            return UNREADABLE
        if not is_revoked(path, self.revocations):
            return None
        self._metrics.crl_rejection(reporter)
        return REVOKED

    def register(
        self, chain_der: Sequence[bytes], on_revoked: Callable[[], None], *, reporter: Reporter
    ) -> WatchedConnection:
        """Watch an established connection. `on_revoked` is called at most once, from `register` itself if a
        list already names it; it must not block.
        """
        registration = WatchedConnection(self, reporter, on_revoked)
        try:
            path = Path.parse(chain_der)
        except PeerBrokeProtocol as error:
            log.warning("connection is not tracked for revocation: %s", error)
            self._metrics.crl_untracked(reporter)
            return registration
        self._registered[registration] = path
        if is_revoked(path, self.revocations):
            self._revoke(registration)
        return registration

    def seconds_left(self) -> float | None:
        """Until the first list is to be replaced by its `nextUpdate`, negative past it; None: none says."""
        due = self.revocations.next_update
        return None if due is None else (due - self._now()).total_seconds()

    def _look_at_clock(self) -> None:
        """Warn once of a list past its `nextUpdate`: it still counts, but what it lacks is not known."""
        left = self.seconds_left()
        is_late = left is not None and left < 0
        if is_late and not self._is_late:
            log.warning(
                "the CRL %s should have been replaced by %s", self._path, self.revocations.next_update
            )
        self._is_late = is_late

    async def _settle(self) -> None:
        """Wait until the file has not changed for a while."""
        state = self._look()
        while True:
            await trio.sleep(self._settings.still_seconds)
            before, state = state, self._look()
            if state == before:
                self._seen = state
                return

    async def _reload(self) -> None:
        try:
            loaded = await trio.to_thread.run_sync(self._load, abandon_on_cancel=True)
        except (OSError, PeerBrokeProtocol) as error:
            log.debug("CRL reload failed, the list before stays in force: %s", error)
            return
        self._take(loaded)
        log.info("CRL reloaded, generation %d", self.generation)
        await self._end_revoked()

    async def _end_revoked(self) -> None:
        """Judge every watched connection by the lists in force now."""
        for number, (registration, path) in enumerate(list(self._registered.items())):
            if registration in self._registered and is_revoked(path, self.revocations):
                self._revoke(registration)
            if number % _CHECKS_AT_ONCE == _CHECKS_AT_ONCE - 1:
                await trio.lowlevel.checkpoint()

    def _revoke(self, registration: WatchedConnection) -> None:
        registration.release()
        self._metrics.crl_rejection(registration.reporter)
        registration.on_revoked()

    def _take(self, loaded: Revocations) -> None:
        self._of_file = loaded
        self._combine()

    def _combine(self) -> None:
        self.revocations = joined([self._of_file, *self._pushed.values()])
        self.generation += 1

    def _load(self) -> Revocations:
        assert self._path is not None
        with open(self._path, "rb") as file:
            content = file.read(self._settings.most_bytes + 1)
        if len(content) > self._settings.most_bytes:
            raise PeerBrokeProtocol(f"CRL file is larger than {self._settings.most_bytes} bytes")
        return parse_revocations(content)

    def _look(self) -> tuple[int, ...] | None:
        """What tells one state of the file from another, through every link; None when it is not there."""
        if self._path is None:
            return None
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
