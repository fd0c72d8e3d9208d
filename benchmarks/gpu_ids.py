"""The same ids wherever a deterministic run is made, and however often it was killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from gpu_checks import Found, Place

KILLED_AFTER = 3  # of the five models of the run


def locally(place: Place) -> Found:
    """Without Ray, twice."""
    ids = _reference(place)
    found = _ids(place, "again", "--executor", "local")
    yield f"{found}, again as the first time", {"ids": found}
    _check(ids, found)


def on_ray(place: Place, share: float | None = None) -> Found:
    """Folds in actors of Ray, which wait for the GPU or share it."""
    ids = _reference(place)
    given = [] if share is None else ["--gpus_per_fold", str(share)]
    found = _ids(place, f"ray {share or ''}".strip(), *given)
    yield f"{found}, as locally: {found == ids}", {"ids": found, "local": ids}
    _check(ids, found)


def killed(place: Place) -> Found:
    """SIGKILL in the fourth of five models, and the same line again."""
    ids, out = _reference(place), _folder(place, "killed")
    shutil.rmtree(out, ignore_errors=True)
    process = subprocess.Popen(_line(place, out, "--executor", "local"), stdout=subprocess.DEVNULL)
    while len(list(out.glob("stage-*/votes/*.parquet"))) < KILLED_AFTER:
        if process.poll() is not None:
            raise SystemExit(f"the run ended with {process.returncode} before it could be killed")
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = len(list(out.glob("stage-*/votes/*.parquet")))
    found = _ids(place, "killed", "--executor", "local", fresh=False)
    yield f"{found}, killed after {left} models, as undisturbed: {found == ids}", {"ids": found, "local": ids}
    _check(ids, found)


def _reference(place: Place) -> str:
    """The ids of the local run, which is made where it is not there yet."""
    return _ids(place, "local", "--executor", "local", fresh=False)


def _ids(place: Place, name: str, *given: str, fresh: bool = True) -> str:
    """Digest of the ids that a run keeps."""
    out = _folder(place, name)
    if fresh:
        shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    done = subprocess.run(_line(place, out, *given), stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"the run {name} ended with {done.returncode}")
    print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)
    return hashlib.sha256(pq.read_table(out / "coreset.parquet").column("id").to_numpy().tobytes()).hexdigest()[:12]


def _folder(place: Place, name: str) -> Path:
    """Of a run on this code and card: another one computes other bits."""
    conditions = json.loads((place.state / "conditions.json").read_text())
    same = "-".join([*str(conditions["device"]).split(), str(conditions["torch"]), str(conditions["code"])])
    return place.state / "runs" / "ids" / same / name


def _line(place: Place, out: Path, *given: str) -> list[str]:
    limit, epochs = (400, 1) if place.small else (10_000, 6)
    source = {"use": "parquet", "path": str(place.data / "cifar10-train.parquet"), "limit": limit}
    recipe = {"use": "quick", "epochs": epochs, "batch_size": 128, "min_steps": 0, "deterministic": True}
    line = [sys.executable, "-m", "unseen_ray", "prune", "--source", json.dumps(source), "--recipe", json.dumps(recipe)]
    line += ["--keep", "0.5", "--schedule", "[0.3, 0.5]", "--folds", "4", "--policy", "top", "--scoring.share", "1"]
    return [*line, "--model", "small_cnn", "--log_to", "none", "--out", str(out), *given]


def _check(ids: str, found: str) -> None:
    if ids != found:
        raise SystemExit(f"the ids are {found}, and those of the local run are {ids}")
