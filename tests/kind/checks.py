"""What is checked from inside the cluster: the chain of calls, HBONE, policies, names."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from tests.kind.shell import Done, Shell

CHAIN: Final = ("web-api", "recommendation", "purchase-history")
HOPS: Final = tuple(zip(("sleep", *CHAIN), CHAIN, strict=False))  # caller and callee
MANIFESTS: Final = "tests/kind/manifests"
MESH_ONLY: Final = "mesh-only.example"
PYTHON: Final = ("/usr/bin/python3.13", "-I")
URL: Final = "http://web-api:8080/"
# istiod's own range for names without an address (its flag PILOT_ENABLE_IP_AUTOALLOCATE).
AUTOMATIC: Final = (ip_network("240.240.0.0/16"), ip_network("2001:2::/48"))
_PRINCIPAL: Final = "spiffe://cluster.local/ns/default/sa/"


class NotAsPromisedError(Exception):
    """A check failed; its text says which and what was seen."""


@dataclass(slots=True, eq=False)
class Checks:
    """The checks of one round. A state that takes time to arrive is asked for again, `seconds` at most."""

    shell: Shell
    seconds: float = 60.0
    pause: float = 1.0

    def all(self) -> None:
        """Every check, the policies put in force and taken away again.

        Raises:
            NotAsPromisedError: one does not hold.
            CommandFailedError: a command that prepares one failed.
        """
        self.wait_for("sleep reaches the chain without a policy", self.chain_answers)
        self.wait_for("each hop is HBONE with the caller's identity", self.hops_are_hbone)
        self.shell.do("kubectl", "apply", "--filename", f"{MANIFESTS}/deny-all.yaml")
        self.wait_for("nobody is let in where nothing is allowed", lambda: self.refused("sleep"))
        self.shell.do("kubectl", "apply", "--filename", f"{MANIFESTS}/policies.yaml")
        self.wait_for("sleep reaches the chain along the policies", self.chain_answers)
        self.wait_for("notsleep is refused", lambda: self.refused("notsleep"))
        self.shell.do("kubectl", "apply", "--filename", f"{MANIFESTS}/mesh-only-name.yaml")
        self.wait_for("a name that only the mesh knows has an address", self.name_is_known)
        for name in ("deny-all", "policies", "mesh-only-name"):
            self.shell.do("kubectl", "delete", "--filename", f"{MANIFESTS}/{name}.yaml")

    def wait_for(self, what: str, holds: Callable[[], str]) -> None:
        """Ask until `holds` has nothing to object.

        Raises:
            NotAsPromisedError: it still has at the end.
        """
        end = time.monotonic() + self.seconds
        while objection := holds():
            if self.shell.is_dry:
                break
            if time.monotonic() > end:
                raise NotAsPromisedError(f"{what}: {objection}")
            time.sleep(self.pause)
        print(f"{'would check' if self.shell.is_dry else 'ok'}: {what}")  # noqa: T201  what it is run for

    def chain_answers(self) -> str:
        """What is wrong with the chain's answer to sleep."""
        done = self._inside("sleep", "get", URL)
        try:
            answer = json.loads(done.output)
        except ValueError:
            return f"no answer: {done.errors.strip() or done.output.strip()}"
        names = []
        while answer:
            names.append(answer["name"])
            answer = answer.get("upstream")
        return "" if tuple(names) == CHAIN else f"the chain was {names}"

    def refused(self, caller: str) -> str:
        """Objects to a call that is answered."""
        done = self._inside(caller, "get", URL)
        return "" if done.code else f"{caller} got an answer"

    def hops_are_hbone(self) -> str:
        """Objects to a hop without a line of the callee's proxy that proves the caller."""
        logs = self.shell.do(
            *("kubectl", "--namespace", "istio-system", "logs", "--selector", "app=ztunnel"),
            *("--container", "istio-proxy", "--tail", "-1", "--since", "5m"),
        )
        for caller, callee in HOPS:
            wanted = (
                f'src.identity="{_PRINCIPAL}{caller}"',
                f'dst.identity="{_PRINCIPAL}{callee}"',
                "dst.hbone_addr=",
                'direction="inbound"',
            )
            if not any(all(part in line for part in wanted) for line in logs.splitlines()):
                return f"no line of an HBONE connection from {caller} to {callee}"
        return ""

    def name_is_known(self) -> str:
        """Objects to a name that has no address of istiod's range."""
        done = self._inside("sleep", "resolve", MESH_ONLY)
        found = re.findall(r"[0-9a-f.:]+", done.output)
        wrong = [text for text in found if not any(ip_address(text) in network for network in AUTOMATIC)]
        return "" if found and not wrong else f"{MESH_ONLY} is {found}: {done.errors.strip()}"

    def _inside(self, deployment: str, question: str, what: str) -> Done:
        client = (*PYTHON, "/app/client.py", question, what)
        return self.shell.ask("kubectl", "exec", f"deployment/{deployment}", "--", *client)
