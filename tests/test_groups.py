"""Groups in runs: told by a column, by keys or by a file; the same folds however they are told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes
from unseen_ray.data.related.grouping import with_groups
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import ConfigError, DataError
from unseen_ray.runs.manifest import Manifest, write_manifest
from unseen_ray.runs.manifest_entries import source_entry
from unseen_ray.storage.filesystem import Folder

COUNT, PATIENTS = 240, 60
FIELDS: dict[str, Any] = {"keep": 0.5, "recipe": {"epochs": 2, "min_steps": 0}, "executor": "local", "log_to": "none"}


def patients(count: int = COUNT) -> list[str | None]:
    """Images of a few patients, out of order, and some of whom nothing is known."""
    drawn = np.random.default_rng(1).integers(0, PATIENTS, count)
    return [None if number == 0 else f"patient-{number:03}" for number in drawn.tolist()]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images as Parquet in two files, with their patients."""
    folder = tmp_path_factory.mktemp("images")
    labels = np.arange(COUNT) % 3
    pngs = [png_bytes(pixels) for pixels in class_pixels(labels, 8, 0)]
    table = pa.table({"image": pa.array(pngs, pa.binary()), "label": labels, "patient": patients()})
    pq.write_table(table.slice(0, 100), folder / "a.parquet", row_group_size=30)
    pq.write_table(table.slice(100), folder / "b.parquet")
    return folder


@pytest.fixture(scope="module")
def by_column(images: Path, tmp_path_factory: pytest.TempPathFactory) -> ur.PruneResult:
    return pruned(images, tmp_path_factory.mktemp("by_column"), group="patient", holdout=0.2)


def pruned(source: Path, out: Path, **fields: Any) -> ur.PruneResult:
    return ur.prune(ur.PruneConfig(**{**FIELDS, "source": str(source), "out": str(out), **fields}))


def voted_folds(result: ur.PruneResult) -> list[set[int]]:
    """The ids that each fold's model was asked for, from the votes on storage."""
    files = [name for name in result.manifest.files if "/votes/" in name]
    return [set(result.run.folder.read_table(name).column("id").to_pylist()) for name in files]


def test_no_model_scores_a_patient_that_it_was_trained_on(by_column: ur.PruneResult) -> None:
    of_row = patients()
    everyone = set(by_column.scores.column("id").to_pylist())
    scored = voted_folds(by_column)
    assert len(scored) == 4
    for ids in scored:
        trained = {of_row[row] for row in everyone - ids} - {None}
        assert trained
        assert not trained & {of_row[row] for row in ids}


def test_no_patient_is_on_both_sides_of_the_holdout(by_column: ur.PruneResult) -> None:
    of_row, inside = patients(), set(by_column.scores.column("id").to_pylist())
    assert by_column.manifest.source.holdout == COUNT - len(inside)
    held = {of_row[row] for row in set(range(COUNT)) - inside} - {None}
    assert held
    assert not held & {of_row[row] for row in inside}


def test_a_file_of_numbers_gives_the_same_choice(images: Path, by_column: ur.PruneResult, tmp_path: Path) -> None:
    names = patients()
    numbers = [1000 + row if name is None else int(name[-3:]) for row, name in enumerate(names)]
    np.save(tmp_path / "groups.npy", numbers)
    result = pruned(images, tmp_path / "run", group=str(tmp_path / "groups.npy"), holdout=0.2)
    assert result.coreset.ids.tolist() == by_column.coreset.ids.tolist()
    assert result.scores == by_column.scores


def test_a_pattern_of_the_keys_names_groups(tmp_path: Path) -> None:
    for number, pixels in enumerate(class_pixels(np.arange(24) % 2, 8, 0)):
        place = tmp_path / "images" / f"class{number % 2}" / f"p{number // 4:02}-{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    info = with_groups(open_source(source_ref(str(tmp_path / "images"))), {"pattern": r"/p(\d+)-"})
    source = open_source(source_ref(str(tmp_path / "images")))
    first = dict.fromkeys(key.split("/p")[1][:2] for key in source.keys(range(24)))
    assert info.groups.of_R is not None
    assert len(np.unique(info.groups.of_R)) == len(first) == 6
    for key, group in zip(source.keys(range(24)), info.groups.of_R.tolist(), strict=True):
        assert key.split("/p")[1][:2] == source.keys([group])[0].split("/p")[1][:2]


