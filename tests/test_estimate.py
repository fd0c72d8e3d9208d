"""What a run takes of a cluster, against numbers worked out by hand; and what is measured, and left behind, on the spot."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes, write_parquet
from unseen_ray.cli import main
from unseen_ray.config.models import MODELS, model_builder
from unseen_ray.config.named_recipes import recipe_values
from unseen_ray.config.recipe import Recipe
from unseen_ray.data.sources.registry import encoded_of, open_source, source_ref
from unseen_ray.errors import ConfigError, DataError
from unseen_ray.execution.estimate.rates import measure_rates
from unseen_ray.training.loop.trainer import Trainer

RECIPE = {"epochs": 2, "min_steps": 0, "batch_size": 50, "precision": "float32"}
BASE: dict[str, Any] = {
    "source": {"use": "digits", "limit": 1200},
    "keep": 0.75,
    "folds": 4,
    "recipe": RECIPE,
    "scoring": {"share": 1},
}
RATES = {"images_per_s": 100.0, "scoring_images_per_s": 400.0, "decode_images_per_s": 25.0}


def values(*, workers: int | None = None, rates: dict[str, float] = RATES, **fields: Any) -> dict[str, Any]:
    return ur.plan_values(ur.PruneConfig(**{**BASE, **fields}), workers=workers, **rates)


def needs(found: dict[str, Any]) -> dict[str, float]:
    return {need["name"]: need["value"] for need in found["needs"]}


def stage(found: dict[str, Any], index: int = 0) -> dict[str, Any]:
    given: dict[str, Any] = found["cluster"]["stages"][index]
    return given


# a fold: 300 images x 2 epochs / 100 = 6 s of training, 900 / 400 = 2.25 s of scoring


@pytest.mark.parametrize(
    ("workers", "waves", "busy", "idle", "wall_s"),
    [(1, 4, 1, 0, 33.0), (2, 2, 2, 0, 16.5), (3, 2, 3, 2, 16.5), (4, 1, 4, 0, 8.25), (8, 1, 4, 4, 8.25)],
)
def test_folds_take_workers_in_waves(workers: int, waves: int, busy: int, idle: int, wall_s: float) -> None:
    found = values(workers=workers)
    given = stage(found)
    assert (given["models"], given["waves"], given["busy"], given["idle"]) == (4, waves, busy, idle)
    assert given["wall_hours"] * 3600 == pytest.approx(wall_s)
    assert given["worker_hours"] * 3600 == pytest.approx(33.0)
    assert given["utilisation"] == pytest.approx(33.0 / (workers * wall_s))
    assert found["cluster"]["occupied_hours"] * 3600 == pytest.approx(workers * wall_s)
    assert found["worker_hours"] * 3600 == pytest.approx(33.0)
    assert found["critical_path_hours"] * 3600 == pytest.approx(8.25)


def test_repeats_are_trainings_of_their_own() -> None:
    given = stage(values(workers=8, repeats=3))
    assert (given["models"], given["waves"], given["idle"]) == (12, 2, 4)
    assert given["wall_hours"] * 3600 == pytest.approx(2 * 8.25)


def test_folds_may_share_a_gpu() -> None:
    given = stage(values(workers=1, gpus_per_fold=0.25))
    assert (given["waves"], given["busy"], given["idle"]) == (1, 1, 0)
    assert given["wall_hours"] * 3600 == pytest.approx(8.25)
    assert given["worker_hours"] * 3600 == pytest.approx(33.0 / 4)  # of GPUs


def test_later_stages_train_one_model_on_several_workers() -> None:
    # stage 1: 600 images x 2 / (2 x 100) = 6 s on two workers, 600 / 400 = 1.5 s of scoring on one
    found = values(workers=8, schedule=[0.5, 0.75], gpus_per_fit=2)
    zero, one = stage(found), stage(found, 1)
    assert (one["models"], one["workers_each"], one["waves"], one["busy"], one["idle"]) == (1, 2, 1, 2, 6)
    assert one["wall_hours"] * 3600 == pytest.approx(7.5)
    assert one["worker_hours"] * 3600 == pytest.approx(2 * 6 + 1.5)
    assert found["cluster"]["wall_hours"] * 3600 == pytest.approx(8.25 + 7.5)
    assert found["cluster"]["utilisation"] == pytest.approx((33 + 13.5) / (8 * 15.75))
    assert found["cluster"]["bottleneck"] == 0
    assert zero["wall_hours"] > one["wall_hours"]
    assert values(workers=8, schedule=[0.5, 0.75])["cluster"]["bottleneck"] == 1  # 12 + 1.5 s
    twice = stage(values(workers=8, schedule=[0.5, 0.75], gpus_per_fit=2, repeats=2), 1)
    assert twice["waves"] == 2  # one after the other
    assert twice["wall_hours"] * 3600 == pytest.approx(2 * 6 + 1.5)


def test_a_cluster_without_rates_has_waves_and_no_hours() -> None:
    found = values(workers=3, rates={})
    assert (stage(found)["waves"], stage(found)["idle"]) == (2, 2)
    assert found["cluster"]["wall_hours"] is None and stage(found)["utilisation"] is None
    assert needs(found)["decode_core_hours"] is None


def test_scoring_is_three_times_as_fast_unless_it_is_said() -> None:
    found = values(workers=4, rates={"images_per_s": 100.0})
    assert found["rates"]["scoring"] == 300.0
    assert found["rates"]["how"]["scoring"].startswith("3 x training")
    assert stage(found)["wall_hours"] * 3600 == pytest.approx(6 + 3)


def test_what_is_held_in_memory_is_read_decoded_and_moved_once() -> None:
    found = needs(values(workers=4))
    pixels = 1200 * 8 * 8 * 3
    assert found["decode_core_hours"] * 3600 == pytest.approx(1200 / 25)
    assert found["encoded_bytes"] == 192
    assert found["read_encoded"] == found["network_pixels"] == found["decoded_pixels"] == pixels
    assert "read_bytes" not in found
    votes = 4 * 900 * (24 + 4 * 7)
    scores = 1200 * (32 + 8 * 7)
    assert (found["disk_votes"], found["disk_scores"]) == (votes, scores)
    assert found["network_votes"] == 2 * votes + scores
    checkpoint = MODELS["small_cnn"].checkpoint_bytes(10, Recipe())
    assert found["network_checkpoints"] == checkpoint * 4 * 2
    assert found["disk_checkpoints"] == 2 * checkpoint * 4
    assert needs(values(workers=3))["disk_checkpoints"] == 2 * checkpoint * 3


def test_every_number_says_how_it_was_computed() -> None:
    for workers in (None, 4):
        found = values(workers=workers)
        assert len(found["needs"]) >= 8
        assert all(need["how"].startswith(("= ", "the mean of", "none")) for need in found["needs"])


def large(tmp_path: Path, *, groups: int | None = None) -> dict[str, Any]:
    """A source of 1,000 small images that are brought to 1,300 px, so that they do not fit in memory."""
    labels = np.arange(1000) % 4
    images = [png_bytes(pixels) for pixels in class_pixels(labels, 8)]
    path = write_parquet(tmp_path / "train.parquet", labels, images)
    if groups is not None:
        pq.write_table(pq.read_table(path), path, row_group_size=1000 // groups, compression="none")
    return {"use": "parquet", "path": str(path), "size": 1300}


def test_what_is_decoded_into_files_is_read_from_them(tmp_path: Path) -> None:
    recipe = {**RECIPE, "batch_size": 10, "augment": "resized_crop_flip"}
    found = needs(values(workers=8, source=large(tmp_path), model="small_cnn", recipe=recipe))
    image, pixels = 1300**2 * 3, 1000 * 1300**2 * 3
    assert found["decode_core_hours"] * 3600 == pytest.approx(1000 / 25)
    assert found["read_encoded"] == pytest.approx(1000 * found["encoded_bytes"])
    assert (found["read_training"], found["read_scoring"]) == (100 * image, 400 * image)
    assert found["read_in_all"] == 4 * 400 * image
    assert found["read_bytes"] == 4 * (2 * 250 + 750) * image
    assert found["network_pixels"] == found["decoded_pixels"] == pixels


@pytest.mark.parametrize(
    ("fields", "held"),
    [
        ({}, "files"),
        ({"pixel_folder": "none"}, "none"),
        ({"pixel_folder": "/scratch", "out": "s3://bucket/run"}, "files"),
        ({"out": "s3://bucket/run"}, "none"),
        ({"pixel_memory_gb": 5}, "memory"),
    ],
)
def test_where_pixels_are_held_is_said(tmp_path: Path, fields: dict[str, Any], held: str) -> None:
    given = {**BASE, "source": large(tmp_path), "model": "small_cnn", "recipe": {**RECIPE, "augment": "none"}}
    assert ur.plan_values(ur.PruneConfig(**{**given, **fields}))["pixels_held"] == held


def test_what_is_decoded_at_every_read_takes_cores_and_reads(tmp_path: Path) -> None:
    recipe = {**RECIPE, "batch_size": 10, "augment": "resized_crop_flip"}
    source = large(tmp_path, groups=5)
    lazy: dict[str, Any] = {"source": source, "model": "small_cnn", "recipe": recipe, "pixel_folder": "none"}
    found = needs(values(workers=8, **lazy))
    assert found["decode_cores_training"] == pytest.approx(100 / 25)
    assert found["decode_cores_scoring"] == pytest.approx(400 / 25)
    assert found["decode_cores_in_all"] == pytest.approx(16 * 4)  # four folds score
    shared = {**lazy, "recipe": {**recipe, "batch_size": 16}}
    alone = values(workers=8, schedule=[0.5, 0.75], gpus_per_fit=8, folds=2, **shared)
    assert needs(alone)["decode_cores_in_all"] == pytest.approx(max(4 * 8, 16 * 2))
    assert (stage(alone, 1)["busy"], stage(alone, 1)["scoring"]) == (8, 1)
    each = found["encoded_bytes"]
    file = pq.ParquetFile(source["path"]).metadata
    columns = [file.row_group(group).column(place) for group in range(5) for place in (0, 1)]  # image.bytes, image.path
    assert each == sum(column.total_compressed_size for column in columns) / 1000
    touched = 5 * (1 - 0.8**10)  # groups of 200 images that ten random ones lie in
    assert found["read_training"] == pytest.approx(100 * touched * 200 * each / 10)
    assert found["read_scoring"] == pytest.approx(400 * each)
    assert found["read_in_all"] == pytest.approx(4 * max(found["read_training"], found["read_scoring"]))
    assert found["read_bytes"] == pytest.approx(4 * (2 * 250 * touched * 20 * each + 750 * each))
    assert found["network_pixels"] == 0
    assert found["decoded_pixels"] == 1000 * 1300**2 * 3


def test_gradients_are_moved_where_workers_share_a_training() -> None:
    found = needs(values(workers=8, schedule=[0.5, 0.75], gpus_per_fit=2))
    steps = 600 // 50 * 2
    assert found["network_gradients"] == 2 * 0.5 * 4 * MODELS["small_cnn"].weights(10) * steps
    assert "network_gradients" not in needs(values(workers=8, schedule=[0.5, 0.75]))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "fields", [{}, {"momentum": 0.0}, {"use": "finetune"}, {"use": "finetune", "ema": 0.9}, "airbench-94"]
)
def test_the_sizes_of_named_models_are_those_of_the_models(name: str, fields: dict[str, Any] | str) -> None:
    model, recipe = model_builder(name)(num_classes=7), Recipe(**recipe_values(fields))
    assert MODELS[name].weights(7) == sum(weight.numel() for weight in model.parameters())
    trainer = Trainer(model, recipe, steps=9, num_classes=7, device=torch.device("cpu"), replicas=1)
    held = sum(value.nbytes for value in trainer.tensors().values() if value.ndim)
    counted = sum(
        value.nbytes for key, value in trainer.tensors().items() if not value.ndim and key.startswith("model.")
    )
    assert 0.999 < MODELS[name].checkpoint_bytes(7, recipe) / (held + counted) < 1.001


def test_the_size_of_an_image_is_what_the_files_say(
    tmp_path: Path, parquet_file: Callable[..., Path], image_folder: Callable[..., Path]
) -> None:
    folder = image_folder(per_class=5)
    sizes = [path.stat().st_size for path in folder.rglob("*.png")]
    found = encoded_of(open_source(source_ref(str(folder))))
    assert (found.bytes_each, found.groups) == (pytest.approx(sum(sizes) / len(sizes)), 0)
    path = parquet_file(count=40)
    found = encoded_of(open_source(source_ref(str(path))))
    assert 0.5 * path.stat().st_size < 40 * found.bytes_each < path.stat().st_size
    assert found.groups == 1
    counts = {"use": "tests.plugs:noise", "count": 20, "classes": 2}
    assert encoded_of(open_source(source_ref(counts))).how == "the mean of 20 images"


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates that are measured for a moment, where a test does not ask how high they are."""
    monkeypatch.setattr("unseen_ray.execution.estimate.rates._WINDOW_S", 0.02)


