"""Disks that can only be read, or are full: what is finished is of use, and what cannot be done is said."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import unseen_ray as ur
from unseen_ray.errors import StorageError

FIELDS = {
    "source": "digits",
    "keep": 0.5,
    "folds": 2,
    "holdout": 0.2,
    "fit": "tests.plugs:centroids",
    "executor": "local",
}


def mount(*args: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", *args], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    if os.geteuid():
        pytest.skip("a disk of its own needs root")
    path = tmp_path / "disk"
    path.mkdir()
    mount("-o", "size=4m", "tmpfs", str(path))
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_finished_run_on_a_read_only_disk_is_of_use(
    disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, there = disk / "run", tmp_path / "there"
    done = ur.prune(**FIELDS, out=out)  # type: ignore[arg-type]
    mount("-o", "remount,ro", "tmpfs", str(disk))
    caplog.set_level(logging.WARNING)
    again = ur.prune(**FIELDS, out=out)  # type: ignore[arg-type]
    assert again.coreset.ids.tolist() == done.coreset.ids.tolist()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    read_only = (
        rf"{out}/lease\.json cannot be written: .*[Rr]ead-only.* This place can only be read: name another folder"
    )
    with pytest.raises(StorageError, match=rf"(?s){read_only}"):
        ur.report(out, images=False)
    assert str(out) in Path(ur.report(out, images=False, to=there / "page.html")).read_text()
    assert len(ur.select(out, keep=0.3, out=there / "selected").coreset.ids) > 0
    assert ur.export(out, there / "kept.npy") == ur.export(out, there / "data/") == len(done.coreset.ids)
    with pytest.raises(StorageError, match=rf"(?s){read_only}"):
        ur.evaluate(done, seeds=1, model="small_cnn", recipe="quick")
    with pytest.raises(ur.ConfigError, match=r"page.pdf is not a page\. Name a file that ends in .html"):
        ur.report(out, to=there / "page.pdf")


def test_a_result_that_a_full_disk_does_not_take_is_an_error_and_is_written_when_there_is_space(disk: Path) -> None:
    out, filler = disk / "run", disk / "filler"
    with (
        filler.open("wb") as stream,
        pytest.raises(StorageError, match=r"(?i)no space left on device\. Free space or repair"),
    ):
        left = os.statvfs(disk)
        stream.write(bytes(left.f_bavail * left.f_frsize - 20_000))
        stream.flush()
        ur.prune(**FIELDS, out=out)  # type: ignore[arg-type]
    filler.unlink()
    assert ur.prune(**FIELDS, out=out).coreset.ids.size  # type: ignore[arg-type]
