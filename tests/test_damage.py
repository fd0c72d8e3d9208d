"""Damage to a run's files is found by checksum and named, and only its work is done again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import unseen_ray as ur
from unseen_ray.errors import StorageError
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.run import clear_run
from unseen_ray.runs.votes import find_receipt, read_votes
from unseen_ray.storage.filesystem import Folder

FIELDS = {
    "source": {"use": "digits", "limit": 200},
    "keep": 0.5,
    "folds": 2,
    "schedule": [0.3, 0.5],
    "fit": "tests.plugs:centroids",
    "save_probs": True,
    "executor": "local",
    "log_to": "none",
}
NAMES = [
    "coreset.parquet",
    "keys.parquet",
    "stage-00/scores.parquet",
    "stage-00/probs.npy",
    "stage-00/votes/01.parquet",
    "stage-00/votes/00.probs.npy",
    "stage-01/scores.parquet",
    "stage-01/votes/00.parquet",
]


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    place = random.Random(len(data)).randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def deleted(data: bytes) -> None:
    return None


def respelt(data: bytes) -> bytes:
    """JSON still, with one field under another name; a random bit may leave all that it says as it was."""
    return data.replace(b'"config"', b'"configs"', 1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    ur.prune(ur.PruneConfig(**FIELDS, out=out))
    return out


def test_every_kind_of_file_is_damaged_here(undisturbed: Path) -> None:
    assert set(NAMES) <= ur.load(undisturbed).manifest.files.keys()


@pytest.mark.parametrize("damage", [truncated, flipped, deleted], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_only_the_work_of_a_damaged_file_is_done_again(
    tmp_path: Path,
    undisturbed: Path,
    name: str,
    damage: Callable[[bytes], bytes | None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    data = damage((out / name).read_bytes())
    (out / name).unlink()
    if data is not None:
        (out / name).write_bytes(data)
    fresh: list[str] = []

    def observe(event: object) -> None:
        if isinstance(event, Receipt) and not event.reused:
            fresh.append(event.task)

    result = ur.prune(ur.PruneConfig(**FIELDS, out=out), on_event=observe)
    assert len(fresh) == ("votes" in name)
    assert f"{name} is damaged or missing; its work is done again" in caplog.text
    whole = ur.load(undisturbed)
    assert result.coreset.ids.tolist() == whole.coreset.ids.tolist()
    assert result.scores.equals(whole.scores)
    assert result.manifest.files.keys() == whole.manifest.files.keys()


def test_a_flipped_byte_in_votes_that_no_manifest_names_is_found(tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed / "stage-00", tmp_path / "stage-00")
    folder, name = Folder(str(tmp_path)), "stage-00/votes/00.parquet"
    whole, before = read_votes(folder, 0, 0), (tmp_path / name).read_bytes()
    metadata = pq.read_schema(tmp_path / name).metadata or {}
    key = metadata[b"unseen_ray.task"].decode()
    assert find_receipt(folder, 0, 0, key) is not None
    found = 0
    for place in range(0, len(before), 5):
        (tmp_path / name).write_bytes(before[:place] + bytes([before[place] ^ 1 << place % 8]) + before[place + 1 :])
        if find_receipt(folder, 0, 0, key) is None:
            found += 1
        else:  # a byte that nobody reads
            again = read_votes(folder, 0, 0)
            assert again.ids_M.tolist() == whole.ids_M.tolist()
            assert again.pred_M.tolist() == whole.pred_M.tolist()
            assert {score: values.tolist() for score, values in again.scores.items()} == {
                score: values.tolist() for score, values in whole.scores.items()
            }
    assert found > len(before) // 5 * 0.7


@pytest.mark.parametrize("name", ["coreset.parquet", "stage-00/scores.parquet"])
def test_a_reader_of_a_damaged_file_names_it(tmp_path: Path, undisturbed: Path, name: str) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(flipped((undisturbed / name).read_bytes()))
    result = ur.load(tmp_path / "run")
    with pytest.raises(StorageError, match=rf"run/{name} is damaged: it is not what was written"):
        assert result.coreset is not None
        assert result.scores is not None


@pytest.mark.parametrize("damage", [truncated, respelt, deleted], ids=lambda damage: damage.__name__)
def test_a_damaged_manifest_gives_way_to_its_copy(
    tmp_path: Path,
    undisturbed: Path,
    damage: Callable[[bytes], bytes | None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    whole = (out / "manifest.json").read_bytes()
    data = damage(whole)
    (out / "manifest.json").unlink()
    if data is not None:
        (out / "manifest.json").write_bytes(data)
    assert ur.load(out).coreset.ids.tolist() == ur.load(undisturbed).coreset.ids.tolist()
    assert "manifest.json is" in caplog.text and "Its copy is used" in caplog.text
    assert (out / "manifest.copy.json").read_bytes() == whole


def test_a_run_that_goes_on_from_the_copy_has_a_manifest_again(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    (out / "coreset.parquet").unlink()
    (out / "manifest.json").unlink()
    ur.prune(ur.PruneConfig(**FIELDS, out=out))
    (out / "manifest.copy.json").unlink()
    assert ur.load(out).coreset.ids.tolist() == ur.load(undisturbed).coreset.ids.tolist()


def test_a_manifest_whose_entries_were_changed_is_damaged(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    (out / "manifest.copy.json").unlink()
    text = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(text.replace('"folds": 2', '"folds": 3'))
    with pytest.raises(ur.ConfigError, match="is damaged: ValueError: its entries do not match its checksum"):
        ur.load(out)


@pytest.mark.parametrize("lost", ["manifest.json", "manifest.copy.json"])
def test_a_finished_run_has_both_again_after_its_line(tmp_path: Path, undisturbed: Path, lost: str) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    (out / lost).unlink()
    ur.prune(ur.PruneConfig(**FIELDS, out=out))
    assert (out / "manifest.json").read_bytes() == (out / "manifest.copy.json").read_bytes()


def test_a_removal_that_broke_off_can_be_repeated_from_the_copy_alone(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    (out / "manifest.json").unlink()
    delete, calls = Folder.delete, []

    def dying(self: Folder, name: str, **more: bool) -> None:
        calls.append(name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        delete(self, name, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "delete", dying)
        with pytest.raises(KeyboardInterrupt):
            clear_run(Folder(str(out)))
    clear_run(Folder(str(out)))
    assert Folder(str(out)).files() == ["manifest.copy.json"]  # which the next run writes over
