"""Telling people what the demo saw: with rich on a terminal, else plain lines."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ztunnel_trio.lab.evidence import Finding, Story


@dataclass(slots=True)
class Account:
    """What the demo has to tell; `kept` when all was as promised."""

    stories: list[Story] = field(default_factory=list)
    deletion: list[Finding] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        told = bool(self.stories) and bool(self.deletion)
        return told and all(story.kept for story in self.stories) and all(one.kept for one in self.deletion)


class Teller(Protocol):
    """Where a demo's words go."""

    def progress(self, text: str) -> None: ...
    def story(self, story: Story) -> None: ...
    def deletion(self, pod: str, findings: Sequence[Finding]) -> None: ...
    def note(self, text: str) -> None: ...
    def problem(self, text: str) -> None: ...
    def verdict(self, account: Account, seconds: float) -> None: ...


def teller(stream: TextIO) -> Teller:
    """Rich when the stream is a terminal, else plain."""
    return RichTeller(Console(file=stream)) if stream.isatty() else PlainTeller(stream)


class PlainTeller:
    """One fact a line, fit for a log or a pipe."""

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self._stream = stream

    def progress(self, text: str) -> None:
        self._line(f".. {text}")

    def story(self, story: Story) -> None:
        self._line("")
        self._line(story.title)
        rows = (
            ("path", story.path),
            ("server saw", story.server_saw),
            ("on the wire", story.wire),
            ("verdict", story.verdict),
        )
        for name, text in rows:
            self._line(f"   {name:<12} {text}")
        self._findings(story.findings)

    def deletion(self, pod: str, findings: Sequence[Finding]) -> None:
        self._line("")
        self._line(f"pod {pod} deleted")
        self._findings(findings)

    def note(self, text: str) -> None:
        self._line(text)

    def problem(self, text: str) -> None:
        self._line(f"ERROR {text}")

    def verdict(self, account: Account, seconds: float) -> None:
        self._line("")
        self._line(_summary(account, seconds))

    def _findings(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self._line(f"   {'ok  ' if finding.kept else 'FAIL'} {finding.text}")

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class RichTeller:
    """Readable at a glance: one small table a call, its claims spelt out only where one is broken."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def progress(self, text: str) -> None:
        self._console.print(Text(f"· {text}", style="dim"))

    def story(self, story: Story) -> None:
        table = Table(
            show_header=False,
            title=Text(f"{'✔' if story.kept else '✘'} {story.title}", style=_style(kept=story.kept)),
            title_justify="left",
            expand=False,
        )
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        table.add_row("path", Text(story.path))
        table.add_row("server saw", Text(story.server_saw))
        table.add_row("on the wire", Text(story.wire, style="red" if "CLEAR" in story.wire else "green"))
        verdict_style = "green" if story.verdict == "allowed" else "yellow"
        table.add_row("verdict", Text(story.verdict, style=verdict_style))
        kept = [finding for finding in story.findings if finding.kept]
        table.add_row("claims", Text(f"{len(kept)} of {len(story.findings)} borne out"))
        for finding in story.findings:
            if not finding.kept:
                table.add_row(*_row(finding))
        self._console.print(table)

    def deletion(self, pod: str, findings: Sequence[Finding]) -> None:
        kept = all(finding.kept for finding in findings)
        table = Table(
            show_header=False,
            title=Text(f"{'✔' if kept else '✘'} pod {pod} deleted", style=_style(kept=kept)),
            title_justify="left",
        )
        table.add_column()
        table.add_column(overflow="fold")
        for finding in findings:
            table.add_row(*_row(finding))
        self._console.print(table)

    def note(self, text: str) -> None:
        self._console.print(Text(text))

    def problem(self, text: str) -> None:
        self._console.print(Text(text, style="bold red"))

    def verdict(self, account: Account, seconds: float) -> None:
        self._console.print(Text(_summary(account, seconds), style=_style(kept=account.kept)))


def _row(finding: Finding) -> tuple[Text, Text]:
    mark = Text("✔", style="green") if finding.kept else Text("✘", style="bold red")
    return mark, Text(finding.text)


def _style(*, kept: bool) -> str:
    return "bold green" if kept else "bold red"


def _summary(account: Account, seconds: float) -> str:
    findings = [one for story in account.stories for one in story.findings] + account.deletion
    broken = [finding for finding in findings if not finding.kept]
    if account.kept:
        return f"all as promised: {len(findings)} of {len(findings)} claims borne out, {seconds:.1f} s"
    if not broken:
        return f"NOT as promised: the demo did not come to its end, {seconds:.1f} s"
    return f"NOT as promised: {len(broken)} of {len(findings)} claims not borne out, {seconds:.1f} s"
