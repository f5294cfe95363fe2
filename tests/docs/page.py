"""What the generators of pages have in common: print the page, or compare it with a file."""

import sys
from collections.abc import Sequence


def print_or_check(page: str, arguments: Sequence[str]) -> int:
    """Print the page; with `--check FILE` say on stderr, and by 1, when the file differs."""
    if arguments[:1] != ["--check"]:
        sys.stdout.write(page)
        return 0
    with open(arguments[1], encoding="utf-8") as file:
        if file.read() == page:
            return 0
    sys.stderr.write(f"{arguments[1]} is out of date: nox -s docs\n")
    return 1


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '¦') for cell in line)} |\n" for line in lines)
