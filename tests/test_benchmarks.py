"""What the benchmarks' pages say is what was measured, and every suite is one that can be run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import unseen_ray as ur

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SUITES = sorted((BENCHMARKS / "suites").glob("*.yaml"))


def test_the_tables_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "tables.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_a_suite_names_methods_that_it_has_and_fields_that_there_are(path: Path) -> None:
    suite = yaml.safe_load(path.read_text())
    methods = suite["methods"]
    assert suite["rows"]
    for row in suite["rows"]:
        assert set(row) == {"methods", "scores", "keep"}
        assert set(row["methods"]) <= {*methods, "random"}
        for score in row["scores"]:
            for keep in row["keep"]:
                for name in set(row["methods"]) - {"random"}:
                    fields = {key: value for key, value in methods[name].items() if key != "schedule"}
                    shared = {key: suite[key] for key in ("model", "recipe") if key in suite}
                    ur.PruneConfig(source="digits", keep=keep, score=score, **shared, **fields)