def test_a_measured_plan_has_rates_of_this_machine_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "not" / "yet"
    before = {name: RECIPE[name] for name in RECIPE}
    asked = ur.PruneConfig(**{**BASE, "recipe": before}, out=str(out))
    found = ur.plan_values(asked, workers=2, measure=True)
    rates = found["rates"]
    assert all(rates[name] > 0 for name in ("training", "scoring", "decode"))
    assert rates["scoring"] > rates["training"]
    assert all("measured here" in rates["how"][name] for name in ("training", "scoring", "decode"))
    assert "1 thread, float32, batches of 50" in rates["how"]["training"]
    assert found["cluster"]["wall_hours"] > 0
    assert needs(found)["out_write"] > 0 and needs(found)["out_read"] > 0
    assert list(tmp_path.iterdir()) == []


def test_what_is_given_is_not_taken_from_a_measurement_and_a_run_stays_as_it_is(brief: None, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    asked = ur.PruneConfig(**BASE, out=str(tmp_path / "run"))
    found = ur.plan_values(asked, images_per_s=123.0, measure=True)
    assert found["rates"]["training"] == 123.0 and found["rates"]["how"]["training"] == "given"
    assert "measured here" in found["rates"]["how"]["scoring"]
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "manifest.json"]


@pytest.mark.slow
def test_growing_crops_are_measured_at_each_size(parquet_file: Callable[..., Path]) -> None:
    path = parquet_file(count=60, size_px=96)
    crops = {"first": 16, "last": 96, "ramp": [0.25, 0.25], "step": 16}  # the second of two epochs has the last
    rates = {}
    for px in (16, crops, 96):  # a small net on large images: its time is that of the pixels
        recipe = {**RECIPE, "augment": "resized_crop_flip", "train_px": px, "batch_size": 20}
        config = ur.PruneConfig(source=str(path), keep=0.5, model="small_cnn", recipe=recipe)
        rates[str(px)] = measure_rates(config, open_source(source_ref(str(path)))).training
    small, both, whole = rates.values()
    assert whole < both < small, rates
    assert both == pytest.approx(2 / (1 / small + 1 / whole), rel=0.5), rates


