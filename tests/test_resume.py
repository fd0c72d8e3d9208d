"""The same line goes on where it was interrupted, and picks the same ids."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import unseen_ray as ur
from unseen_ray.cli.progress import run_progress
from unseen_ray.runs.manifest import read_manifest, write_manifest
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import EvalResult, Progress
from unseen_ray.storage.filesystem import Folder

FIELDS = {
    "source": {"use": "digits", "limit": 300},
    "keep": 0.6,
    "schedule": [0.4, 0.5, 0.6],
    "recipe": {"epochs": 3, "min_steps": 0},
    "scoring": {"share": 1},
    "executor": "local",
}


def run(out: Path, stop_after: int | None = None, **fields: object) -> tuple[ur.PruneResult, list[Receipt]]:
    receipts: list[Receipt] = []

    def observe(event: object) -> None:
        if isinstance(event, Receipt):
            receipts.append(event)
            if len([r for r in receipts if not r.reused]) == stop_after:
                raise KeyboardInterrupt

    return ur.prune(ur.PruneConfig(**{**FIELDS, **fields}, out=out), on_event=observe), receipts


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> ur.PruneResult:
    return run(tmp_path_factory.mktemp("undisturbed"))[0]


@pytest.mark.parametrize("stop_after", [1, 3, 4, 5])
def test_finished_folds_are_not_trained_again(tmp_path: Path, undisturbed: ur.PruneResult, stop_after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after)
    result, receipts = run(tmp_path)
    fresh = [receipt for receipt in receipts if not receipt.reused]
    assert len(fresh) == 6 - stop_after
    stages = result.manifest.stages
    assert result.manifest.cost["seconds"] >= sum(stage["seconds"] for stage in stages)
    assert result.coreset.ids.tolist() == undisturbed.coreset.ids.tolist()
    assert result.scores == undisturbed.scores


def test_votes_of_other_work_are_not_taken_for_ones_own(tmp_path: Path, undisturbed: ur.PruneResult) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 2)
    votes = tmp_path / "stage-00" / "votes"
    (votes / "00.parquet").write_bytes((votes / "01.parquet").read_bytes())
    result, receipts = run(tmp_path)
    assert len([receipt for receipt in receipts if not receipt.reused]) == 5
    assert result.coreset.ids.tolist() == undisturbed.coreset.ids.tolist()


def test_another_run_takes_over_what_was_trained_and_scored_alike(tmp_path: Path, undisturbed: ur.PruneResult) -> None:
    asked: dict[str, object] = {"score": "margin", "keep": 0.5, "schedule": [0.3, 0.5]}
    fresh, _ = run(tmp_path / "fresh", **asked)
    result, receipts = run(tmp_path / "reusing", **asked, reuse=undisturbed.path)
    assert [receipt.reused for receipt in receipts] == [True] * 4 + [False]
    assert result.coreset.ids.tolist() == fresh.coreset.ids.tolist()
    assert result.scores.column("margin") == fresh.scores.column("margin")
    stage_zero = result.manifest.cost["stages"][0]
    assert stage_zero["fit_seconds"] == undisturbed.manifest.cost["stages"][0]["fit_seconds"]


@pytest.mark.parametrize("other", [{"seed": 1}, {"recipe": {"epochs": 2, "min_steps": 0}}, {"also_score": "none"}])
def test_what_was_done_otherwise_is_not_taken_over(
    tmp_path: Path, undisturbed: ur.PruneResult, other: dict[str, object]
) -> None:
    _, receipts = run(tmp_path, **other, schedule=None, reuse=[undisturbed.path])
    assert [receipt.reused for receipt in receipts] == [False] * 4


def test_a_folder_to_reuse_must_hold_a_run(tmp_path: Path) -> None:
    with pytest.raises(ur.ConfigError, match=r"reuse=.*nothing holds no run"):
        run(tmp_path / "out", reuse=[tmp_path / "nothing"])
    assert not (tmp_path / "out").exists()


def test_a_killed_process_is_resumed_by_the_same_line(tmp_path: Path, undisturbed: ur.PruneResult) -> None:
    fields = ["--source.use", "digits", "--source.limit", "300", "--keep", "0.6", "--schedule", "[0.4,0.5,0.6]"]
    line = [sys.executable, "-m", "unseen_ray", "prune", *fields, "--recipe.epochs", "3", "--recipe.min_steps", "0"]
    line += ["--executor", "local", "--out", str(tmp_path)]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "stage-00" / "votes" / "00.parquet").exists() and time.monotonic() < deadline:
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    manifest = read_manifest(Folder(str(tmp_path)))
    assert manifest is not None
    assert subprocess.run(line, capture_output=True, timeout=120).returncode == 0
    assert ur.load(tmp_path).coreset.ids.tolist() == undisturbed.coreset.ids.tolist()


def test_progress_tells_epochs(tmp_path: Path) -> None:
    told: list[Progress] = []
    ur.prune(
        ur.PruneConfig(**{**FIELDS, "schedule": None}, out=tmp_path),
        on_event=lambda event: told.append(event) if isinstance(event, Progress) else None,
    )
    first = [event for event in told if event.task == "stage 0 fold 0"]
    assert [(event.done, event.total) for event in first if event.doing == "train"] == [(0, 0), (1, 3), (2, 3), (3, 3)]
    assert all(event.loss > 0 and event.images_per_s > 0 for event in first[1:] if event.doing == "train")


@pytest.mark.slow
def test_a_fit_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    recipe = {"epochs": 8, "min_steps": 0, "batch_size": 4}  # epochs so long that writing after some is no burden
    fields = {**FIELDS, "source": "digits", "schedule": None, "folds": 2, "recipe": recipe}
    undisturbed = ur.prune(ur.PruneConfig(**fields, out=tmp_path / "undisturbed"))
    config = ur.PruneConfig(**fields, out=tmp_path / "disturbed")

    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.task == "stage 0 fold 1" and event.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ur.prune(config, on_event=stop)
    epochs: list[int] = []

    def observe(event: object) -> None:
        if isinstance(event, Progress) and event.task == "stage 0 fold 1" and event.doing == "train" and event.done:
            epochs.append(event.done)

    result = ur.prune(config, on_event=observe)
    assert epochs[0] > 1
    assert epochs == list(range(epochs[0], 9))
    assert result.scores == undisturbed.scores
    assert result.coreset.ids.tolist() == undisturbed.coreset.ids.tolist()
    task = result.manifest.stages[0]["tasks"][1]
    assert task["train_accuracy"] == undisturbed.manifest.stages[0]["tasks"][1]["train_accuracy"]
    assert not (tmp_path / "disturbed" / "checkpoints").exists()


def test_a_fresh_start_removes_the_run_and_all_that_came_of_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result, _ = run(out, schedule=None, keep=0.5, holdout=0.2)
    ur.evaluate(result, seeds=1, against=("fitting",))
    ur.report(result)
    (out / "stage-00" / "votes" / "07.parquet.0a1b2c3d.tmp").touch()  # what a killed writer leaves
    config = ur.PruneConfig(**{**FIELDS, "schedule": None, "keep": 0.4}, out=out)
    with pytest.raises(ur.ConfigError, match="another configuration"):
        ur.prune(config)
    assert len(ur.prune(config, fresh=True).coreset) == 120
    assert not (out / "fitting" / "coreset.parquet").exists()
    assert not (out / "evaluation.json").exists()


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "stage-00/mine.parquet",
        "fitting/photo.jpg",
        "stage-00/votes/x.parquet",
        "checkpoints/best.pt",
        "tensorboard/mine/notes.txt",
    ],
)
def test_a_fresh_start_leaves_a_folder_with_anything_else_alone(tmp_path: Path, name: str) -> None:
    run(tmp_path, schedule=None)
    before = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ur.ConfigError, match=rf"is not removed: it holds {name}, which no run of ours has written"):
        ur.prune(ur.PruneConfig(**FIELDS, out=tmp_path), fresh=True)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == before | {name}


def test_a_fresh_start_where_there_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "coreset.parquet").touch()
    with pytest.raises(ur.ConfigError, match=r"holds coreset\.parquet, and no manifest\.json of ours"):
        ur.prune(ur.PruneConfig(**FIELDS, out=tmp_path / "photos"), fresh=True)
    assert len(ur.prune(ur.PruneConfig(**FIELDS, out=tmp_path / "new"), fresh=True).coreset) == 180


def test_an_interrupted_first_fit_holds_its_folder(tmp_path: Path) -> None:
    recipe = {"epochs": 8, "min_steps": 0, "batch_size": 4}
    config = ur.PruneConfig(**{**FIELDS, "source": "digits", "schedule": None, "recipe": recipe}, out=tmp_path)

    def stop(event: object) -> None:
        if isinstance(event, Progress) and list((tmp_path / "checkpoints").glob("*/checkpoint.json")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ur.prune(config, on_event=stop)
    with pytest.raises(ur.ConfigError, match=r"another configuration; it differs in keep: 0\.6 there, 0\.3 here"):
        ur.prune(config.changed(keep=0.3))
    assert list((tmp_path / "checkpoints").glob("*/checkpoint.json"))


def test_a_choice_that_was_broken_off_is_made_again(
    tmp_path: Path, undisturbed: ur.PruneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "choice").mkdir()
    chosen = ur.select(undisturbed, keep=0.3, out=tmp_path / "whole")
    begun = chosen.manifest.changed(files={}, finished=False, cost={})
    asked = {**begun.asked, "out": str(tmp_path / "choice")}
    write_manifest(Folder(str(tmp_path / "choice")), begun.changed(asked=asked))
    with pytest.raises(ur.ConfigError, match="Name a new or empty folder"):
        ur.select(undisturbed, keep=0.2, out=tmp_path / "choice")
    again = ur.select(undisturbed, keep=0.3, out=tmp_path / "choice")
    assert again.coreset.ids.tolist() == chosen.coreset.ids.tolist()


@pytest.mark.parametrize("name", ["../victim", "/victim", "stage-00/../../victim", "notes.txt"])
def test_a_manifest_that_names_what_no_run_has_is_damaged(
    tmp_path: Path, undisturbed: ur.PruneResult, name: str
) -> None:
    (tmp_path / "victim").write_text("precious")
    out = tmp_path / "run"
    shutil.copytree(undisturbed.path, out)
    manifest = read_manifest(Folder(str(out)))
    assert manifest is not None
    write_manifest(Folder(str(out)), manifest.model_copy(update={"files": {**manifest.files, name: "0" * 64}}))
    with pytest.raises(ur.UnseenError, match="which is not a file of a run"):
        run(out)
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_training_that_goes_on_from_a_checkpoint_says_so(tmp_path: Path) -> None:
    fields = {**FIELDS, "schedule": None, "recipe": {"epochs": 400, "min_steps": 0}}

    def stop(event: object) -> None:
        if isinstance(event, Progress) and event.done > 1 and list(tmp_path.glob("checkpoints/*/checkpoint.json")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ur.prune(ur.PruneConfig(**fields, out=tmp_path), on_event=stop)
    said = io.StringIO()
    with run_progress(Console(file=said, width=200)) as observe:

        def until_resumed(event: Progress | Receipt | EvalResult) -> None:
            observe(event)
            if isinstance(event, Progress) and event.done:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ur.prune(ur.PruneConfig(**fields, out=tmp_path), on_event=until_resumed)
    assert re.search(r"stage 0 fold 0 \(\S+, .+\): resuming after epoch \d+/400\n", said.getvalue())


def test_samples_that_were_skipped_stay_out_and_none_that_was_used_may_go(tmp_path: Path) -> None:
    """Reading may fail for a while, of an image that is not among those by which changed data is noticed."""
    tree, rng = tmp_path / "tree", np.random.default_rng(0)
    for number in range(200):
        (tree / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tree / f"c{number % 2}" / f"{number:03d}.png")
    victim, fields = (
        tree / "c1" / "011.png",
        {"source": str(tree), "on_bad_sample": "skip", "folds": 2, "policy": "top"},
    )
    whole, times = victim.read_bytes(), victim.stat().st_mtime_ns

    def put(content: bytes) -> None:
        victim.write_bytes(content)
        os.utime(victim, ns=(times, times))

    broken = whole[:40] + bytes(len(whole) - 40)
    put(broken)
    without, _ = run(tmp_path / "without", **fields)
    assert without.manifest.source.skipped == ["c1/011.png"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "restored", 3, **fields)
    put(whole)
    assert run(tmp_path / "restored", **fields)[0].coreset.ids.tolist() == without.coreset.ids.tolist()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "lost", 3, **fields)
    put(broken)
    with pytest.raises(
        ur.DataError, match=r"images that could be read before cannot be read now: 1, the first of sample c1/011\.png"
    ):
        run(tmp_path / "lost", **fields)
