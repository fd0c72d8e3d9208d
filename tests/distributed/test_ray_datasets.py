"""Ray Datasets in and out, on a real private cluster: the same samples as from files, the same choice, and images to train on."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data
import torch

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes
from tests.data.sources import test_forms as forms
from tests.test_training_loops import block_with
from unseen_ray.data.images.decode import to_pixels

pytestmark = pytest.mark.usefixtures("session")

COUNT, NAMES = 60, np.array(["ant", "bee", "cat"])
LABELS = np.arange(COUNT) % 3
PIXELS = class_pixels(LABELS, 8)
FAST: dict[str, Any] = {"keep": 0.5, "folds": 2, "recipe": {"epochs": 1, "min_steps": 0}, "executor": "local"}


def dataset(kind: str) -> ray.data.Dataset:
    images: Any = {"bytes": [png_bytes(each) for each in PIXELS], "arrays": list(PIXELS), "grey": list(PIXELS[..., 0])}[
        kind
    ]
    labels = NAMES[LABELS] if kind == "bytes" else LABELS
    rows = [
        {"picture": image, "kind": label, "owner": f"owner {number // 4}"}
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    return ray.data.from_items(rows, override_num_blocks=7)


def pruned(kind: str, out: Path, **fields: Any) -> ur.PruneResult:
    return ur.prune_dataset(dataset(kind), image="picture", label="kind", out=out, **{**FAST, **fields})


@pytest.mark.slow
def test_a_dataset_is_pruned_as_its_rows_in_files_are(tmp_path: Path) -> None:
    found = {"bytes": pruned("bytes", tmp_path / "bytes"), "grey": pruned("grey", tmp_path / "grey", group="owner")}
    for kind, result in found.items():
        assert result.manifest.source.num_samples == COUNT
        rows = result.kept_dataset().take_all()
        assert [row["id"] for row in rows] == result.coreset.ids.tolist()
        for row in rows:
            expected = PIXELS[row["id"]] if kind != "grey" else np.repeat(PIXELS[row["id"], :, :, :1], 3, axis=2)
            assert row["label"] == LABELS[row["id"]] and np.array_equal(row["image"], expected)
    assert found["bytes"].manifest.source.class_names == NAMES.tolist()
    votes = [name for name in found["grey"].manifest.files if "/votes/" in name]
    asked = [set(found["grey"].run.folder.read_table(name).column("id").to_pylist()) for name in votes]
    assert all(
        {row // 4 for row in ids}.isdisjoint(row // 4 for row in range(COUNT) if row not in ids) for ids in asked
    )
    again = pruned("bytes", tmp_path / "bytes")
    assert again.coreset.ids.tolist() == found["bytes"].coreset.ids.tolist()


def test_a_dataset_holds_and_keeps_the_same_samples_as_every_other_form(tmp_path: Path) -> None:
    names = [forms.NAMES[label] for label in forms.LABELS]
    rows = [{"image": image, "label": name} for image, name in zip(forms.IMAGES, names, strict=True)]
    result = ur.prune_dataset(ray.data.from_items(rows, override_num_blocks=7), out=tmp_path / "run", **FAST)
    folder = forms.as_folder(tmp_path / "folder")  # as which every form of files is, by the test of forms
    here, there = forms.opened(result.manifest.asked["source"]), forms.opened(folder)
    assert (
        here.info.labels_N.tolist() == there.info.labels_N.tolist() and here.info.class_names == there.info.class_names
    )
    assert [raw for _, raw in here.read(range(forms.COUNT))] == [raw for _, raw in there.read(range(forms.COUNT))]
    assert here.info.size_px == there.info.size_px
    kept = ur.prune(ur.PruneConfig(source=folder, out=tmp_path / "run-folder", **FAST)).coreset
    assert result.coreset.ids.tolist() == kept.ids.tolist()


@pytest.mark.slow
def test_images_come_encoded_or_at_another_size(tmp_path: Path) -> None:
    result = pruned("bytes", tmp_path / "run")
    for row in result.kept_dataset(encoded=True).take(5):
        assert np.array_equal(to_pixels(row["image"], 8), PIXELS[row["id"]])
    assert result.kept_dataset(size=4).take(1)[0]["image"].shape == (4, 4, 3)
    loaded = ur.load(tmp_path / "run")
    assert loaded.kept_dataset().count() == COUNT // 2
    assert not loaded.kept_dataset().context.print_on_execution_start  # no lines of Ray Data's log
    assert loaded.to_ray_dataset().take(2)[1]["id"] == 1


def test_what_is_no_image_or_no_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ur.ConfigError, match=r"has no column 'image'; it has picture, kind, owner\. Name it"):
        ur.prune_dataset(dataset("bytes"), out=tmp_path / "a", **FAST)
    floats = ray.data.from_items([{"image": np.zeros((8, 8, 3)), "label": 0}])
    with pytest.raises(ur.DataError, match=r"holds float64 of shape \(8, 8, 3\); images are encoded"):
        ur.prune_dataset(floats, out=tmp_path / "b", **FAST)
    (tmp_path / "c-source").mkdir()
    (tmp_path / "c-source" / "mine.txt").write_text("mine")
    with pytest.raises(ur.ConfigError, match=r"c-source holds mine\.txt"):
        ur.prune_dataset(dataset("bytes"), image="picture", label="kind", out=tmp_path / "c", **FAST)


@pytest.mark.slow
def test_another_dataset_or_files_of_somebody_else_are_never_taken_or_removed(tmp_path: Path) -> None:
    result = pruned("bytes", tmp_path / "run")
    other = ray.data.from_items([{"picture": png_bytes(each), "kind": "ant"} for each in PIXELS[::-1]])
    with pytest.raises(ur.ConfigError, match=r"run-source holds another Dataset"):
        ur.prune_dataset(other, image="picture", label="kind", out=tmp_path / "run", **FAST)
    rows = dataset("bytes").take_all()
    rows[-1]["kind"] = "ant"  # the last of many: the first ones are the same
    for changed in (rows, rows[:-1]):
        with pytest.raises(ur.ConfigError, match=r"run-source holds another Dataset"):
            ur.prune_dataset(ray.data.from_items(changed), image="picture", label="kind", out=tmp_path / "run", **FAST)
    with pytest.raises(ur.ConfigError, match="keeep"):
        ur.prune_dataset(other, image="picture", label="kind", out=tmp_path / "new", keeep=0.5, **FAST)
    assert not (tmp_path / "new-source").exists()
    (tmp_path / "mine-source").mkdir()
    stored = next((tmp_path / "run-source").glob("*.parquet"))
    (tmp_path / "mine-source" / "part-000000.parquet").write_bytes(stored.read_bytes())
    with pytest.raises(ur.ConfigError, match="were not written from a Dataset"):
        pruned("bytes", tmp_path / "mine")
    assert not dataset("bytes").context.execution_options.preserve_order
    pruned("grey", tmp_path / "grey")
    with pytest.raises(Exception, match="has changed since the run, or is another source"):
        result.kept_dataset(source=str(tmp_path / "grey-source")).take_all()


@pytest.mark.slow
def test_what_is_kept_is_read_by_ray_data(tmp_path: Path) -> None:
    """As Parquet, as images in folders, and as tars."""
    found = {}
    for form, source in (("parquet", forms.as_parquet(tmp_path / "p")), ("images", forms.as_folder(tmp_path / "f"))):
        result = ur.prune(ur.PruneConfig(source=source, out=tmp_path / form, **FAST))
        ur.export(result, f"{tmp_path}/kept-{form}/")
        found[form] = result.coreset.ids.tolist()
    ur.export(result, f"{tmp_path}/kept-tars/", form="webdataset")
    (ids,) = {tuple(each) for each in found.values()}
    expected = sorted((forms.LABELS[number], to_pixels(forms.IMAGES[number], 8).tobytes()) for number in ids)

    rows = ray.data.read_parquet(f"{tmp_path}/kept-parquet").take_all()
    assert sorted((row["label"], to_pixels(row["image"]["bytes"], 8).tobytes()) for row in rows) == expected
    rows = ray.data.read_images(f"{tmp_path}/kept-images", include_paths=True, mode="RGB").take_all()
    classes = [forms.NAMES.index(Path(row["path"]).parent.name) for row in rows]
    assert sorted((label, row["image"].tobytes()) for label, row in zip(classes, rows, strict=True)) == expected
    rows = ray.data.read_webdataset(f"{tmp_path}/kept-tars", file_extensions=["tar"], decoder=False).take_all()
    assert sorted((int(row["cls"]), to_pixels(row["png"], 8).tobytes()) for row in rows) == expected


def samples() -> Any:
    class Samples:
        labels, keys = LABELS, tuple(map(str, range(COUNT)))

        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, number: int) -> np.ndarray:
            return PIXELS[number]

    return Samples()


@pytest.mark.slow
def test_kept_images_of_a_function_of_the_user_need_the_function(tmp_path: Path) -> None:
    result = ur.prune(ur.PruneConfig(source=samples, out=tmp_path / "run", **FAST))
    assert result.kept_dataset().count() == COUNT // 2
    with pytest.raises(ur.ConfigError, match="nothing that a run folder names is imported"):
        ur.load(tmp_path / "run").kept_dataset()
    assert ur.load(tmp_path / "run").kept_dataset(source=samples).count() == COUNT // 2


@pytest.mark.slow
def test_two_workers_of_a_torch_trainer_train_on_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the block of docs/training_loops.md."""
    monkeypatch.setattr("ray.train.constants.DEFAULT_STORAGE_PATH", str(tmp_path / "trainer"))

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        (tmp_path / uuid.uuid4().hex).write_text(str(len(labels)))
        return torch.nn.functional.cross_entropy(logits, labels)

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 3))
    result = pruned("bytes", tmp_path / "run")
    exec(
        block_with("import ray.train.torch"), {"torch": torch, "result": result, "model": model, "cross_entropy": loss}
    )
    seen = [int(path.read_text()) for path in tmp_path.iterdir() if path.is_file()]
    assert sum(seen) == COUNT // 2 and len(seen) == 4
