"""The process's entry: pick proxy or command, import only that, give the exit code.

| Code | When                                                                          |
|------|-------------------------------------------------------------------------------|
| 0    | drained; `version`, `help`                                                    |
| 1    | wrong configuration, a start that failed, an unknown command, a library that  |
|      | is of no version this can run on                                              |
| 101  | what cannot be read or honoured at all: `RUST_LOG`, resolv.conf, `pqc`, no CA |
"""

import faulthandler
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final, TextIO

from ztunnel_trio.early_signals import leave_on_signals
from ztunnel_trio.errors import ConfigError, Unusable, ZtunnelError
from ztunnel_trio.shortcuts import collector

COMMANDS: Final = {
    "demo": "build a small mesh here and run calls through it",
    "lab": "work in a mesh that demo keeps up",
}
FAILED: Final = 1
ABORTED: Final = 101  # as the reference exits when it panics


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name; default: this process's)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    match arguments[:1]:
        case [] | ["proxy"]:
            return proxy(arguments, os.environ)  # noqa: TID251  the one place that reads it
        case ["version" | "--version"]:
            sys.stdout.write(f"{build_line()}\n")
            return 0
        case ["help" | "--help" | "-h"]:
            write_help(sys.stdout)
            return 0
        case [name] if name in COMMANDS:
            return command(arguments)
        case unknown:
            sys.stderr.write(f"unknown command: {unknown[0]}\n")
            write_help(sys.stdout)
            return FAILED


def command(arguments: Sequence[str]) -> int:
    """Run what a person typed."""
    failures: list[BaseException] = []
    try:
        from ztunnel_trio import requirements

        requirements.check()
        from ztunnel_trio import cli

        return cli.main(arguments)
    except* Unusable as group:
        failures = leaves(group)
    return fail(failures)


def build_line() -> str:
    from ztunnel_trio.build_info import build_info

    return str(build_info(os.environ))  # noqa: TID251  the one place that reads it


def write_help(stream: TextIO) -> None:
    """The product, its build and its commands."""
    commands = {
        "proxy": "start the ztunnel proxy (the default)",
        "version": "print the version of ztunnel",
        "help": "print commands and version of ztunnel",
        **COMMANDS,
    }
    lines = [f"  {name:<10}{text}" for name, text in commands.items()]
    stream.write("\n".join(["Istio Ztunnel (ztunnel-trio)", build_line(), "", "Commands:", *lines, ""]))


def proxy(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the proxy; what ends its start is told on stderr."""
    began = time.perf_counter()
    leave_on_signals()
    from ztunnel_trio import compliance

    if settings := compliance.settings_file(environ):
        os.environ[compliance.OPENSSL_CONF] = settings  # noqa: TID251  OpenSSL reads it, when first used
    from ztunnel_trio.facts import env
    from ztunnel_trio.observe.log import configure, unconfigure

    faulthandler.enable()
    filter_text = environ.get(env.RUST_LOG)
    try:
        configure(filter_text, is_json=environ.get(env.LOG_FORMAT) == "json", stream=sys.stdout)
    except ConfigError as error:
        sys.stderr.write(f"Error: invalid env var {env.RUST_LOG}={filter_text} ({error})\n")
        return ABORTED
    failures: list[BaseException] = []
    try:
        with collector.paused():  # until the app is made
            return start(arguments, environ, began)
    except* (OSError, ZtunnelError) as group:
        failures = leaves(group)
    finally:
        unconfigure()
    return fail(failures)


def start(arguments: Sequence[str], environ: Mapping[str, str], began: float) -> int:
    """Settings, the first lines of the log, limits, then the app until it has drained. `began` is when the
    process did, by `time.perf_counter`.

    Raises:
        ConfigError, OSError, ZtunnelError or a group of them: the start failed.
    """
    from ztunnel_trio import requirements

    requirements.check()
    from ztunnel_trio.build_info import build_info
    from ztunnel_trio.config import load
    from ztunnel_trio.config.document import config_text
    from ztunnel_trio.observe.log import get_logger

    config = load(environ, arguments=arguments)
    log = get_logger("ztunnel")
    about = build_info(environ)
    log.info("version: %s", about)
    raise_descriptor_limit()
    log.info("running with config: \n%s", config_text(config).rstrip(), extra={"verbatim": True})
    for note in config.notes:
        log.warning("%s", note)

    from ztunnel_trio import app

    app.run(config, about, began)
    return 0


def raise_descriptor_limit() -> None:
    """Allow as many open files as the hard limit does: a node has many connections."""
    from ztunnel_trio.observe.log import get_logger

    log = get_logger("ztunnel")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.warning("failed to set file descriptor limits: %s", error)
    else:
        log.info("set file descriptor limits from %s to %s", soft, hard)


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The plain exceptions of a group, however deep."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def fail(failures: Sequence[BaseException]) -> int:
    """Say on stderr what ended the start, with the causes that add something; the exit code for it."""
    from ztunnel_trio.config import Unstartable

    for failure in failures:
        told = text_of(failure)
        sys.stderr.write(f"Error: {told}\n")
        cause = failure.__cause__
        while cause is not None:
            if (text := text_of(cause)) not in told:
                sys.stderr.write(f"Caused by: {text}\n")
                told = text
            cause = cause.__cause__
    return ABORTED if any(isinstance(failure, Unstartable) for failure in failures) else FAILED


def text_of(error: BaseException) -> str:
    """An exception in operators' words: the system's own failures without Python's brackets."""
    from ztunnel_trio.observe.words import os_error_text

    if isinstance(error, OSError) and type(error).__str__ is OSError.__str__:
        return os_error_text(error)
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