def test_images_that_cannot_be_decoded_are_passed_over(brief: None, tmp_path: Path) -> None:
    images = [png_bytes(pixels) for pixels in class_pixels(np.arange(6), 8)]
    for good in (5, 1):
        path = write_parquet(tmp_path / f"{good}.parquet", np.arange(6), [*images[:good], *[b"no"] * (6 - good)])
        config = ur.PruneConfig(source=str(path), keep=0.5, folds=2, model="small_cnn", recipe=RECIPE)
        source = open_source(source_ref(str(path)))
        if good == 5:
            assert measure_rates(config, source).batch_size == 5
        else:
            with pytest.raises(DataError, match=r"only 1 of 6 sampled images of .* can be decoded"):
                measure_rates(config, source)


def test_a_user_s_own_training_is_measured_as_far_as_it_is_known(brief: None) -> None:
    fields = {name: value for name, value in BASE.items() if name != "recipe"}
    found = ur.plan_values(ur.PruneConfig(**fields, fit="tests.plugs:centroids"), workers=2, measure=True)
    assert found["rates"]["training"] is None and found["rates"]["decode"] > 0
    assert stage(found)["waves"] == 2 and found["cluster"]["wall_hours"] is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"workers": 0}, "workers=0 must be 1 or more"),
        ({"images_per_s": 0.0}, "images_per_s=0.0 must be above 0"),
        ({"scoring_images_per_s": -1.0}, "scoring_images_per_s=-1.0 must be above 0"),
        ({"decode_images_per_s": float("nan")}, "decode_images_per_s=nan must be above 0"),
    ],
)
def test_numbers_that_are_none_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ur.plan_values(ur.PruneConfig(**BASE), **asked)


