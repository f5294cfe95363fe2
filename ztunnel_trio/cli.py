"""The commands people type: `demo` and `lab`. The proxy process never imports this module."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import click
import h11
import trio

from ztunnel_trio.errors import ConfigError
from ztunnel_trio.lab import demo as demonstration
from ztunnel_trio.lab import http, launch, privilege
from ztunnel_trio.lab.cni import ProxyGone
from ztunnel_trio.lab.mesh import FoundLab, Lab, LabSettings, ProxyRefused, find_labs
from ztunnel_trio.lab.netlink import KernelLacks
from ztunnel_trio.lab.policy_file import PolicyFile, follow
from ztunnel_trio.lab.proxy_log import proxy_logs, reasons
from ztunnel_trio.lab.proxy_process import ProxyFailed
from ztunnel_trio.lab.report import Teller, teller

T = TypeVar("T")

_CLONE_NEWUSER: Final = 0x10000000
_CALL_SECONDS: Final = 10.0
_TAKEN_SECONDS: Final = 15.0  # istiod gives a proxy ten to answer
_CANNOT: Final = 2  # the machine or the user cannot run it at all
_SIGNAL_EXIT: Final = 128  # shells: 128 + the signal's number


class Interrupted(Exception):
    """A signal ended the work."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line without the program's name; returns the exit code."""
    try:
        commands.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return _SIGNAL_EXIT + signal.SIGINT
    return 0


@click.group(name="ztunnel-trio")
def commands() -> None:
    """A zero-trust tunnel for Istio's ambient mesh: try it on this machine."""


@commands.command()
@click.option("--keep", is_flag=True, help="Leave the mesh up until Ctrl-C, with the lines to type next.")
@click.option(
    "--identities",
    type=click.Choice(["istiod", "spire"]),
    default="istiod",
    help="Who certifies the workloads: istiod's CA, or a stand-in SPIRE agent.",
)
def demo(keep: bool, identities: str) -> None:
    """Build a small mesh here, run calls through it, show what happened.

    Exits 0 only if everything was as promised.
    """
    tell = teller(sys.stdout)
    try:
        if line := privilege.become_able():
            tell.note(line)
    except privilege.MissingPrivilege as error:
        tell.problem(str(error))
        sys.exit(_CANNOT)
    spire = "spire_delegated_selectors" if identities == "spire" else None
    sys.exit(_demonstrate(tell, LabSettings(spire=spire), keep=keep))


def _demonstrate(tell: Teller, settings: LabSettings, *, keep: bool) -> int:
    stay = _stay_up(tell) if keep else None
    code = 1
    try:
        kept = trio.run(until_signal, lambda: demonstration.run(tell, settings=settings, keep=stay))
        code = 0 if kept else 1
    except* Interrupted as interrupted:
        for error in leaves(interrupted):
            tell.problem(f"{error}: taken down")
            code = _SIGNAL_EXIT + error.number if isinstance(error, Interrupted) else 1
    except* (KernelLacks, ProxyFailed, ProxyRefused, ProxyGone, trio.TooSlowError, OSError) as failed:
        for one in leaves(failed):
            tell.problem(str(one) or "something took too long")
    return code


@commands.group()
@click.option(
    "--pid", type=int, help="The process of the mesh meant, where several are up; default: the newest."
)
@click.pass_context
def lab(context: click.Context, pid: int | None) -> None:
    """Look into the mesh that `demo --keep` left up."""
    context.obj = pid


@lab.command(name="list")
def list_hosts() -> None:
    """The nodes, pods and services of the mesh that is up, and their addresses."""
    found = _chosen()
    click.echo(f"lab of process {found.pid}, files in {found.directory}")
    for name, address in found.addresses.items():
        click.echo(f"  {name:<24} {address}")


@lab.command(name="exec", context_settings={"ignore_unknown_options": True})
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(host: str, command: tuple[str, ...]) -> None:
    """Run a program in a pod's or node's network."""
    path = _enter(host)
    try:
        launch.launch(0, path, "-", command)
    except OSError as error:
        raise click.ClickException(f"cannot run {command[0]} in {host}: {error}") from error


