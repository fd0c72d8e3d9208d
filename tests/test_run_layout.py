"""The names of a run's files: which are a run's, and that every name a run writes is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import unseen_ray as ur
from unseen_ray.runs import layout
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.tables import part_file

KEY = "0123456789abcdef" * 4

RESULTS = [
    "coreset.parquet",
    "coreset.parquet/part-00000.parquet",
    "keys.parquet",
    "keys.parquet/part-00012.parquet",
    "stage-00/scores.parquet",
    "stage-00/scores.parquet/part-00003.parquet",
    "stage-01/coreset.parquet",
    "stage-100/probs.npy",
    "stage-00/features.npy",
    "stage-00/votes/00.parquet",
    "stage-00/votes/100.parquet",
    "stage-02/votes/00.probs.npy",
    "stage-00/votes/00.parquet/part-00003.parquet",
    "stage-00/votes/00.probs.npy/part-00003.npy",
]
BESIDE = [
    "manifest.json",
    "manifest.copy.json",
    "manifest.json.0a1b2c3d.tmp",
    "lease.json",
    "lease.json.0a1b2c3d.tmp",
    "evaluation.json",
    "report.html",
    f"checkpoints/{KEY[:32]}/checkpoint.json",
    f"checkpoints/{KEY[:32]}/epoch-00012-1f2e3d4c-000.safetensors",
    f"checkpoints/own-{KEY[:32]}/any/name at all.bin",
    "checkpoints/ray-train/worker/state.json",
    f"pixels/{KEY[:16]}-64px/00000.pixels",
    f"pixels/{KEY[:16]}-64px/00000.json",
    "tensorboard/stage-0-fold-1/events.out.tfevents.1700000000.host.abc",
    "wandb/offline-run/files/config.yaml",
    "fitting/coreset.parquet",
    "selections/01/fitting/manifest.json",
]
STRANGERS = [
    "",
    "notes.txt",
    "coreset.parquet.bak",
    "coresetXparquet",
    "coreset.parquet/part-0.parquet",
    "other/coreset.parquet",
    "stage-00/notes.txt",
    "stage-00/keys.parquet",
    "stage-xx/scores.parquet",
    "stage-00/votes/00.npy",
    "stage-00/votes/00.parquet/part-00003.npy",
    "stage-00/votes/00.parquet/part-00003-marked.parquet",
    "stage-00/votes/a.parquet",
    "checkpoints/model.safetensors",
    f"checkpoints/{KEY[:31]}/checkpoint.json",
    f"checkpoints/{KEY[:32]}/epoch-12.safetensors",
    f"pixels/{KEY[:16]}-64px/00000.txt",
    "pixels/my.pixels",
    "tensorboard/events.out.tfevents.1700000000",
    "tensorboard/stage-0/notes.txt",
    "selections/a/manifest.json",
    "selections/manifest.json",
    "manifest.json.tmp",
    "manifest.json.0a1b2c3d.tmp.tmp",
    "../manifest.json",
]


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_ours_and_may_stand_in_a_manifest(name: str) -> None:
    assert layout.is_result(name) and layout.is_ours(name)
    assert layout.is_ours(f"{name}.0a1b2c3d.tmp") and not layout.is_result(f"{name}.0a1b2c3d.tmp")


@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_the_results_is_ours_and_not_in_a_manifest(name: str) -> None:
    assert layout.is_ours(name) and not layout.is_result(name)


@pytest.mark.parametrize("name", STRANGERS)
def test_anything_else_is_a_stranger(name: str) -> None:
    assert not layout.is_ours(name) and not layout.is_result(name)


@pytest.mark.parametrize("number", [0, 7, 99, 100])
def test_every_name_that_is_built_is_known(number: int) -> None:
    tables = [layout.scores_file(number), layout.stage_coreset(number), layout.CORESET, layout.KEYS]
    votes = layout.vote_file(number, number)
    results = [*tables, *(part_file(name, number) for name in tables), votes, layout.probs_beside(votes)]
    results += [part_file(votes, number), layout.probs_beside(part_file(votes, number))]
    results += [layout.probs_file(number), layout.FEATURES]
    beside = [
        layout.checkpoint_file(KEY),
        layout.tensors_file(KEY, number, KEY[:8], number),
        f"{layout.user_fit_folder(KEY)}/state",
        f"{layout.PIXELS}/{layout.pixel_folder(KEY, number)}/00000.pixels",
        f"{layout.selection_folder(number)}/{layout.MANIFEST}",
    ]
    assert all(map(layout.is_result, results))
    assert all(map(layout.is_ours, [*results, *beside]))
    assert votes.startswith(f"{layout.votes_folder(number)}/")
    assert all(
        layout.checkpoint_file(KEY).startswith(f"{folder}/") for folder in (layout.fit_folder(KEY), "checkpoints")
    )


def test_every_name_that_a_run_writes_is_known(tmp_path: Path) -> None:
    folder, written = Folder(str(tmp_path / "run")), set[str]()

    def note(event: Any) -> None:
        written.update(folder.files())

    config = ur.PruneConfig(
        source={"use": "digits", "limit": 80},
        keep=0.5,
        schedule=[0.3, 0.5],
        folds=2,
        recipe={"epochs": 2, "min_steps": 0},
        executor="local",
        save_probs=True,
        save_features=True,
        holdout=0.2,
        log_to="tensorboard",
        pixel_memory_gb=0,
        out=folder.root,
    )
    result = ur.prune(config, on_event=note)
    written.update(folder.files())
    assert set(result.manifest.files) <= set(filter(layout.is_result, written))
    ur.evaluate(result, seeds=1, against=("fitting",), selections=1)
    ur.report(result)
    written.update(folder.files())
    assert [name for name in written if not layout.is_ours(name)] == []
    kinds = {layout.top_of(name) for name in written}
    assert kinds >= {"checkpoints", "pixels", "tensorboard", "fitting", "stage-00", "stage-01"}
    assert kinds >= {
        "manifest.json",
        "manifest.copy.json",
        "lease.json",
        "coreset.parquet",
        "keys.parquet",
        "evaluation.json",
    }


def test_what_is_there_before_anything_is_finished_is_ours() -> None:
    assert {layout.MANIFEST, layout.MANIFEST_COPY, layout.LOCK} <= layout.OVERWRITTEN & layout.UNFINISHED
    assert layout.top_of(layout.vote_file(0, 3)) in layout.UNFINISHED
    assert layout.CORESET not in layout.UNFINISHED | layout.OVERWRITTEN
