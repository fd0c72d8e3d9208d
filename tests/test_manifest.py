"""The manifest as values: what was stored is read whole, written to the same bytes, and refused where it is damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import unseen_ray as ur
from unseen_ray.errors import StorageError
from unseen_ray.runs.layout import MANIFEST, MANIFEST_COPY
from unseen_ray.runs.manifest import Manifest, read_manifest, write_manifest
from unseen_ray.runs.manifest_entries import Cost, Receipt, StageEntry
from unseen_ray.runs.run import choosing_s
from unseen_ray.storage.checked_json import to_checked_json
from unseen_ray.storage.filesystem import Folder

STORED = sorted((Path(__file__).parent / "golden_manifests").glob("*.json"))
"""Written before the manifest had types: finished with a guard, stopped after a stage, chosen again, scores alone, a sweep."""


def stored(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((STORED[0].parent / f"{name}.json").read_bytes())
    values.pop("sha256")
    return values


def put(folder: Path, values: dict[str, Any]) -> Folder:
    (folder / MANIFEST).write_bytes(to_checked_json(values))
    return Folder(str(folder))


def read(folder: Path, values: dict[str, Any]) -> Manifest:
    manifest = read_manifest(put(folder, values))
    assert manifest is not None
    return manifest


def test_there_is_one_of_each_kind() -> None:
    assert [path.stem for path in STORED] == ["guarded", "score", "select", "stopped", "sweep"]
    assert {stored(path.stem)["kind"] for path in STORED} == {"prune", "score", "select", "sweep"}


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_what_is_read_is_written_to_the_same_bytes(tmp_path: Path, path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(path.read_bytes())
    folder = Folder(str(tmp_path))
    manifest = read_manifest(folder)
    assert manifest is not None
    write_manifest(folder, manifest)
    assert (tmp_path / MANIFEST).read_bytes() == (tmp_path / MANIFEST_COPY).read_bytes() == path.read_bytes()
    write_manifest(folder, manifest.changed(finished=manifest.finished, cost=manifest.cost, stages=manifest.stages))
    assert (tmp_path / MANIFEST).read_bytes() == path.read_bytes()


def test_fields_of_another_version_stay_and_none_is_added(tmp_path: Path) -> None:
    values = stored("guarded")
    values["source"] |= {"licence": "CC0", "more": [1, {"a": None}]}
    values["cost"]["watt_hours"] = 3
    values["stages"][0]["novel"] = 1.5
    values["stages"][0]["tasks"][0]["novel"] = {"a": 1}
    del (
        values["stages"][1]["vote_accuracy"],
        values["stages"][1]["tasks"][0]["worker_seconds"],
        values["source"]["rows"],
    )
    manifest = read(tmp_path, values)
    assert json.loads(json.dumps(manifest.model_dump())) == values
    assert math.isnan(manifest.stages[1].vote_accuracy) and math.isnan(manifest.stages[1].tasks[0].worker_seconds)


def test_numbers_stay_what_they_are(tmp_path: Path) -> None:
    values = stored("guarded")
    values["cost"] |= {"seconds": 3, "gpu_seconds": 0}
    values["stages"][0] |= {"seconds": 2, "accuracy": math.nan}
    manifest = read(tmp_path, values)
    assert json.dumps(manifest.model_dump()["cost"]["seconds"]) == "3"
    write_manifest(Folder(str(tmp_path)), manifest)
    assert (
        '"accuracy": NaN' in (tmp_path / MANIFEST).read_text() and '"seconds": 2,' in (tmp_path / MANIFEST).read_text()
    )


def test_a_manifest_reads_by_name_and_as_it_is_stored(tmp_path: Path) -> None:
    manifest = read(tmp_path, stored("guarded"))
    first = manifest.stages[0]
    assert (first.index, first.target, len(first.tasks)) == (0, manifest.stages[1].target - manifest.stages[1].added, 2)
    assert first["accuracy"] == first.accuracy and first["tasks"][0]["node"] == first.tasks[0].node
    assert "suspects" in first.to_json() and "suspects" not in manifest.stages[1].to_json()
    assert "tasks" not in first.sizes() and first.sizes().keys() == first.to_json().keys() - {"tasks"}
    with pytest.raises(KeyError):
        manifest.stages[1]["suspects"]
    assert choosing_s(manifest) == manifest.cost.fit_seconds == sum(stage.fit_seconds for stage in manifest.stages)
    again = read(tmp_path, stored("select"))
    assert choosing_s(again) == again.cost.chosen_from_s and not again.stages
    assert choosing_s(read(tmp_path, stored("stopped"))) is None


DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "no source": ({"source": None}, "source: "),
    "source of another kind": ({"source": ["digits"]}, "source: "),
    "source without its size": (
        {"source": {"fingerprint": "f", "num_classes": 2, "class_names": []}},
        "source.num_samples: ",
    ),
    "stages of another kind": ({"stages": {}}, "stages: "),
    "stage without its place": ({"stages": [{"target": 3, "added": 3}]}, "stages.0.index: "),
    "files outside": ({"files": {"../etc/passwd": "0"}}, "files names '../etc/passwd', which is not a file of a run"),
    "cost of another kind": ({"cost": 3}, "cost: "),
    "config that lacks fields": ({"config": {"keep": 0.5}}, "config lacks combine, fit, folds, guard, mode, model, "),
    "environment of another kind": ({"environment": []}, "environment: "),
}


@pytest.mark.parametrize("why", DAMAGE)
def test_damage_is_reported_by_its_place(tmp_path: Path, why: str) -> None:
    changes, said = DAMAGE[why]
    folder = put(tmp_path, {**stored("guarded"), **changes})
    with pytest.raises(StorageError) as raised:
        read_manifest(folder)
    assert f"{tmp_path / MANIFEST} is damaged: " in str(raised.value) and said in str(raised.value)
    assert "Restore it, or start in a new folder." in str(raised.value)


def test_a_manifest_without_a_version_is_damaged_and_a_newer_one_refused(tmp_path: Path) -> None:
    values = stored("guarded")
    with pytest.raises(ur.ConfigError, match="has schema_version 2; this unseen_ray reads up to 1"):
        read_manifest(put(tmp_path, {**values, "schema_version": 2}))
    del values["schema_version"]
    with pytest.raises(StorageError, match="is damaged: KeyError: 'schema_version'"):
        read_manifest(put(tmp_path, values))


def receipt(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = stored("guarded")["stages"][0]["tasks"][0]
    return {**values, **changes}


def test_a_receipt_says_null_for_nan() -> None:
    values = receipt(train_accuracy=None)
    found = Receipt.from_json(values)
    assert math.isnan(found.train_accuracy)
    assert json.dumps(found.to_json()) == json.dumps(values)
    moved = found.model_copy(update={"index": 7, "reused": True})
    assert moved.to_json() == {**values, "index": 7, "reused": True} and found.index == 0


def test_a_file_of_votes_needs_its_whole_receipt() -> None:
    values = receipt()
    for name in values.keys() - {"reused"}:
        with pytest.raises(ValueError, match=f"lacks {name}"):
            Receipt.from_json({key: value for key, value in values.items() if key != name})
    assert Receipt.from_json({**values, "novel": 1}).to_json() == {**values, "novel": 1}


def test_entries_cannot_be_changed() -> None:
    stage = StageEntry(index=0, target=1, added=1)
    with pytest.raises(ValueError, match="frozen"):
        stage.index = 1  # type: ignore[misc]
    assert stage.to_json() == {"index": 0, "target": 1, "added": 1} and Cost().to_json() == {}
