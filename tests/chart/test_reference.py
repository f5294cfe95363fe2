"""docs/reference/chart.md is made from the chart."""

import subprocess
import sys

from tests.chart.helm import CHART


def test_the_page_of_values_is_as_made() -> None:
    made = subprocess.run(
        [sys.executable, str(CHART.parent / "reference.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert made.returncode == 0, made.stderr
