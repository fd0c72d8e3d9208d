"""README keeps its word: its Python runs, its YAML is a configuration, its flags exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import pytest
import yaml

import unseen_ray as ur
from unseen_ray.cli.app import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DATA = (ROOT / "docs" / "data.md").read_text()


def blocks(language: str, page: str = README) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    assert found, f"there is no {language} block"
    return found


def test_its_yaml_is_a_configuration() -> None:
    fields, swept = (yaml.safe_load(block) for block in blocks("yaml"))
    assert ur.SweepConfig(**swept).seeds == 2
    config = ur.PruneConfig(**fields)
    assert config.fractions() == pytest.approx([0.4, 0.55, 0.7])


@pytest.mark.parametrize("page", [README, DATA], ids=["README", "data"])
def test_its_commands_and_flags_exist(page: str) -> None:
    code = re.sub(r"#.*", "", "\n".join(blocks("bash", page)))
    lines = re.findall(r"unseen-ray (\w+)([^\n]*)", code)
    assert len(lines) >= 5
    for command, rest in lines:
        known = cli.get_command(click.Context(cli), command)
        assert known is not None, command
        options = {option for parameter in known.params for option in parameter.opts}
        for flag in re.findall(r"--[\w.-]+", rest.split(" -- ")[-1]):
            assert flag.replace("-", "_").replace("__", "--", 1) in options or "." in flag, f"{command} {flag}"


@pytest.mark.ray
def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, plugs = blocks("python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(session, names)
    assert len(names["kept"]) == round(0.7 * 1797)  # type: ignore[arg-type]
    (tmp_path / "my_lab.py").write_text(plugs)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    result = ur.prune(
        ur.PruneConfig(
            source={"use": "digits", "limit": 40},
            recipe={"epochs": 2, "min_steps": 0},
            score="my_lab:gini",
            policy="my_lab:easiest",
            keep=0.5,
            folds=2,
            out="runs/my_lab",
            executor="local",
        )
    )
    assert len(result.coreset) == 20
