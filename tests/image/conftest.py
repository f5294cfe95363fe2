"""The built image, once a run. Where it cannot be built the tests are skipped and say why.

With REQUIRE_IMAGE=1 that is a failure.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.build import Image, built, missing


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where images are kept: `IMAGE_WORK`, or a directory that goes."""
    kept = os.environ.get("IMAGE_WORK")  # noqa: TID251  where tests look for it
    return Path(kept) if kept else tmp_path_factory.mktemp("image")


@pytest.fixture(scope="session")
def image(work: Path) -> Iterator[Image]:
    if why := missing():
        if os.environ.get("REQUIRE_IMAGE") == "1":  # noqa: TID251  how CI says so
            pytest.fail(why)
        pytest.skip(why)
    work.mkdir(parents=True, exist_ok=True)
    with built(work) as found:
        yield found


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A directory for containers; what still runs at the end is ended."""
    yield tmp_path
    runc = ["runc", "--root", str(tmp_path / "runc")]
    listed = subprocess.run([*runc, "list", "--quiet"], capture_output=True, text=True, check=False)
    for container in listed.stdout.split():
        subprocess.run([*runc, "delete", "--force", container], check=True)
