"""helm, as the tests run it: a chart and values in, objects, notes or a refusal out. No cluster is asked."""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import yaml

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
Values: TypeAlias = Mapping[str, Json]

CHART: Final = Path(__file__).parents[2] / "charts" / "ztunnel-trio"
RELEASE: Final = "node"
NAMESPACE: Final = "istio-system"


class RefusedError(Exception):
    """helm would not render; its words."""


def find() -> str | None:
    """The helm of `HELM`, of the path, or of Go's own directory."""
    go_bin = os.environ.get("GOBIN", str(Path.home() / "go" / "bin"))  # noqa: TID251  where tests look for a tool
    return os.environ.get("HELM") or shutil.which("helm") or shutil.which("helm", path=go_bin)  # noqa: TID251


def run(*arguments: str, values: Values | None = None) -> str:
    """Run helm with values on its standard input; the same question is asked once.

    Raises:
        RefusedError: helm said no.
    """
    code, output = _answer(arguments, json.dumps(dict(values or {})))
    if code:
        raise RefusedError(output)
    return output


@functools.cache
def _answer(arguments: tuple[str, ...], values: str) -> tuple[int, str]:
    helm = find()
    assert helm is not None, "tests that need helm are skipped without it"
    command = [helm, *arguments, "--values", "-"]
    done = subprocess.run(command, input=values, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr + done.stdout if done.returncode else done.stdout


def render(values: Values | None = None, *options: str) -> "list[Manifest]":
    """The chart's objects, in helm's order."""
    text = run("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *options, values=values)
    return [Manifest(document) for document in yaml.safe_load_all(text) if document is not None]


def notes(values: Values | None = None) -> str:
    """What is told after an installation. helm shows that only beside a cluster, so it is made an object."""
    with tempfile.TemporaryDirectory() as made:
        chart = Path(shutil.copytree(CHART, Path(made) / CHART.name))
        (chart / "templates" / "NOTES.txt").rename(chart / "files" / "NOTES.txt")
        (chart / "templates" / "notes.yaml").write_text(
            'told: {{ tpl (.Files.Get "files/NOTES.txt") . | toJson }}'
        )
        arguments = ("template", RELEASE, str(chart), "--namespace", NAMESPACE)
        shown = run(*arguments, "--show-only", "templates/notes.yaml", values=values)
    return str(yaml.safe_load(shown)["told"])


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object of Kubernetes."""

    body: Json

    @property
    def name(self) -> str:
        return str(self.at("metadata", "name"))

    @property
    def kind(self) -> str:
        return str(self.at("kind"))

    def at(self, *path: str | int) -> Json:
        """The value at a path of keys and indexes; None where there is no such key."""
        found = self.body
        for step in path:
            if isinstance(step, int):
                assert isinstance(found, list), path
                found = found[step]
            else:
                assert isinstance(found, dict), path
                found = found.get(step)
        return found

    def named(self, *path: str | int) -> dict[str, Json]:
        """The entries of a list at a path by their names; no two have the same."""
        entries = self.at(*path)
        assert isinstance(entries, list), path
        by_name: dict[str, Json] = {}
        for entry in entries:
            assert isinstance(entry, dict), path
            rest = dict(entry)
            name = str(rest.pop("name"))
            assert name not in by_name, name
            by_name[name] = rest
        return by_name

    def keys(self, *path: str | int) -> set[str]:
        """The keys of the map at a path."""
        found = self.at(*path)
        assert isinstance(found, dict), path
        return set(found)


def one(objects: Sequence[Manifest], kind: str) -> Manifest:
    """The only object of a kind."""
    (found,) = [each for each in objects if each.kind == kind]
    return found


def kinds(objects: Sequence[Manifest]) -> list[str]:
    return sorted(each.kind for each in objects)