@pytest.mark.parametrize(
    ("group", "kind", "said"),
    [
        ("doctor", ConfigError, "has no such column; it has image, label, patient"),
        ("image", DataError, None),
        ({"pattern": "x(y)"}, DataError, "finds no group in the key 'a.parquet:0'"),
        ({"pattern": "xy"}, ConfigError, "has no parentheses"),
        ({"pattern": "("}, ConfigError, "not a regular expression"),
        ({"use": "patient", "drop": "yes"}, ConfigError, "does not say which samples belong together"),
        ({"column": "patient"}, ConfigError, "does not say which samples belong together"),
        ([], ConfigError, "does not say which samples belong together"),
        ("", ConfigError, "does not say which samples belong together"),
        ("missing.npy", DataError, "missing.npy does not exist"),
        ('{pattern: "(\\d)"}', ConfigError, "is not a mapping in YAML"),
    ],
)
def test_what_tells_no_groups_is_refused(images: Path, group: Any, kind: type[Exception], said: str | None) -> None:
    source = open_source(source_ref(str(images)))
    if said is None:  # images are told apart as well as anything
        assert with_groups(source, group).groups.of_R is None
        return
    with pytest.raises(kind, match=said.replace("(", r"\(")):
        with_groups(source, group)


@pytest.mark.parametrize("numbers", [np.zeros(10, int), np.zeros(COUNT), np.zeros((COUNT, 1), int)])
def test_a_file_of_another_shape_or_kind_is_refused(images: Path, tmp_path: Path, numbers: np.ndarray) -> None:
    np.save(tmp_path / "groups.npy", numbers)
    with pytest.raises(DataError, match="one whole number for each of its 240 rows"):
        with_groups(open_source(source_ref(str(images))), str(tmp_path / "groups.npy"))


def test_a_source_without_columns_says_what_else_there_is() -> None:
    with pytest.raises(ConfigError, match=r"digits has no columns. Group by its keys, such as digits:0"):
        with_groups(open_source(source_ref("digits")), "patient")


