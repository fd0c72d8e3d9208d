"""A driver that was paused and has lost its run changes nothing there any more, whenever it wakes up."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

import unseen_ray as ur
from tests.stopping import AFTER, BEFORE, CHECKED, PATIENCE_S, REMOVAL, WRITE, Driver, Moment
from unseen_ray.errors import RunInUseError, StorageError
from unseen_ray.runs.manifest import Manifest, read_manifest, write_manifest
from unseen_ray.runs.run import Run
from unseen_ray.runs.votes import part_of, write_part
from unseen_ray.storage.environment import STORAGE_WAIT_S
from unseen_ray.storage.fence import LOCK
from unseen_ray.storage.filesystem import Folder, sha256_of
from unseen_ray.storage.lock import held

LINE = ["prune", "--source", "digits", "--source.limit", "150", "--folds", "2", "--log_to", "none"]
LINE += ["--holdout", "0.2", "--recipe.epochs", "2", "--recipe.min_steps", "0", "--model", "tests.plugs:tiny_model"]
LINE += ["--save_probs", "true", "--save_features", "true", "--pixel_memory_gb", "0.00001"]
LOCAL = ["--executor", "local"]
EVALUATE = ["--against", "random", "--seeds", "1", "--model", "tests.plugs:tiny_model", *LOCAL]

MOMENTS = {
    "its first manifest": Moment(BEFORE, WRITE, "manifest.json"),
    "the copy of its first manifest": Moment(CHECKED, WRITE, "manifest.copy.json"),
    "a file of pixels": Moment(CHECKED, WRITE, "pixels/.*[.]pixels"),
    "the entry of a file of pixels": Moment(BEFORE, WRITE, "pixels/.*[.]json"),
    "its plan": Moment(CHECKED, WRITE, "manifest.json", times=2),
    "a renewal of its lock": Moment(CHECKED, WRITE, "lease.json"),
    "tensors of a checkpoint": Moment(CHECKED, WRITE, "checkpoints/.*safetensors"),
    "a checkpoint": Moment(CHECKED, WRITE, "checkpoints/.*json"),
    "probabilities of a fold": Moment(CHECKED, WRITE, "stage-00/votes/00.probs.npy"),
    "features": Moment(CHECKED, WRITE, "stage-00/features.npy"),
    "votes, before it looks at the lock": Moment(BEFORE, WRITE, "stage-00/votes/00.parquet"),
    "votes, before the rename": Moment(CHECKED, WRITE, "stage-00/votes/00.parquet"),
    "votes, after": Moment(AFTER, WRITE, "stage-00/votes/00.parquet"),
    "removal of a finished fold's checkpoints": Moment(BEFORE, REMOVAL, "checkpoints/[0-9a-f]*"),
    "votes of its last fold": Moment(CHECKED, WRITE, "stage-00/votes/01.parquet"),
    "scores of a stage, before the rename": Moment(CHECKED, WRITE, "stage-00/scores.parquet"),
    "scores of a stage, after": Moment(AFTER, WRITE, "stage-00/scores.parquet"),
    "merged probabilities": Moment(CHECKED, WRITE, "stage-00/probs.npy"),
    "the coreset of a stage": Moment(CHECKED, WRITE, "stage-00/coreset.parquet"),
    "the entry of a stage": Moment(CHECKED, WRITE, "manifest.json", times=3),
    "the copy of the entry of a stage": Moment(BEFORE, WRITE, "manifest.copy.json", times=3),
    "votes of a later stage": Moment(CHECKED, WRITE, "stage-01/votes/00.parquet"),
    "keys": Moment(CHECKED, WRITE, "keys.parquet"),
    "the coreset, before the rename": Moment(CHECKED, WRITE, "coreset.parquet"),
    "the coreset, after": Moment(AFTER, WRITE, "coreset.parquet"),
    "the manifest that finishes, before the rename": Moment(CHECKED, WRITE, "manifest.json", times=5),
    "the manifest that finishes, after": Moment(AFTER, WRITE, "manifest.json", times=5),
    "the copy of the manifest that finishes": Moment(CHECKED, WRITE, "manifest.copy.json", times=5),
    "removal of a stage's coreset": Moment(BEFORE, REMOVAL, "stage-00/coreset.parquet"),
    "removal of the checkpoints": Moment(BEFORE, REMOVAL, "checkpoints"),
    "removal of the pixels": Moment(BEFORE, REMOVAL, "pixels"),
    "removal of its lock": Moment(BEFORE, REMOVAL, "lease.json"),
}
VOTES = pa.table({"id": [1, 2], "pred": [0, 1], "p_top": [1.0, 1.0], "p_label": [1.0, 1.0]})
FINISHES = "the manifest that finishes, before the rename"
OF_EVALUATIONS = {
    "a checkpoint of an arm": Moment(CHECKED, WRITE, "checkpoints/.*json"),
    "the first entry of an evaluation": Moment(CHECKED, WRITE, "evaluation.json"),
    "the last entry of an evaluation": Moment(CHECKED, WRITE, "evaluation.json", times=2),
}


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what() and time.monotonic() < end:
        time.sleep(0.005)
    assert what()


def token(out: Path) -> str:
    try:
        return str(json.loads((out / LOCK).read_text())["token"])
    except (FileNotFoundError, ValueError):
        return ""


def declare_dead(out: Path) -> None:
    """What another driver finds after the minute of the lock, at once: the process that it names has ended."""
    values = json.loads((out / LOCK).read_text())
    (out / LOCK).write_text(json.dumps({**values, "started": "0"}))


def content(out: Path) -> dict[str, tuple[int, str]]:
    """Of each file when it was written, and its digest."""
    found = {}
    for path in out.rglob("*"):
        # A driver that works may put it in place meanwhile.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            found[str(path.relative_to(out))] = (path.stat().st_mtime_ns, sha256_of(path.read_bytes()))
    return found


def assert_left_alone(first: Driver, out: Path, *, finished: bool) -> None:
    """Wake a driver that has lost its run: it changes nothing, and says that it has lost it unless it was done."""
    before = content(out)
    first.wake()
    code, log = first.wait()
    assert content(out) == before
    assert "Traceback" not in log, log
    assert finished or (code == 4 and log.count("error: this driver has lost") == 1), log


def assert_whole(out: Path, coreset: bytes, keep: float, generation: int = 1) -> None:
    """The folder holds the finished run of the driver that took over, and nothing else."""
    assert (out / "coreset.parquet").read_bytes() == coreset
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest.get("generation", 0) == generation and manifest["finished"] and manifest["config"]["keep"] == keep
    found = {name: digest for name, (_, digest) in content(out).items()}
    assert manifest["files"].items() <= found.items()
    assert found.keys() == {*manifest["files"], "manifest.json", "manifest.copy.json"}


def begin(out: Path, log: Path, keep: float, *more: str, moment: Moment | None = None) -> Driver:
    """A driver that prunes in two stages."""
    return Driver([*LINE, "--out", str(out), "--keep", str(keep), "--schedule", f"[0.2,{keep}]", *more], log, moment)


def taken_over(out: Path, log: Path, *, fresh: bool) -> tuple[Driver, float]:
    """The driver that comes after one that has stopped, and what it keeps."""
    declare_dead(out)
    keep = 0.25 if fresh else 0.3
    return begin(out, log, keep, *LOCAL, *(["--fresh"] if fresh else [])), keep


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """Undisturbed runs, by what they keep."""
    made = {}
    for keep in (0.3, 0.25):
        folder = tmp_path_factory.mktemp("undisturbed")
        code, log = begin(folder / "run", folder / "log", keep, *LOCAL).wait()
        assert code == 0, log
        made[keep] = folder / "run"
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", MOMENTS)
def test_nothing_of_a_driver_lands_wherever_it_was_stopped(
    name: str, tmp_path: Path, finished: dict[float, Path]
) -> None:
    place, out = list(MOMENTS).index(name), tmp_path / "run"
    is_over = place > list(MOMENTS).index(FINISHES)
    first = begin(out, tmp_path / "first", 0.3, *LOCAL, moment=MOMENTS[name])
    first.wait_until_it_stops()
    second, keep = taken_over(out, tmp_path / "second", fresh=is_over or place % 2 == 1)
    code, log = second.wait()
    assert code == 0, log
    assert_left_alone(first, out, finished=is_over)
    assert_whole(out, (finished[keep] / "coreset.parquet").read_bytes(), keep, generation=min(place, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_EVALUATIONS)
def test_nothing_of_an_evaluation_lands_wherever_it_was_stopped(
    name: str, tmp_path: Path, finished: dict[float, Path]
) -> None:
    out = Path(shutil.copytree(finished[0.3], tmp_path / "run"))
    line = ["evaluate", str(out), *EVALUATE]
    first = Driver(line, tmp_path / "first", OF_EVALUATIONS[name])
    first.wait_until_it_stops()
    declare_dead(out)
    code, log = Driver(line, tmp_path / "second").wait()
    assert code == 0, log
    assert_left_alone(first, out, finished=False)


POINTS: dict[str, Callable[[Path], bool]] = {
    "it has the lock": lambda out: True,
    "its first votes": lambda out: (out / "stage-00/votes/00.parquet").exists(),
    "its last votes": lambda out: (out / "stage-00/votes/01.parquet").exists(),
    "its scores": lambda out: (out / "stage-00/scores.parquet").exists(),
    "its coreset": lambda out: (out / "coreset.parquet").exists(),
}


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True], ids=["resumed", "begun anew"])
@pytest.mark.parametrize("point", POINTS)
def test_a_driver_that_wakes_up_while_another_one_works_changes_nothing(
    point: str, fresh: bool, tmp_path: Path, finished: dict[float, Path]
) -> None:
    out = tmp_path / "run"
    first = begin(out, tmp_path / "first", 0.3, *LOCAL, moment=MOMENTS["votes, before the rename"])
    first.wait_until_it_stops()
    was = token(out)
    second, keep = taken_over(out, tmp_path / "second", fresh=fresh)
    wait_for(lambda: second.ended() or (token(out) not in ("", was) and POINTS[point](out)))
    first.wake()
    code, log = first.wait()
    assert code == 4 and log.count("error: this driver has lost") == 1 and "Traceback" not in log, log
    code, log = second.wait()
    assert code == 0, log
    assert_whole(out, (finished[keep] / "coreset.parquet").read_bytes(), keep)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_of_a_driver_on_ray_lands(tmp_path: Path, finished: dict[float, Path]) -> None:
    out = tmp_path / "run"
    first = begin(out, tmp_path / "first", 0.3, "--executor", "ray", moment=MOMENTS["the entry of a stage"])
    first.wait_until_it_stops()
    second, keep = taken_over(out, tmp_path / "second", fresh=False)
    code, log = second.wait()
    assert code == 0, log
    assert_left_alone(first, out, finished=False)
    assert_whole(out, (finished[keep] / "coreset.parquet").read_bytes(), keep)


def test_nothing_is_written_or_deleted_without_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGE_WAIT_S, "0")
    with held(Folder(str(tmp_path / "run"))) as lock:
        folder = lock.folder
        folder.write("votes/00", b"mine")
        mine = Folder(folder.root).read_whole(LOCK)
        for other in (mine.replace(b'"token": "', b'"token": "f'), None):
            if other is None:
                (tmp_path / "run" / LOCK).unlink()
            else:
                (tmp_path / "run" / LOCK).write_bytes(other)
            before = content(tmp_path / "run")
            for change in (
                lambda: folder.write("new/file", b""),
                lambda: folder.within("votes").write("00", b"late"),
                lambda: folder.delete("votes/00"),
                lambda: folder.delete_folder("votes"),
                lambda: write_part(folder, 0, "key", 0, part_of(0, VOTES, None)),
            ):
                with pytest.raises(RunInUseError, match=r"has lost .* and stops"):
                    change()
            assert content(tmp_path / "run") == before
            assert not (tmp_path / "run" / "new").exists()
        assert not (tmp_path / "run" / LOCK).exists()


def test_what_fails_because_another_driver_works_on_the_run_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="pixels are gone"), held(Folder(str(tmp_path))):
        raise StorageError("pixels are gone")
    with pytest.raises(RunInUseError, match=r"has lost .*: another driver has taken over"), held(Folder(str(tmp_path))):
        other = (tmp_path / LOCK).read_bytes().replace(b'"token": "', b'"token": "f')
        (tmp_path / LOCK).write_bytes(other)
        raise StorageError("pixels are gone")


def test_what_a_driver_was_writing_when_it_lost_its_run_never_comes_into_place(tmp_path: Path) -> None:
    aside = tmp_path / "stage-00" / "scores.parquet.0123abcd.tmp"
    aside.parent.mkdir()
    aside.write_bytes(b"half")
    (tmp_path / "notes.tmp").write_bytes(b"a user's")
    nested = tmp_path / "fitting" / "manifest.json.0123abcd.tmp"
    nested.parent.mkdir()
    nested.write_bytes(b"of a run with a driver of its own")
    (nested.parent / LOCK).write_bytes(b"{}")
    with held(Folder(str(tmp_path))):
        assert not aside.exists()
        assert nested.exists() and (tmp_path / "notes.tmp").exists()


def test_a_manifest_of_a_later_driver_is_not_replaced(tmp_path: Path) -> None:
    folder, asked = Folder(str(tmp_path)), ur.PruneConfig(source="digits", keep=0.5).to_json()
    run = Run(
        folder,
        Manifest(
            created="",
            config=asked,
            asked=asked,
            source={"fingerprint": "", "num_samples": 1, "num_classes": 1, "class_names": []},
        ),
    )
    run = run.commit(environment={"node": "a"})
    write_manifest(folder, replace(run, manifest=run.manifest.changed(generation=1)).manifest)
    with pytest.raises(RunInUseError, match="another driver has written its manifest since"):
        run.commit(environment={"node": "b"})
    found = read_manifest(folder)
    assert found is not None and found.generation == 1
