"""docs/training_loops.md keeps its word: every block runs, where the library that it is for is installed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import unseen_ray as ur
from unseen_ray.cli import main
from unseen_ray.reporting.kept_sampler import KeptSampler

PAGE = (Path(__file__).parents[1] / "docs" / "training_loops.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def block_with(text: str) -> str:
    """The one block that holds a text."""
    (found,) = [block for block in BLOCKS if text in block]
    return str(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that the page reads."""
    root = tmp_path_factory.mktemp("loops")
    fields: dict[str, Any] = {"keep": 0.5, "folds": 2, "recipe": {"epochs": 1, "min_steps": 0}, "executor": "local"}
    ur.prune(ur.PruneConfig(source={"use": "digits", "limit": 300}, out=root / "runs" / "digits", **fields))
    return root


@pytest.fixture
def names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the first block of the page defines, in that folder."""
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {"__name__": "__main__"}
    exec(BLOCKS[0], found)
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids that samplers gave since, in order."""
    found: list[int] = []

    class Recorded(ur.KeptSampler):
        def __iter__(self) -> Iterator[int]:
            for number in super().__iter__():
                found.append(number)
                yield number

    monkeypatch.setattr(ur, "KeptSampler", Recorded)
    return found


def ids_of(epochs: int) -> list[int]:
    sampler = KeptSampler("runs/digits")
    return [number for _ in range(epochs) for number in sampler]


def test_no_block_has_more_than_ten_lines() -> None:
    assert len(BLOCKS) == 8
    assert max(sum(map(bool, block.splitlines())) for block in BLOCKS) <= 10


def test_pytorch(names: dict[str, Any], drawn: list[int]) -> None:
    exec(block_with("for epoch"), names)
    assert drawn == ids_of(epochs=2)
    assert [len(labels) for _, labels in names["same"]] == [64, 64, 22]


def test_the_exports(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        main(shlex.split(line, comments=True)[1:])
    said = capsys.readouterr().out
    assert "Wrote what KeptSampler draws from (150 kept samples) to sampler.json." in said
    assert "Wrote the weights of all rows (1 for 150 kept samples, 0 for the others) to weights.npy." in said
    exec(block_with("sampler.json"), names)
    assert list(names["anew"]) == list(ur.KeptSampler(names["result"]))
    assert sorted(names["coreset"]) == names["result"].coreset.ids.tolist()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries, about one another
@pytest.mark.parametrize(
    ("library", "begins", "epochs"),
    [
        ("timm", "import timm\n", 1),
        ("lightning", "import lightning\n", 2),
        ("transformers", "from transformers import", 3),
    ],
)
def test_a_library_trains_on_the_epochs_of_the_sampler(
    names: dict[str, Any], drawn: list[int], library: str, begins: str, epochs: int
) -> None:
    for needed in (library, *(["accelerate"] if library == "transformers" else [])):
        pytest.importorskip(needed, reason=f"{needed} is not installed; pip install {needed}")
    exec(block_with(begins), names)
    assert drawn == ids_of(epochs)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
def test_torchdata_resumes(names: dict[str, Any]) -> None:
    pytest.importorskip("torchdata", reason="torchdata is not installed; pip install torchdata")
    exec(block_with("from torchdata"), names)
    left = torch.cat([labels for _, labels in names["loader"]])
    assert left.tolist() == names["kept"].dataset.targets[ids_of(epochs=1)[64:]].tolist()
