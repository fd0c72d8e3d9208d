"""The fields of a run as keywords: complete, typed, described, and the same as a configuration."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import unseen_ray as ur
from unseen_ray.config.fields import keywords
from unseen_ray.config.run import SCORE_FIELDS, PruneConfig
from unseen_ray.sweeps.config import SweepFields

DIGITS: dict[str, Any] = {"source": {"use": "digits", "limit": 300}, "keep": 0.5, "executor": "local"}
QUICK: dict[str, Any] = {
    **DIGITS,
    "folds": 2,
    "recipe": {"epochs": 1, "min_steps": 0},
    "log_to": "none",
    "policy": "top",
}
SWEEP: dict[str, Any] = {"run": {"source": "digits", "keep": 0.5, "holdout": 0.2}, "space": {"folds": [2, 4]}}


@pytest.mark.parametrize("fields", [keywords.RunFields, keywords.NewRunFields])
def test_the_keywords_are_the_fields_of_a_run(fields: type[Any]) -> None:
    assert set(get_type_hints(fields)) == set(PruneConfig.model_fields)


def test_the_keywords_of_other_functions_are_their_fields() -> None:
    assert set(get_type_hints(keywords.ScoreFields)) == set(SCORE_FIELDS)
    assert set(get_type_hints(SweepFields)) == set(ur.SweepConfig.model_fields)
    assert keywords.NewRunFields.__required_keys__ == {"source", "keep"}
    for name in get_type_hints(keywords.MeasureFields).keys() - {"source"}:  # it takes no objects
        assert get_type_hints(keywords.MeasureFields)[name] == get_type_hints(keywords.RunFields)[name]


@pytest.mark.parametrize("function", [ur.prune, ur.plan, ur.plan_values])
def test_notebooks_complete_the_fields(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    assert set(PruneConfig.model_fields) < set(parameters)
    assert next(iter(parameters)) == "config"


def test_an_editor_is_offered_the_fields() -> None:
    import jedi

    offered = {each.name for each in jedi.Interpreter("ur.prune(", [{"ur": ur}]).complete()}
    assert {f"{name}=" for name in PruneConfig.model_fields} < offered


@pytest.mark.parametrize("model", [ur.PruneConfig, ur.Recipe, ur.SweepConfig])
def test_help_describes_each_field(model: Any) -> None:
    text = pydoc.plain(pydoc.render_doc(model))
    for name, field in model.model_fields.items():
        assert f"{name}: {field.description}" in text


def test_keywords_a_config_and_a_file_are_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("source: {use: digits, limit: 300}\nkeep: 0.5\nexecutor: local\nfolds: 3\n")
    wanted = PruneConfig(**DIGITS, folds=2)
    for given in (
        ur.plan(**DIGITS, folds=2),
        ur.plan(wanted),
        ur.plan(PruneConfig(**DIGITS, folds=3), folds=2),
        ur.plan(path, folds=2),
    ):
        assert given[2].to_json() == ur.plan(wanted)[2].to_json()
    assert ur.plan_values(str(path), workers=2)["num_samples"] == 300


def test_a_run_by_keywords_is_resumed_by_its_config(tmp_path: Path) -> None:
    first = ur.prune(**QUICK, out=tmp_path / "run")
    again = ur.prune(PruneConfig(**QUICK, out=str(tmp_path / "run")))
    assert again.coreset.ids.tolist() == first.coreset.ids.tolist()
    assert again.manifest.created == first.manifest.created


def test_wrong_keywords_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ur.ConfigError, match=r"foldz is not a field\. Did you mean 'folds'"):
        ur.prune(source="digits", keep=0.5, foldz=3)
    with pytest.raises(ur.ConfigError, match="source is missing"):
        ur.plan()
    with pytest.raises(
        ur.ConfigError, match="config is of type dict; it must be a PruneConfig or the path of a YAML file"
    ):
        ur.plan({"source": "digits"})  # type: ignore[arg-type]


def test_a_sweep_takes_a_file_and_keywords(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("run: {source: digits, keep: 0.5, holdout: 0.2}\nspace: {folds: [2, 4, 8]}\n")
    wanted = ur.sweep_plan_values(ur.SweepConfig(**SWEEP))
    assert ur.sweep_plan_values(**SWEEP) == wanted
    assert ur.sweep_plan_values(path, space={"folds": [2, 4]}) == wanted
    assert ur.sweep_plan_values(ur.SweepConfig(**SWEEP, seeds=2), seeds=1) == wanted


def errors_of(code: str, folder: Path) -> str:
    (folder / "script.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", str(folder / "cache")]
    done = subprocess.run([*command, "script.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow  # mypy reads pydantic, numpy and torch anew
def test_a_type_checker_refuses_wrong_fields(tmp_path: Path) -> None:
    code = """import unseen_ray as ur
ur.prune(source="digits", keep=0.7, folds=4, out="runs/a")
ur.prune("run.yaml", keep=0.5, schedule=[0.4, 0.5], score=len, recipe={"epochs": 3})
ur.PruneConfig(source="digits", keep=0.7)
ur.prune(source="digits", keep="a lot")
ur.plan(source="digits", keep=0.7, foldz=3)
ur.PruneConfig(source="digits", keep=0.7, foldz=3)
ur.PruneConfig(source="digits")
ur.prune(source=3, keep=0.7)
ur.evaluate("runs/a", folds=3)
ur.sweep(run={}, space={}, search="best")
"""
    found = errors_of(code, tmp_path)
    lines = [
        int(line.split(":")[1]) for line in found.splitlines() if line.startswith("script.py") and ": error:" in line
    ]
    assert lines == [5, 6, 7, 8, 9, 10, 11], found
