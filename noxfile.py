"""The one entry for every check: `nox` runs lint, types and unit; CI runs nox and nothing else.

`nox -l` lists the sessions; arguments behind `--` go to the tool, e.g. `nox -s unit -- -k drain`. A session
runs on the interpreter nox runs with, and on another by `nox -P 3.13 -s NAME`; `tests` and `supported` have
one for each interpreter besides (`nox -s tests-3.13`). They are looked for on PATH and among pyenv's.

A new check is a function with `@nox.session(default=False)`; CI runs it once `.ci/run` has a step for it.
"""

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.sessions = ["lint", "types", "unit"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if ":: Python :: 3." in line]
CODE = ("ztunnel_trio", "tests", "image", "noxfile.py", "hatch_build.py")
# Not 912 and 913: they flag each loop that attempts first and waits only when it must, as our sockets do.
ASYNC_RULES = "ASYNC900,ASYNC911"
RUNTIME_PROTOS = ("xds.proto", "workload.proto", "authorization.proto")  # by the hundred thousand: protobuf
TYPED = "from importlib.resources import files; assert files('ztunnel_trio').joinpath('py.typed').is_file()"
MESSAGE_PROTOS = (  # one at a time: betterproto2
    "citadel.proto",
    "zds.proto",
    "spire_types.proto",
    "spire_delegated_identity.proto",
    "spiffe_workload_api.proto",
    "spiffe_broker.proto",
    "cri.proto",
)
RELEASED = re.compile(r"<!-- test: release -->\n```sh\n(.*?)```", re.DOTALL)  # commands of the README
SYSTEMS = (("Debian 12", "3.11", 36), ("Ubuntu 24.04", "3.12", 39), ("Debian 13", "3.13", 41))  # glibc 2.N
BENCHMARKS = ROOT / "tests" / "benchmarks"
NO_BENCHMARKS = ("__init__", "load", "yardstick")
OWN_IMPORT = re.compile(r"^import (\w+_pb2)", re.MULTILINE)
HELM = "helm.sh/helm/v3/cmd/helm@v3.22.0"
SPIRE = "github.com/spiffe/spire"
SPIRE_VERSION = "v1.15.2"
SPIRE_PLUGIN = "github.com/Keyfactor/ejbca-go-client-sdk"
H2SPEC = "github.com/summerwind/h2spec/cmd/h2spec@latest"
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


def answers(version: str) -> bool:
    """Whether PATH has this interpreter; pyenv's shims for versions not in use only say so."""
    command = [f"python{version}", "-c", ""]
    return (
        shutil.which(command[0]) is not None
        and not subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode
    )


