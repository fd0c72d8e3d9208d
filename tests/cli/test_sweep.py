"""`unseen-ray sweep`: what it refuses, what it prints, and that it finds data by relative paths."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.distributed.test_sweep import RUN
from unseen_ray.cli import main


def test_a_sweep_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"run": {**RUN, "holdout": 0}, "space": {"fold": [2]}}))
    with pytest.raises(SystemExit) as left:
        main(["sweep", "bad.yaml", "--out", "x"])
    assert left.value.code == 2 and not (tmp_path / "x").exists()
    said = capsys.readouterr().err
    assert "space.fold cannot be swept" in said and "Set run.holdout: 0.1" in said


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for number in range(60):
        (images / str(number % 3)).mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8, 3), 80 * (number % 3) + number, np.uint8)
        Image.fromarray(pixels).save(images / str(number % 3) / f"{number}.png")
    run = {**RUN, "source": "images"}  # a path below the folder that the sweep is started in
    (tmp_path / "good.yaml").write_text(yaml.safe_dump({"run": run, "space": {"score": ["entropy", "margin"]}}))
    good = subprocess.run(
        [sys.executable, "-m", "unseen_ray", "sweep", "good.yaml", "--out", "y"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert good.returncode == 0, good.stderr[-3000:]
    assert good.stdout.startswith("2 of 2 trials finished.\n")
    assert "stage 0\t8\t4\t4\n" in good.stdout
    assert re.search(r"trial 1 \(score=\w+\) finished: accuracy 0\.\d{4} of 29 samples kept", good.stderr)
    assert "Traceback" not in good.stderr
    assert np.isfinite(pq.read_table(tmp_path / "y" / "sweep.parquet").column("accuracy").to_numpy()).all()
