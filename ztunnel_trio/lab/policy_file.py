"""The policies of a mesh that is kept up, as a file that people edit while it runs.

The file is YAML: a list of `istio.security.Authorization` in protobuf's JSON form, which is what istiod
sends to the proxies (protos/authorization.proto). `follow` runs in the lab's process. After each change of
the file it tells every proxy, and then writes into a second file what it took, or why it took nothing, so
that a command in another process can wait for it (`wait_taken`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
import yaml
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from ztunnel_trio.errors import ConfigError
from ztunnel_trio.facts.network import AUTHORIZATION_TYPE
from ztunnel_trio.lab.mesh import Lab
from ztunnel_trio.lab.resources import stored
from ztunnel_trio.pb.authorization_pb2 import Authorization

FILE_NAME: Final = "policies.yaml"
_TAKEN_NAME: Final = "policies.taken"
_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """The file of one lab, by the lab's directory."""

    directory: Path

    @property
    def path(self) -> Path:
        return self.directory / FILE_NAME

    def text(self) -> str:
        """What the file holds now.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            return self.path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {self.path}: {error}") from error

    def write(self, policies: Sequence[Authorization]) -> str:
        """Replace the file in one step; returns its new text."""
        documents = [MessageToDict(policy) for policy in policies]
        text = yaml.safe_dump(documents, sort_keys=False)
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)
        return text

    def delete(self, name: str) -> str:
        """Take one policy out, by `name` or `namespace/name`; returns the file's new text.

        Raises:
            ConfigError: there is no such policy, or the file is broken.
        """
        policies = parse(self.text())
        left = [policy for policy in policies if name not in (policy.name, stored(policy).name)]
        if len(left) == len(policies):
            names = ", ".join(stored(policy).name for policy in policies) or "none"
            raise ConfigError(f"no policy {name}; there are {names}")
        return self.write(left)

    def note(self, text: str, error: str) -> None:
        """Say what became of a text: taken when `error` is empty."""
        new = self.directory / f"{_TAKEN_NAME}.new"
        new.write_text(json.dumps({"text": text, "error": error}))
        new.replace(self.directory / _TAKEN_NAME)

    async def wait_taken(self, text: str) -> str:
        """Wait until the lab has dealt with this text; returns its complaint, empty if all took it."""
        while True:
            try:
                noted = json.loads((self.directory / _TAKEN_NAME).read_text())
            except FileNotFoundError:
                noted = {}
            if noted.get("text") == text:
                return str(noted["error"])
            await trio.sleep(_POLL_SECONDS)


def parse(text: str) -> list[Authorization]:
    """The policies of a text.

    Raises:
        ConfigError: no YAML, no list, or an entry that is no policy; the text says which and why.
    """
    try:
        documents: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"no YAML: {error}") from error
    if documents is None:
        return []
    if not isinstance(documents, list):
        raise ConfigError("a list of policies is expected")
    policies: list[Authorization] = []
    for number, document in enumerate(documents):
        if not isinstance(document, dict) or not document.get("name") or not document.get("namespace"):
            raise ConfigError(f"policy {number}: name and namespace are required")
        try:
            policies.append(ParseDict(document, Authorization()))
        except ParseError as error:
            raise ConfigError(f"policy {number}: {error}") from error
    return policies


async def follow(
    lab: Lab, file: PolicyFile, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Write the file with the policies of the lab, then tell the proxies of each change; does not return.

    A file that is broken, or missing for a moment while an editor saves it, changes nothing.
    """
    kept = lab.istiod.state[AUTHORIZATION_TYPE]
    seen = file.write([Authorization.FromString(one.value) for one in kept.values()])
    file.note(seen, "")
    task_status.started()
    while True:
        await trio.sleep(_POLL_SECONDS)
        try:
            text = file.text()
        except ConfigError:
            continue
        if text != seen:
            seen = text
            file.note(text, await _take(lab, text))


async def _take(lab: Lab, text: str) -> str:
    """Make these the policies of the lab; returns what went wrong, empty when nothing did."""
    try:
        policies = parse(text)
        names = {stored(policy).name for policy in policies}
        answers = await lab.push(*policies, removed=sorted(set(lab.istiod.state[AUTHORIZATION_TYPE]) - names))
    except (ConfigError, trio.TooSlowError) as error:
        return str(error)
    return "; ".join(answer.error for answer in answers if answer.error is not None)
