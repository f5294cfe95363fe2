"""The image's bill of materials, CycloneDX 1.6: what of Debian and what of PyPI is in it, in which version.

It names neither the time nor a random number, so that the same image has the same one.
"""

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final, TypeAlias

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int"

PLACE: Final = Path("usr/share/sbom/ztunnel-trio.cdx.json")
NAME: Final = "ztunnel-trio"


def write(root: Path, site: Path, debian: Mapping[str, str]) -> None:
    """Write it below `root`, for the wheels in `site` and these Debian packages."""
    target = root / PLACE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document(site, debian), indent=1, sort_keys=True) + "\n")


def document(site: Path, debian: Mapping[str, str]) -> Json:
    """The whole document."""
    wheels = {found.name.lower().replace("_", "-"): found for found in distributions(path=[str(site)])}
    ours = wheels.pop(NAME)
    parts: list[Json] = [*_of_debian(debian), *(_of_wheel(name, wheels[name]) for name in sorted(wheels))]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": _of_wheel(NAME, ours) | {"type": "application"}},
        "components": parts,
    }


def _of_debian(packages: Mapping[str, str]) -> Iterator[Json]:
    for name, version in sorted(packages.items()):
        reference = f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A')}"
        yield {"type": "library", "bom-ref": reference, "purl": reference, "name": name, "version": version}


def _of_wheel(name: str, found: Distribution) -> dict[str, Json]:
    reference = f"pkg:pypi/{name}@{found.version.replace('+', '%2B')}"
    part: dict[str, Json] = {
        "type": "library",
        "bom-ref": reference,
        "purl": reference,
        "name": name,
        "version": found.version,
    }
    about = found.metadata
    if "License-Expression" in about:
        part["licenses"] = [{"expression": about["License-Expression"]}]
    elif "License" in about and "\n" not in about["License"]:
        part["licenses"] = [{"license": {"name": about["License"]}}]
    return part