def test_groups_too_large_for_the_folds_are_refused(images: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "groups.npy", np.arange(COUNT) // 100)
    for train_on in ("fold", "complement"):
        with pytest.raises(ConfigError, match="folds=4 leaves a fold empty, because groups are not split"):
            pruned(images, tmp_path / "run", group=str(tmp_path / "groups.npy"), train_on=train_on)
    with pytest.raises(ConfigError, match=r"holdout=0.1 is empty: every group is larger"):
        pruned(images, tmp_path / "run", group=str(tmp_path / "groups.npy"), folds=2, holdout=0.1)
    assert not (tmp_path / "run").exists()


def test_the_plan_says_how_even_the_folds_are(images: Path) -> None:
    planned, _, _ = ur.plan(ur.PruneConfig(source=str(images), keep=0.5, group="patient"))
    (said,) = [warning for warning in planned.warnings if "groups" in warning]
    assert "folds keep each whole and have" in said and "samples are alone" in said
    staged, _, _ = ur.plan(ur.PruneConfig(source=str(images), keep=0.5, schedule=[0.4, 0.5], group="label", folds=3))
    assert "3 classes are missing from some folds (class 0 from 2 of 3)." in staged.warnings
    assert "models of later stages train on the coreset, and may score other samples of its groups." in staged.warnings
    copies, _, _ = ur.plan(ur.PruneConfig(source=str(images), keep=0.5, group={"use": "patient", "drop": True}))
    known = len({name for name in patients() if name is not None}) + patients().count(None)
    assert copies.num_samples == known
    assert f"{COUNT - known} samples are left out" in copies.warnings[0]


def test_one_of_each_is_used(images: Path, tmp_path: Path) -> None:
    result = pruned(images, tmp_path, group={"use": "patient", "drop": True})
    names = patients()
    used = [names[row] for row in result.scores.column("id").to_pylist()]
    assert len(used) == len(set(used) - {None}) + used.count(None)
    assert result.manifest.source.copies == COUNT - len(used)
    assert result.manifest.source.skipped_ids == []


def test_a_run_goes_on_with_the_same_groups_alone(images: Path, tmp_path: Path) -> None:
    of_patient = np.array([1000 + row if name is None else int(name[-3:]) for row, name in enumerate(patients())])
    np.save(tmp_path / "groups.npy", of_patient)
    path = str(tmp_path / "groups.npy")
    first = pruned(images, tmp_path / "run", group=path)
    again = pruned(images, tmp_path / "run", group="patient")  # told in another way
    assert again.coreset.ids.tolist() == first.coreset.ids.tolist()
    for other in (None, {"use": "patient", "drop": True}):
        with pytest.raises(ConfigError, match=r"which samples belong together \(group\)"):
            pruned(images, tmp_path / "run", group=other)
    of_patient[0] = of_patient[1]
    np.save(path, of_patient)
    with pytest.raises(ConfigError, match=r"which samples belong together \(group\)"):
        pruned(images, tmp_path / "run", group=path)
    with pytest.raises(ConfigError, match="gives other groups than those that"):
        ur.evaluate(first, seeds=1, test=str(images), executor="local")
    assert ur.evaluate(first, seeds=1, test=str(images), executor="local", group="patient", against=()).arms
    shutil.copy(images / "a.parquet", tmp_path)  # the source is untouched by all this
    assert len(list(images.iterdir())) == 2


def test_evaluate_measures_on_patients_of_whom_nothing_was_trained_on(by_column: ur.PruneResult) -> None:
    table = ur.evaluate(by_column, seeds=1, against=("random", "full"), executor="local")
    assert table.test_samples == by_column.manifest.source.holdout
    assert [arm.samples for arm in table.arms][-1] == by_column.manifest.source.num_samples


@pytest.mark.parametrize(
    "values", [pa.array([1, None, 1, None]), pa.array([0.5, float("nan"), 0.5, float("nan")]), ["a", "", " a", " "]]
)
def test_rows_without_a_group_are_alone(tmp_path: Path, values: Any) -> None:
    pngs = [png_bytes(pixels) for pixels in class_pixels(np.arange(4) % 2, 8, 0)]
    pq.write_table(pa.table({"image": pngs, "label": [0, 1, 0, 1], "of": values}), tmp_path / "few.parquet")
    groups = with_groups(open_source(source_ref(str(tmp_path / "few.parquet"))), "of").groups
    assert groups.of_R is not None and groups.of_R.tolist() == [0, 1, 0, 3]


def test_a_sweep_goes_on_with_the_same_groups_alone(images: Path, tmp_path: Path) -> None:
    source = open_source(source_ref(str(images)))
    np.save(tmp_path / "groups.npy", np.arange(COUNT) // 3)
    fields = {"source": str(images), "keep": 0.5, "holdout": 0.2, "group": str(tmp_path / "groups.npy")}
    config = ur.SweepConfig(run=fields, space={"score": ["entropy", "margin"]}, out=str(tmp_path / "sweep"))
    info, folder = with_groups(source, fields["group"]), Folder(str(tmp_path / "sweep"))
    values = config.to_json()
    write_manifest(folder, Manifest(created="", kind="sweep", config=values, asked=values, source=source_entry(info)))
    folder.write("more", b"")
    np.save(tmp_path / "groups.npy", np.arange(COUNT) // 4)
    with pytest.raises(ConfigError, match="holds a sweep over other data or groups"):
        ur.sweep(config)


@pytest.mark.parametrize(("size", "keep"), [(4, 0.5), pytest.param(150, 0.95, marks=pytest.mark.slow)])
def test_trials_measure_on_patients_apart_from_those_trained_on(tmp_path: Path, size: int, keep: float) -> None:
    """Of 2,400 images, since trials set aside at least 100 for each training; large groups take many rows with them."""
    labels = np.arange(2400) % 3
    pngs = [png_bytes(pixels) for pixels in class_pixels(labels, 8, 0)]
    doctors = np.random.default_rng(0).permutation(2400) // size
    pq.write_table(pa.table({"image": pngs, "label": labels, "doctor": doctors}), tmp_path / "many.parquet")
    result = pruned(
        tmp_path / "many.parquet",
        tmp_path / "run",
        group="doctor",
        keep=keep,
        policy={"use": "auto", "trials": 20.0, "candidates": ["ccs", "top"]},
    )
    assert result.manifest.stages[0].trials