@lab.command()
@click.argument("host")
@click.argument("target")
@click.argument("path", default="/")
def call(host: str, target: str, path: str) -> None:
    """GET http://TARGET/PATH as a program in HOST would. TARGET is ip:port, or a service's name."""
    found = _chosen()
    address = found.addresses.get(target, target)
    namespace = _enter(host)
    logs = proxy_logs(found.directory)
    marks = {node: log.mark() for node, log in logs.items()}
    try:
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        launch.enter(fd)
        response = trio.run(_fetch, address, path)
    except trio.TooSlowError as error:
        raise click.ClickException("no answer in time") from error
    except (OSError, h11.RemoteProtocolError, trio.BrokenResourceError, ValueError) as error:
        told = trio.run(reasons, logs, marks)
        raise click.ClickException("\n".join([f"no answer: {error}", *told])) from error
    click.echo(f"HTTP {response.status}")
    click.echo(response.text)
    if response.status >= 400:
        sys.exit(1)


@lab.group()
def policy() -> None:
    """Look at the policies of the mesh, or change them."""


@policy.command(name="list")
def list_policies() -> None:
    """The policies as istiod sends them, and the file: edit it, every change reaches the proxies."""
    file = PolicyFile(_chosen().directory)
    try:
        text = file.text()
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"# {file.path}")
    click.echo(text.rstrip("\n"))


@policy.command(name="delete")
@click.argument("name")
def delete_policy(name: str) -> None:
    """Take a policy away and wait until every proxy has taken that."""
    file = PolicyFile(_chosen().directory)
    try:
        complaint = trio.run(_wait_taken, file, file.delete(name))
    except trio.TooSlowError as error:
        raise click.ClickException("the proxies have not answered in time") from error
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    if complaint:
        raise click.ClickException(complaint)
    click.echo(f"policy {name} deleted, every proxy has taken it")


async def _wait_taken(file: PolicyFile, text: str) -> str:
    with trio.fail_after(_TAKEN_SECONDS):
        return await file.wait_taken(text)


async def until_signal(work: Callable[[], Awaitable[T]]) -> T:
    """Run to the end, or cancel on SIGINT or SIGTERM so that everything is taken down.

    Raises:
        Interrupted: in a group, after the taking down.
    """
    results: list[T] = []
    received: list[int] = []
    async with trio.open_nursery() as nursery:

        async def watch(*, task_status: trio.TaskStatus[None]) -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                task_status.started()
                async for number in signals:
                    received.append(number)
                    nursery.cancel_scope.cancel(reason=signal.Signals(number).name)
                    return

        await nursery.start(watch)
        results.append(await work())
        nursery.cancel_scope.cancel(reason="the work is done")
    if not results:
        raise ExceptionGroup("interrupted", [Interrupted(received[0])])
    return results[0]


def _stay_up(tell: Teller) -> Callable[[Lab], Awaitable[None]]:
    async def wait(lab: Lab) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(follow, lab, PolicyFile(lab.directory))
            for line in demonstration.next_lines(lab):
                tell.note(line)
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    tell.note("taking it down")
                    nursery.cancel_scope.cancel(reason="taken down")
                    return

    return wait


async def _fetch(address: str, path: str) -> http.HttpAnswer:
    host, _, port = address.rpartition(":")
    with trio.fail_after(_CALL_SECONDS):
        stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
        async with stream:
            return await http.fetch(stream, path, host=address)


def _chosen() -> FoundLab:
    """The mesh meant: by its process, or the newest."""
    pid = click.get_current_context().obj
    found = [one for one in find_labs() if pid in (None, one.pid)]
    if not found:
        raise click.ClickException("no mesh is up: run `ztunnel-trio demo --keep` in another terminal")
    return found[-1]


def _enter(host: str) -> str:
    """The path of a host's namespace, after joining the user namespace of its lab if that is another."""
    found = _chosen()
    if host not in found.namespaces:
        raise click.ClickException(f"no host {host}; there are {', '.join(found.namespaces)}")
    theirs = f"/proc/{found.pid}/ns/user"
    try:
        if os.readlink(theirs) != os.readlink("/proc/self/ns/user"):
            fd = os.open(theirs, os.O_RDONLY | os.O_CLOEXEC)
            privilege.join(fd, _CLONE_NEWUSER)
            os.close(fd)
    except OSError as error:
        text = f"cannot enter the lab of process {found.pid}: {error.strerror}"
        raise click.ClickException(text) from error
    return found.namespaces[host]


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The single exceptions of a group."""
    found: list[BaseException] = []
    for one in group.exceptions:
        found += leaves(one) if isinstance(one, BaseExceptionGroup) else [one]
    return found
