"""README and the pages of docs/ keep their word: links lead somewhere, commands and flags exist, YAML is a configuration, Python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import yaml

import unseen_ray as ur
from unseen_ray.cli.app import cli
from unseen_ray.execution.ray.connect import ray_session

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
LINKED = {**PAGES, **{f"{name}/README.md": ROOT / name / "README.md" for name in ("benchmarks", "cluster")}}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and Sphinx name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", LINKED)
def test_links_lead_somewhere(name: str) -> None:
    page = LINKED[name]
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{name}: {link}"
        assert not anchor or anchor in anchors(target), f"{name}: {link}"


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if blocks(page, "bash")])
def test_commands_and_flags_exist(name: str) -> None:
    code = re.sub(r"#.*", "", "\n".join(blocks(PAGES[name], "bash"))).replace("\\\n", "")
    lines = re.findall(r"unseen-ray (\w+)([^\n]*)", code)
    assert lines
    for command, rest in lines:
        known = cli.get_command(click.Context(cli), command)
        assert known is not None, command
        options = {option for parameter in known.params for option in parameter.opts}
        for flag in re.findall(r"--[\w.-]+", rest.split(" -- ")[-1]):
            assert flag.replace("-", "_").replace("__", "--", 1) in options or "." in flag, f"{command} {flag}"


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if blocks(page, "yaml")])
def test_yaml_is_a_configuration(name: str) -> None:
    for block in blocks(PAGES[name], "yaml"):
        fields = yaml.safe_load(block)
        if "space" in fields:
            assert ur.SweepConfig(**fields).seeds == 2
        else:
            assert ur.PruneConfig(**fields).fractions()[-1] == pytest.approx(0.7)


@pytest.mark.ray
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (session,) = blocks(PAGES["README.md"], "python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with ray_session(None):  # else the block's own would stay open until this process ends
        exec(session, names)
    assert len(names["kept"]) == len(names["anew"]) == round(0.7 * 1797)  # type: ignore[arg-type]


def test_own_score_and_policy_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plugs,) = blocks(PAGES["docs/extend.md"], "python")
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
            out=str(tmp_path / "run"),
            executor="local",
        )
    )
    assert len(result.coreset) == 20


def test_own_probabilities_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (session,) = blocks(PAGES["docs/tutorial_tables.md"], "python")
    lines = re.findall(
        r"unseen-ray ((?:score|select|export) [^\n]+)", blocks(PAGES["docs/tutorial_tables.md"], "bash")[0]
    )
    monkeypatch.chdir(tmp_path)
    exec(session, {})
    for line in lines:
        cli.main(line.split(), standalone_mode=False)
    assert len(np.load(tmp_path / "kept.npy")) == round(0.7 * 1797)


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    places = ["-c", ROOT / "docs", ROOT, tmp_path / "site"]
    line = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", *places]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "unseen_ray.KeptSampler" in (tmp_path / "site" / "docs" / "api.html").read_text()
