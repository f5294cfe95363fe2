"""The rooms: who may import whom, what stays out of the pure tiers, and that tests mirror the tree."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ztunnel_trio"
TESTS = ROOT / "tests" / "unit"

TIERS = {
    "__version__": 0, "errors": 0, "pb": 0, "facts": 0, "shortcuts": 0,
    "model": 1,
    "mesh": 2, "wire": 2,
    "decide": 3, "xds": 3,
    "net": 4, "supervise": 4, "observe": 4,
    "live_mesh": 5,
    "certs": 6, "control": 6,
    "proxy": 7, "dns": 7,
    "inpod": 8,
    "admin": 9,
    "lab": 10, "grammar": 10, "early_signals": 10, "compliance": 10, "requirements": 10,
    "config": 11,
    "build_info": 12,
    "assembly": 13,
    "app": 14,
    "cli": 14,
    "__main__": 15,
}  # fmt: skip
PURE_TIER = 3
IMPURE = {"asyncio", "logging", "os", "random", "socket", "ssl", "threading", "time", "trio"}
ALSO_PURE = {"inpod/roster.py"}
GROUND = {"shortcuts"}  # imports nothing of ours, but is not pure


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "pb" not in path.relative_to(PACKAGE).parts)


def room(path: Path) -> str:
    """The package of a file, or the file itself at the top."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> Iterator[str]:
    """The dotted names a module imports when it runs, without what is under TYPE_CHECKING."""
    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for branch in child.orelse:
                yield from walk(branch)
        else:
            yield from walk(child)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_lower_tiers_and_its_own_package(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    for name in imports(path):
        top, *rest = name.split(".")
        if top != "ztunnel_trio" or not rest or rest[0] == here:
            continue
        there = rest[0]
        assert there in TIERS, f"{name}: in no tier"
        assert TIERS[there] < TIERS[here], f"{here} (tier {TIERS[here]}) imports {name} (tier {TIERS[there]})"


def pure_modules() -> list[Path]:
    return [
        path
        for path in modules()
        if (TIERS.get(room(path), 99) <= PURE_TIER and room(path) not in GROUND)
        or str(path.relative_to(PACKAGE)) in ALSO_PURE
    ]


@pytest.mark.parametrize("path", pure_modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_pure_tiers_know_no_clock_no_kernel_and_no_chance(path: Path) -> None:
    names = [name.split(".") for name in imports(path)]

    assert {name[0] for name in names} & IMPURE == set()
    assert {name[1] for name in names if name[0] == "ztunnel_trio" and len(name) > 1} & GROUND == set()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_second_event_loop_lives_in_one_room(path: Path) -> None:
    found = {name.split(".")[0] for name in imports(path)} & {"asyncio", "grpclib", "trio_asyncio"}

    assert not found or path.parent == PACKAGE / "control" / "grpc"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_proxy_never_loads_the_lab_or_the_commands(path: Path) -> None:
    if room(path) in ("lab", "cli", "__main__"):
        return
    for name in imports(path):
        assert name.split(".")[:2] not in (["ztunnel_trio", "lab"], ["ztunnel_trio", "cli"]), name


def test_every_room_has_a_tier() -> None:
    assert {room(path) for path in modules()} - {"__init__"} <= set(TIERS)


def classes(path: Path) -> Iterator[str]:
    """The public classes a module defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def test_a_class_name_stands_in_one_room() -> None:
    """docs/vocabulary.md: one meaning a word."""
    rooms: dict[str, set[str]] = {}
    for path in modules():
        for name in classes(path):
            rooms.setdefault(name, set()).add(room(path))

    assert {name: where for name, where in rooms.items() if len(where) > 1} == {}


def test_every_unit_test_mirrors_a_module() -> None:
    """tests/unit/ROOM/test_FILE.py tests ztunnel_trio/ROOM/FILE.py; tests/unit/{fakes,benchmarks} those."""
    for path in TESTS.rglob("test_*.py"):
        where = path.relative_to(TESTS)
        name = "__main__" if where.name == "test_main.py" else where.stem.removeprefix("test_")
        if where.parts == ("test_layers.py",):
            continue
        base = ROOT / "tests" if where.parts[0] in ("fakes", "benchmarks") else PACKAGE
        source = base / where.parent / f"{name}.py"
        assert source.exists(), f"{where} tests nothing: there is no {source.relative_to(ROOT)}"
