"""Makes docs/reference/commands.md from the program's own commands, options and exit codes."""

import re
import sys
from typing import Final

import click

from tests.docs.page import print_or_check, table
from ztunnel_trio import __main__ as entry
from ztunnel_trio import cli

HEAD: Final = """\
# Commands and exit codes

Without a command, or with `proxy`, the program is the proxy: it reads its settings from the
[environment](env.md) and runs until it is told to end. The other commands are for people.

| Command | What it does |
|---|---|
| `proxy` | the proxy; further words are ignored, as `proxy ztunnel` of the chart |
| `version` | one line: version, git revision, interpreter |
| `help` | these commands |
"""
PEOPLE: Final = (
    ("0", "done; for `demo`: everything was as promised"),
    (
        "1",
        "it failed, or the demo was not as promised; for `lab call`: no answer, or a status of 400 or more",
    ),
    (str(cli._CANNOT), "wrong usage, or this machine or user cannot run it"),
    ("128 + n", "ended by signal n"),
)


def values(option: click.Option) -> str:
    """What may stand behind an option: ` a¦b`, ` INTEGER`; nothing behind a flag."""
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return f" {'¦'.join(str(choice) for choice in option.type.choices)}"
    return f" {option.type.name.upper()}"


def commands(command: click.Command, path: str) -> list[tuple[str, str]]:
    """A command and those below it, each with its usage and its help."""
    rows: list[tuple[str, str]] = []
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            rows += commands(one, f"{path} {name}".strip())
        return rows
    words = [path]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            words.append(f"[{parameter.opts[0]}{values(parameter)}]")
        elif parameter.required:
            words.append(parameter.human_readable_name + ("..." if parameter.nargs == -1 else ""))
        else:
            words.append(f"[{parameter.human_readable_name}]")
    options = [
        f"`{parameter.opts[0]}`: {parameter.help}"
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.help
    ]
    text = " ".join([" ".join((command.help or "").split()), *options])
    return [*rows, (f"`{' '.join(words)}`", text)]


def proxy_codes() -> list[tuple[str, str]]:
    """The table in the docstring of `__main__`, its continued rows joined."""
    rows: list[tuple[str, str]] = []
    for code, text in re.findall(r"^\| (\d* +)\| (.*?) *\|$", entry.__doc__ or "", re.MULTILINE):
        if code.strip():
            rows.append((code.strip(), text))
        else:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {text}")
    return rows


def page() -> str:
    """The whole page."""
    return "".join(
        [
            HEAD,
            "".join(f"| {usage} | {text} |\n" for usage, text in commands(cli.commands, "")),
            "\nWhere several meshes are up, `lab --pid PID` names one; otherwise the newest is meant.\n",
            "\n## Exit codes of the proxy\n\n",
            table(("Code", "When"), proxy_codes()),
            "\n## Exit codes of the other commands\n\n",
            table(("Code", "When"), PEOPLE),
        ]
    )


if __name__ == "__main__":
    sys.exit(print_or_check(page(), sys.argv[1:]))
