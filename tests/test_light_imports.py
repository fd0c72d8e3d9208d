"""What must start at once does: neither torch nor ray is loaded for it, seen from fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "torchvision", "ray"}
HELP_LIMIT_S = 0.5
LOADED = (
    "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)"
)
COMMAND = """
import sys
from unseen_ray.cli import main
sys.argv = ["unseen-ray", *sys.argv[1:]]
try:
    main()
finally:
    {loaded}
"""


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def loaded_by(code: str, *arguments: str, cwd: Path) -> tuple[str, set[str]]:
    """stdout, and the top-level modules that were loaded at the end."""
    done = python("-c", code, *arguments, cwd=cwd)
    return done.stdout, set(json.loads(done.stderr.splitlines()[-1]))


def loaded_by_command(*arguments: str, cwd: Path) -> tuple[str, set[str]]:
    return loaded_by(COMMAND.format(loaded=LOADED), *arguments, cwd=cwd)


def test_the_probe_sees_what_is_loaded(tmp_path: Path) -> None:
    assert "torch" in loaded_by(f"import torch; {LOADED}", cwd=tmp_path)[1]


def test_where_ray_cannot_be_imported_the_error_names_the_executor_that_needs_none(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["ray"] = None
import unseen_ray as ur
try:
    ur.prune(source="digits", keep=0.5, out="run")
except ur.ConfigError as error:
    print(error)
"""
    assert "or set executor='local', which needs none" in python("-c", code, cwd=tmp_path).stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "code", ["import unseen_ray", "import unseen_ray as ur; ur.PruneConfig; ur.prune; ur.plan_folds"]
)
def test_importing_the_package_is_light(code: str, tmp_path: Path) -> None:
    modules = loaded_by(f"{code}; {LOADED}", cwd=tmp_path)[1]
    assert "unseen_ray" in modules
    assert not modules & HEAVY


def test_the_core_needs_numpy_and_nothing_else(tmp_path: Path) -> None:
    modules = loaded_by(f"import unseen_ray.core.scores; {LOADED}", cwd=tmp_path)[1]
    assert "numpy" in modules
    assert not modules & (HEAVY | {"pyarrow", "pydantic", "yaml", "click", "rich", "sklearn", "PIL"})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["plan", "--help"],
        ["prune", "--help"],
        ["prepare", "--help"],
        ["submit", "--help"],
        ["watch", "--help"],
        ["list", "scores"],
    ],
)
def test_help_is_light(arguments: list[str], tmp_path: Path) -> None:
    answer, modules = loaded_by_command(*arguments, cwd=tmp_path)
    assert answer.strip()
    assert "click" in modules
    assert not modules & HEAVY


def test_plan_is_light_and_starts_nothing(tmp_path: Path) -> None:
    answer, modules = loaded_by_command("plan", "--source", "digits", "--keep", "0.7", cwd=tmp_path)
    assert "1,258" in answer
    assert "unseen_ray" in modules
    assert not modules & HEAVY
    assert list(tmp_path.iterdir()) == []


def test_help_answers_within_half_a_second(tmp_path: Path) -> None:
    """Of a core of its own: a machine that tests side by side gives it less. On a slow one, four times what NumPy takes to load."""
    numpy_s = least_cpu_s("-c", "import numpy", cwd=tmp_path)
    seconds = least_cpu_s("-m", "unseen_ray", "--help", cwd=tmp_path)
    assert seconds <= max(HELP_LIMIT_S, 4 * numpy_s), f"it took {seconds} s, and NumPy {numpy_s} s"


def least_cpu_s(*arguments: str, cwd: Path) -> float:
    """CPU seconds of a fresh process, the least of three after one that warms the file cache."""
    seconds = []
    for _ in range(4):
        before = os.times()
        python(*arguments, cwd=cwd)
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(seconds[1:])
