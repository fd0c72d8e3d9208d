"""What is allowed and worth knowing is told with its numbers on stderr, and the run goes through."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conftest import class_pixels, png_bytes, write_parquet
from unseen_ray.cli import main

FAST = "--executor local --recipe.epochs 1 --recipe.min_steps 0"


def data_of(tmp_path: Path, labels: Any) -> Path:
    labels = np.asarray(labels)
    return write_parquet(tmp_path / "data.parquet", labels, [png_bytes(pixels) for pixels in class_pixels(labels, 8)])


BALANCED = np.arange(40) % 4
CASES = [
    (
        "labels with holes",
        np.where(BALANCED == 2, 6, BALANCED),
        "",
        r"3 of 7 classes have no sample \(the first is 2\); models get 7 outputs nevertheless",
    ),
    (
        "a class smaller than the folds",
        np.r_[np.arange(38) % 3, 3, 3],
        "",
        r"1 classes have fewer samples than the 4 folds \(class 3 has 2\): some folds have no sample of them",
    ),
    (
        "a fold smaller than the batch",
        BALANCED,
        "--recipe.batch_size 16",
        r"the smallest training set holds 10 samples, fewer than the batch of 16: its batch shrinks to 10",
    ),
    (
        "a first stage smaller than the batch",
        BALANCED,
        "--recipe.batch_size 8 --schedule [0.15,0.5]",
        r"the smallest training set holds 6 samples, fewer than the batch of 8: its batch shrinks to 6",
    ),
    (
        "all data smaller than the batch",
        BALANCED,
        "--mode fitting --recipe.batch_size 64",
        r"the smallest training set holds 40 samples, fewer than the batch of 64: its batch shrinks to 40",
    ),
]


@pytest.mark.parametrize(
    ("labels", "more", "message"), [pytest.param(*c[1:], id=c[0].replace(" ", "-")) for c in CASES]
)
def test_the_warning_is_told_and_the_run_goes_through(
    labels: np.ndarray, more: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = data_of(tmp_path, labels), tmp_path / "run"
    main(shlex.split(f"prune --source {data} --keep 0.5 --out {out} {FAST} {more}"))
    stdout, stderr = capsys.readouterr()
    assert re.search(rf"WARNING {message}", stderr), stderr
    assert "WARNING" not in stdout and "Traceback" not in stderr
    kept = pq.read_table(out / "coreset.parquet")
    assert kept.num_rows == 20
    assert kept.column("label").to_pylist() == labels[kept.column("id").to_numpy()].tolist()


@pytest.mark.parametrize(
    ("labels", "more", "message"), [pytest.param(*c[1:], id=c[0].replace(" ", "-")) for c in CASES]
)
def test_a_plan_warns_of_the_same(
    labels: np.ndarray, more: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(shlex.split(f"plan --source {data_of(tmp_path, labels)} --keep 0.5 {more}"))
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_what_is_in_order_is_not_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = data_of(tmp_path, BALANCED), tmp_path / "run"
    flags = f"{FAST} --policy class_balanced --recipe.batch_size 10 --recipe.epochs 30"
    main(shlex.split(f"prune --source {data} --keep 0.5 --out {out} {flags}"))
    assert "WARNING" not in capsys.readouterr().err


def test_models_that_know_no_more_than_the_largest_class_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "--source.use tests.plugs:noise --source.count 1000 --source.classes 2"
    main(shlex.split(f"prune {source} --keep 0.5 --folds 2 --out {tmp_path / 'run'} {FAST}"))
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(
        r"the models of stage 0 are right on \d\d\.\d % of what they scored, .* their scores mean little", said
    )
