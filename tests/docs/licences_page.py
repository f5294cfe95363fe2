"""Makes docs/reference/licences.md from the metadata of what is installed with the proxy.

`--check FILE` holds that everything installed is on the page with its licence; which versions and which parts
are installed depends on the interpreter.
"""

import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from tests.docs.page import table

HEAD: Final = """\
# Licences

ztunnel-trio is under the Apache License 2.0. What is installed with it:

"""
CLASSIFIER: Final = "License :: "


def licence(package: Distribution) -> str:
    """The SPDX expression, else the first line of the licence field, else the classifiers."""
    told = package.metadata.json
    named = str(told.get("license_expression") or told.get("license") or "")
    classified = [
        text.rpartition(" :: ")[2]
        for text in package.metadata.get_all("Classifier") or []
        if text.startswith(CLASSIFIER)
    ]
    first = named.strip().splitlines()[0] if named.strip() else ""
    return first if first and len(first) < 60 else ", ".join(classified) or "see the package"


def installed(name: str, found: dict[str, Distribution]) -> dict[str, Distribution]:
    """A package's requirements and theirs, as far as they apply here."""
    for text in distribution(name).requires or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        package = distribution(requirement.name)
        key = package.name.lower()
        if key not in found:
            found[key] = package
            installed(requirement.name, found)
    return found


def rows() -> list[tuple[str, str]]:
    """Name and licence, by name."""
    return [(package.name, licence(package)) for _, package in sorted(installed("ztunnel-trio", {}).items())]


def main() -> int:
    """Print the page, or check a file."""
    if sys.argv[1:2] != ["--check"]:
        sys.stdout.write(HEAD + table(("Package", "Licence"), rows()))
        return 0
    page = Path(sys.argv[2]).read_text()
    missing = [f"{name}: {terms}" for name, terms in rows() if f"| {name} | {terms} |" not in page]
    if missing:
        sys.stderr.write(f"{sys.argv[2]} lacks {'; '.join(missing)}: nox -s docs\n")
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