def test_fewer_workers_than_share_a_training_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"workers=2 is less than gpus_per_fit=4, the workers that share a training\. Lower"
    ):
        values(workers=2, gpus_per_fit=4, schedule=[0.5, 0.75], recipe={**RECIPE, "batch_size": 48})


def test_the_command_shows_the_bottleneck_and_how(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", "--source", "digits", "--keep", "0.7", "--schedule", "[0.5,0.7]", "--workers", "3"]
    main([*line, "--images_per_s", "1000", "--scoring-images-per-s", "2000", "--decode_images_per_s", "50"])
    text = capsys.readouterr().out
    (marked,) = [row for row in text.splitlines() if row.endswith("the longest")]
    assert marked.split()[:4] == ["0", "4", "1", "2"]
    assert "images/s: training 1,000 (given), scoring 2,000 (given), decoding on one core 50 (given)" in text
    assert "= images / decode rate / 3600" in text
    main([*line, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["stage"] for row in found["cluster"]["stages"]] == [0, 1]


def test_pruning_pays_after_trainings_of_as_many_epochs_as_on_all_samples() -> None:
    # min_steps 300 alone would give 288 samples 75 epochs: as many steps as 1,438 samples get in 14.
    planned = ur.plan_values(ur.PruneConfig(source="digits", keep=0.2, holdout=0.2, scoring={"share": 0.25}))
    full, kept = 22 * 64 * 15, 4 * 64 * 15
    assert planned["pays_after_trainings"] == pytest.approx(planned["bill"] / (1 - kept / full))


def test_of_a_sweep_only_hours_are_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("run: {source: digits, keep: 0.5, holdout: 0.2}\nspace: {folds: [2, 4]}\nout: x\n")
    with pytest.raises(SystemExit) as left:
        main(["plan", str(path), "--workers", "8"])
    assert left.value.code == 2
    assert "--workers has no effect on the plan of a sweep" in capsys.readouterr().err


def test_a_source_may_say_what_it_stands_for(caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    with caplog.at_level(logging.INFO):
        main(["plan", "--source", "tests.plugs:stand_in", "--keep", "0.5", "--workers", "2"])
    text = capsys.readouterr().out
    assert "note: counts alone" in text
    assert "as the source says" in text


def test_a_holdout_that_is_empty_is_refused_and_one_of_another_size_told() -> None:
    fields = {"source": {"use": "digits", "limit": 60}, "keep": 0.5, "folds": 2}  # 6 or so of each class
    with pytest.raises(ur.ConfigError, match=r"holdout=0\.04 is empty: its share of every class rounds to 0"):
        ur.plan(ur.PruneConfig(**fields, holdout=0.04))
    plan = ur.plan(ur.PruneConfig(**fields, holdout=0.25))
    said = "the holdout has 17 samples instead of 15, because each class gives a whole number."
    assert plan.run.num_holdout == 17 and said in plan.run.warnings
    exact = ur.plan(ur.PruneConfig(source="digits", keep=0.5, holdout=0.2))
    assert not any("the holdout has" in warning for warning in exact.run.warnings)


@pytest.mark.parametrize(("keep", "policy", "said"), [(0.1, "auto", True), (0.5, "auto", False), (0.1, "top", False)])
def test_auto_tells_beforehand_where_it_keeps_too_few_to_choose(keep: float, policy: str, said: bool) -> None:
    plan = ur.plan(ur.PruneConfig(source="digits", keep=keep, policy=policy))
    assert any("policy auto will draw at random: 18 samples" in each for each in plan.run.warnings) == said