def found_pythons() -> list[str]:
    """The supported interpreters that are here, the oldest first; after this nox finds pyenv's as well."""
    environment = os.environ  # noqa: TID251  what nox and its sessions look at
    links = ROOT / ".nox" / ".pythons"
    links.mkdir(parents=True, exist_ok=True)
    if str(links) not in environment["PATH"].split(os.pathsep):
        environment["PATH"] = f"{links}{os.pathsep}{environment['PATH']}"
    pyenv = Path(environment.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for version in PYTHONS:
        name = f"python{version}"
        for interpreter in sorted(pyenv.glob(f"versions/{version}.*/bin/{name}"))[-1:]:
            if not answers(version):
                (links / name).unlink(missing_ok=True)
                (links / name).symlink_to(interpreter)
    return [version for version in PYTHONS if answers(version)]


found_pythons()


def group(name: str) -> list[str]:
    """The requirements of a dependency group."""
    return list(nox.project.dependency_groups(PROJECT, name))


def pytest(session: nox.Session, *paths: str) -> None:
    """Install the project with its test group, run pytest on the paths."""
    session.install("-e", ".", *group("test"))
    session.run("pytest", *paths, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint, async rules, spelling."""
    session.install(*group("lint"))
    session.run("ruff", "format", "--check", *CODE)
    session.run("ruff", "check", *CODE)
    exclude = "--exclude=ztunnel_trio/pb"
    session.run("flake8", f"--select={ASYNC_RULES}", f"--enable={ASYNC_RULES}", exclude, *CODE)
    session.run("codespell", *CODE, "docs", *[path.name for path in ROOT.glob("*.md")], "protos")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, over code and tests. (pyright: `nox -s pyright`, no gate: docs/decisions/0003.)"""
    session.install("-e", ".", *group("types"), *group("bench"), "nox>=2025.5")
    session.run("mypy", *session.posargs)


@nox.session(default=False)
def pyright(session: nox.Session) -> None:
    """A second opinion on types; needs Node or leave to fetch it, so it is no gate."""
    session.install("-e", ".", *group("types"))
    session.run("pyright", *session.posargs)


@nox.session
def unit(session: nox.Session) -> None:
    """Tests that need no root, no network, no real time."""
    pytest(session, "tests/unit")


@nox.session(default=False)
def property(session: nox.Session) -> None:  # noqa: A001  the session's name
    """Properties of parsers and cores."""
    pytest(session, "tests/property")


@nox.session(default=False)
def scenario(session: nox.Session) -> None:
    """The whole process against fakes on loopback."""
    pytest(session, "tests/scenario")


@nox.session(default=False)
def netns(session: nox.Session) -> None:
    """Real namespaces and redirection, Envoy as a peer; root. With REQUIRE_NETNS=1 a skip is a failure."""
    session.install(*group("bench"))
    pytest(session, "tests/netns")


@nox.session(default=False)
def hostile(session: nox.Session) -> None:
    """What others get while a peer floods its tunnel, kind by kind; root. HOSTILE_SECONDS=10: longer."""
    pytest(session, "tests/hostile", "-s")


@nox.session(default=False)
def h2spec(session: nox.Session) -> None:
    """HTTP/2 conformance of port 15008; root, and Go to build the tool."""
    if shutil.which("go") is None:
        session.skip("h2spec is written in Go, and there is no `go`")
    made = Path(session.create_tmp()).resolve()
    binary = made / "h2spec"
    if not binary.exists():
        session.run("go", "install", H2SPEC, external=True, env={"GOBIN": str(made)})
    session.env["H2SPEC"] = str(binary)
    pytest(session, "tests/netns/test_h2spec.py", "-rP")


@nox.session(default=False)
def chart(session: nox.Session) -> None:
    """The chart through helm, built with Go where there is none. `-- --write`: keep what it renders now."""
    session.install("-e", ".", *group("chart"))
    if shutil.which("helm") is None:
        if shutil.which("go") is None:
            session.skip("there is no helm, and no Go to build it with")
        made = Path(session.create_tmp()).resolve()
        session.env["HELM"] = str(made / "helm")
        if not (made / "helm").exists():
            session.run("go", "install", HELM, external=True, env={"GOBIN": str(made)})
    if "--write" in session.posargs:
        session.run("python", "-m", "tests.chart.cases")
        return
    session.run("pytest", "tests/chart", "tests/kind", *session.posargs)


@nox.session(default=False)
def image(session: nox.Session) -> None:
    """Build the image on a base made here, look into it, run it; needs root and Debian's tools for it.

    With REQUIRE_IMAGE=1 a skip is a failure.
    """
    session.install("-e", ".", *group("image"))
    session.env["IMAGE_WORK"] = str(Path(session.create_tmp()).resolve() / "image")
    session.run("pytest", "tests/image", *session.posargs)


@nox.session(default=False)
def kind(session: nox.Session) -> None:
    """A cluster with Istio and this chart, beside the stock proxy too: checked, and removed."""
    command = ("python", "-m", "tests.kind.run")
    if missing := str(session.run(*command, "--why-not", silent=True)).strip():
        session.skip(missing)
    session.run(*command, *session.posargs)


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Lock what the image installs and what builds it: image/*.lock."""
    session.install("uv")
    options = ("--generate-hashes", "--no-header", "--no-annotate", "--python-platform", "linux", "--upgrade")
    compiler = ("uv", "pip", "compile", *options, "--python-version", "3.13", "--quiet")
    session.run(*compiler, "pyproject.toml", "--output-file", "image/requirements.lock")
    asked = Path(session.create_tmp()) / "build.in"
    asked.write_text("\n".join(PROJECT["build-system"]["requires"]))
    session.run(*compiler, str(asked), "--output-file", "image/build.lock")


@nox.session(default=False)
def spire(session: nox.Session) -> None:
    """Against a real SPIRE server and agent, built from their Go module; root, Go and gcc. Ten minutes."""
    for tool in ("go", "gcc"):
        if shutil.which(tool) is None:
            session.skip(f"SPIRE is written in Go, its data store in C, and there is no `{tool}`")
    made = Path(session.create_tmp()).resolve()
    if not all((made / name).exists() for name in ("spire-server", "spire-agent")):
        build_spire(session, made)
    session.log("the Broker API by pod needs a kubelet: that form is tried on the stand-in only")
    session.env["SPIRE_BIN"] = str(made)
    pytest(session, "tests/spire", "-rs")


def build_spire(session: nox.Session, made: Path) -> None:
    """Fetch SPIRE by its module path, and build its two programs.

    It is fetched into a module of our own, for not every proxy of Go modules lists its versions. One plugin
    of the server, which talks to a commercial CA, needs a client library that not every proxy serves; a
    stand-in of its types is built in its place, and the plugin is never used.
    """
    module = made / "module"
    module.mkdir(exist_ok=True)
    with session.chdir(module):
        if not Path("go.mod").exists():
            session.run("go", "mod", "init", "spire-tools", external=True)
        session.run(
            "go",
            "mod",
            "edit",
            f"-replace={SPIRE_PLUGIN}={ROOT / 'tests' / 'spire' / 'ejbca'}",
            external=True,
        )
        for name in ("spire-agent", "spire-server"):
            session.run("go", "get", "-tool", f"{SPIRE}/cmd/{name}@{SPIRE_VERSION}", external=True)
            session.run("go", "install", f"{SPIRE}/cmd/{name}", external=True, env={"GOBIN": str(made)})


@nox.session(default=False)
def tests(session: nox.Session) -> None:
    """All of them, one after the other; what needs root and finds none is skipped aloud."""
    session.install(*group("bench"))
    pytest(session, "tests/unit", "tests/property", "tests/scenario", "tests/docs", "tests/netns")


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Build sdist and wheel into dist/; install each into an environment of its own and run the demo."""
    session.install("build", "pipx", "uv")
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.run("python", "-m", "build", str(ROOT))
    tmp = Path(session.create_tmp()).resolve()
    revision = str(session.run("git", "rev-parse", "HEAD", external=True, silent=True)).strip()
    for archive in sorted((ROOT / "dist").iterdir()):
        clean = tmp / archive.suffix.lstrip(".")
        session.run("python", "-m", "venv", "--clear", str(clean))
        session.run(str(clean / "bin" / "pip"), "install", "-q", str(archive), external=True)
        program = str(clean / "bin" / "ztunnel-trio")
        with session.chdir(tmp):  # not the checkout, whose package would be found first
            build = str(session.run(program, "version", external=True, silent=True))
            if revision not in build:
                session.error(f"{archive.name} does not know its revision {revision}: {build}")
            session.run(str(clean / "bin" / "python"), "-c", TYPED, external=True)
            session.run(program, "demo", external=True)
    session.env["PIPX_HOME"] = str(tmp / "pipx")
    for command in RELEASED.findall((ROOT / "README.md").read_text())[0].splitlines():
        session.run(*command.split())


@nox.session(default=False)
def wheels(session: nox.Session) -> None:
    """Each dependency has a wheel for each of these systems and machines: no compiler is needed."""
    session.install("build")
    made = Path(session.create_tmp()).resolve()
    session.run("python", "-m", "build", "--wheel", "-o", str(made), str(ROOT), silent=True)
    [wheel] = made.glob("ztunnel_trio-*.whl")
    for system, python, minor in SYSTEMS:
        for machine in ("x86_64", "aarch64"):
            glibcs = [f"manylinux_2_{older}" for older in range(minor, 16, -1)]
            tags = [f"{glibc}_{machine}" for glibc in (*glibcs, "manylinux2014")]
            platforms = [option for tag in tags for option in ("--platform", tag)]
            session.log(f"{system}, {machine}")
            with tempfile.TemporaryDirectory() as target:
                session.run(
                    *("pip", "download", "-q", "-d", target, *platforms, "--python-version", python),
                    *("--only-binary=:all:", str(wheel)),
                    log=False,
                )


@nox.session(default=False)
def audit(session: nox.Session) -> None:
    """Known advisories of what the image's lock file names. With REQUIRE_AUDIT=1 no answer is a failure."""
    session.install("pip-audit")
    found = Path(session.create_tmp()).resolve() / "found.json"
    found.unlink(missing_ok=True)
    lock = str(ROOT / "image" / "requirements.lock")
    session.run(
        *("pip-audit", "-r", lock, "--require-hashes", "--disable-pip", "-f", "json", "-o", str(found)),
        success_codes=[0, 1],
    )
    packages = json.loads(found.read_text())["dependencies"] if found.exists() else []
    unanswered = [package["name"] for package in packages if "skip_reason" in package]
    for package in packages:
        for advisory in package.get("vulns", ()):
            fixed = ", ".join(advisory["fix_versions"]) or "no version"
            session.warn(f"{package['name']} {package['version']}: {advisory['id']}, fixed in {fixed}")
    if any(package.get("vulns") for package in packages):
        session.error("there are advisories for what is installed")
    if not packages or unanswered:
        say = session.error if os.environ.get("REQUIRE_AUDIT") else session.skip  # noqa: TID251
        say(
            f"not audited, the source of advisories gave no answer for: {', '.join(unanswered) or 'anything'}"
        )


@nox.session(default=False)
def supported(session: nox.Session) -> None:
    """What shows that an interpreter is supported: a clean install, the demo, unit and scenario tests."""
    session.install(".", *group("test"))
    session.run("ztunnel-trio", "demo")
    session.run("pytest", "tests/unit", "tests/scenario", *session.posargs)


for version in PYTHONS:
    nox.session(name=f"tests-{version}", python=version, default=False)(tests.func)
    nox.session(name=f"supported-{version}", python=version, default=False)(supported.func)


@nox.session(default=False)
def lowest(session: nox.Session) -> None:
    """Unit and scenario tests with the lowest versions of what is asked for; `tests` has the newest."""
    session.install("uv")
    versions = Path(session.create_tmp()).resolve() / "lowest.txt"
    python = str(session.run("python", "-c", "import sys; print(sys.executable)", silent=True)).strip()
    resolve = ("uv", "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--python", python)
    session.run(*resolve, "--output-file", str(versions), "pyproject.toml")
    session.install("--requirement", str(versions), *group("test"))
    session.install("--no-deps", "-e", ".")
    session.run("pytest", "tests/unit", "tests/scenario", *session.posargs)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Branch coverage of unit and property tests."""
    session.install("-e", ".", *group("test"))
    session.run("coverage", "run", "-m", "pytest", "-q", "tests/unit", "tests/property")
    session.run("coverage", "report", "--skip-covered", "--show-missing", *session.posargs)


@nox.session(default=False)
def protos(session: nox.Session) -> None:
    """Make ztunnel_trio/pb from protos; `-- --check` only says whether it is up to date."""
    session.install(*group("protos"), *[r for r in PROJECT["project"]["dependencies"] if "grpclib" in r])
    with tempfile.TemporaryDirectory() as made:
        generate(session, Path(made))
        kept = ROOT / "ztunnel_trio" / "pb"
        if "--check" in session.posargs:
            if wrong := differing(Path(made), kept):
                session.error(f"not as generated, run nox -s protos: {', '.join(wrong)}")
            return
        for name in files_of(Path(made)):
            target = kept / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(made) / name, target)


def generate(session: nox.Session, target: Path) -> None:
    """Run the compilers into a directory laid out as ztunnel_trio/pb."""
    script = "import grpc_tools, pathlib; print(pathlib.Path(grpc_tools.__file__).parent / '_proto')"
    well_known = str(session.run("python", "-c", script, silent=True)).strip()
    protoc = ("python", "-m", "grpc_tools.protoc", "-I", well_known, "-I", str(ROOT / "protos"))
    messages = target / "messages"
    messages.mkdir()
    with session.chdir(target):  # betterproto2 formats with the ruff settings of where it runs
        outputs = (f"--python_out={target}", f"--pyi_out={target}", f"--grpclib_python_out={target}")
        session.run(*protoc, *outputs, *RUNTIME_PROTOS)
        options = ("client_generation=async", "server_generation=async")
        flags = [f"--python_betterproto2_opt={option}" for option in options]
        session.run(*protoc, f"--python_betterproto2_out={messages}", *flags, *MESSAGE_PROTOS)
    for path in (*target.glob("*.py"), *target.glob("*.pyi")):
        text = re.sub(
            r"^import (\w+_pb2)", r"from ztunnel_trio.pb import \1", path.read_text(), flags=re.MULTILINE
        )
        path.write_text(text)
    for empty in ("workload_grpc.py", "authorization_grpc.py"):  # these files define no service
        (target / empty).unlink()


def files_of(directory: Path) -> set[Path]:
    """Every file below, relative, without what the interpreter leaves behind."""
    return {
        path.relative_to(directory)
        for path in directory.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def differing(made: Path, kept: Path) -> list[str]:
    """Files that differ, are missing, or are too many (the package's own docstring is ours)."""
    both = files_of(made) | (files_of(kept) - {Path("__init__.py")})
    return sorted(
        str(name)
        for name in both
        if not ((made / name).exists() and (kept / name).exists())
        or not filecmp.cmp(made / name, kept / name, shallow=False)
    )


REFERENCES = {
    "env.md": "ztunnel_trio.facts.env",
    "metrics.md": "ztunnel_trio.observe.metrics",
    "commands.md": "tests.docs.commands_page",
    "endpoints.md": "tests.docs.endpoints_page",
    "licences.md": "tests.docs.licences_page",
    "chart.md": "tests.docs.chart_page",
}


@nox.session(default=False)
def operators(session: nox.Session) -> None:
    """How long a scrape, a dump and a log burst hold the loop, and what a churn of pods leaves; a minute."""
    session.install("-e", ".", *group("test"))
    session.run("python", "-m", "tests.benchmarks.operators", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Make docs/reference (`-- --check`: compare), test the pages, build the site; a warning is an error."""
    session.install("-e", ".", *group("docs"))
    for name, module in REFERENCES.items():
        page = ROOT / "docs" / "reference" / name
        if "--check" in session.posargs:
            session.run("python", "-m", module, "--check", str(page))
        else:
            page.write_text(str(session.run("python", "-m", module, silent=True)))
    pages = [*ROOT.glob("*.md"), *(ROOT / "protos").glob("*.md")]  # those that are no part of the site
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in pages
        for target in LINK.findall(path.read_text())
        if "://" not in target and not (path.parent / target).exists()
    ]
    if broken:
        session.error("links that lead nowhere:\n" + "\n".join(broken))
    session.run("pytest", "-q", "tests/docs")
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})  # an advertisement


@nox.session(default=False)
def pictures(session: nox.Session) -> None:
    """Make the pictures and the dashboard's answers from a demo; root, and Debian's package prometheus."""
    session.install("-e", ".", *group("test"))
    session.run("python", "-m", "tests.docs.demo_picture")
    session.run("python", "-m", "tests.docs.nursery_picture")
    page = str(
        session.run("python", "-m", "tests.docs.dashboard_page", silent=True, stderr=subprocess.DEVNULL)
    )
    (ROOT / "docs" / "dashboards.md").write_text(page)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmarks named behind `--`, or all: `-- datapath --beside ../old/.venv/bin/ztunnel-trio`."""
    session.install("-e", ".", *group("test"), *group("bench"))
    every = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in NO_BENCHMARKS)
    names = [name for name in session.posargs if name in every] or every
    options = [option for option in session.posargs if option not in every]
    for name in names:
        session.run("python", "-m", f"tests.benchmarks.{name}", *options)


if __name__ == "__main__":
    sys.exit("run nox")
