"""A user's own training on fold actors: without torch, unless the user's code has it, and then set as ever."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import unseen_ray as ur
from unseen_ray.training.host import cpu_precision, cpu_precisions, describe_machine
from unseen_ray.training.user_task import when_imported

pytestmark = pytest.mark.ray


def run(out: Path, fit: object, **fields: Any) -> ur.PruneResult:
    source = {"use": "digits", "limit": 200}
    return ur.prune(ur.PruneConfig(source=source, keep=0.5, folds=3, fit=fit, out=str(out), **fields))


def notes_of(tmp_path: Path, **fields: Any) -> tuple[ur.PruneResult, list[dict[str, Any]]]:
    fit = {"use": "tests.plugs:noted_torch", "log": str(tmp_path), "late": fields.pop("late")}
    result = run(tmp_path / "run", fit, **fields)
    notes = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("0-*.json"))]
    assert len(notes) == 3
    return result, notes


@pytest.mark.slow
def test_a_fit_without_torch_never_meets_it(session: None, tmp_path: Path) -> None:
    result, notes = notes_of(tmp_path, late=False)
    assert not any(note["torch"] for note in notes)
    local = run(tmp_path / "local", "tests.plugs:centroids", executor="local")
    assert result.scores == local.scores
    assert result.coreset.ids.tolist() == local.coreset.ids.tolist()
    here, there = local.manifest.environment, result.manifest.environment
    for fact in ("device", "machine", "processor", "python", "torchvision", "numpy", "pyarrow", "unseen_ray"):
        assert here[fact] == there[fact]
    assert here["torch"].startswith(there["torch"])
    assert {done.manifest.config["recipe"]["precision"] for done in (local, result)} == {cpu_precision("auto")}


@pytest.mark.slow
def test_a_torch_that_a_fit_imports_late_is_set_as_if_it_had_been_there(session: None, tmp_path: Path) -> None:
    """Three folds on one worker of two CPUs, so that the first imports torch, and the others find it."""
    _, notes = notes_of(tmp_path, late=True, cpus_per_fold=2, threads=1)
    assert len({note["pid"] for note in notes}) == 1
    assert [note["torch"] for note in notes].count(False) == 1
    assert [note["threads"] for note in notes] == [1, 1, 1]
    assert len({tuple(note["drawn"]) for note in notes}) == 1, "what a fold draws depends on what was drawn before"


def test_what_is_told_without_torch_is_what_torch_tells() -> None:
    import torch

    from unseen_ray.training.hardware import describe_hardware, resolve_precision, supported_precisions

    cpu = torch.device("cpu")
    assert cpu_precisions() == supported_precisions(cpu)
    assert cpu_precision("auto") == resolve_precision("auto", cpu)
    assert cpu_precision("float32") == "float32"
    told = describe_hardware(cpu)
    assert {**describe_machine("cpu"), "torch": told["torch"]} == told


def test_something_is_done_once_a_module_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_module.py").write_text("seen = []\nvalue = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(sys.meta_path)
    with when_imported("late_module", lambda: sys.modules["late_module"].seen.append("done")):
        import json as other  # noqa: F401

        import late_module  # type: ignore[import-not-found]

        assert late_module.seen == ["done"]
        assert late_module.__loader__ is late_module.__spec__.loader
        assert type(late_module.__loader__).__module__ != "unseen_ray.training.user_task"
    assert sys.meta_path == before
    with when_imported("never_imported", lambda: None):
        pass
    assert sys.meta_path == before
    del sys.modules["late_module"]
