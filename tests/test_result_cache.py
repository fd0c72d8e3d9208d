"""Runs that share a cache: each piece of work is done by one of them, and everybody gets it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import unseen_ray as ur
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.evaluation.arms import ArmSubsets
from unseen_ray.evaluation.trainings import train_and_measure
from unseen_ray.execution.local import LocalExecutor
from unseen_ray.pruning import pipeline
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.result_cache import ClaimBook, ResultCache, once
from unseen_ray.runs.tasks import EvalResult, Progress

FIELDS = {
    "source": {"use": "digits", "limit": 300},
    "keep": 0.6,
    "folds": 2,
    "holdout": 0.2,
    "model": {"use": "small_cnn", "width": 8},
    "recipe": {"epochs": 2, "min_steps": 0, "precision": "float32"},
    "executor": "local",
}


class Counted:
    """Counts the trainings that were really made."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.told: list[Receipt | EvalResult] = []

    def __call__(self, event: Progress | Receipt | EvalResult) -> None:
        if isinstance(event, Progress):
            if event.doing == "train" and event.done == 1:
                self.made.append(event.task)
        else:
            self.told.append(event)


def run(tmp_path: Path, name: str, book: ClaimBook | None, **fields: object) -> tuple[ur.PruneResult, Counted]:
    config = ur.PruneConfig(**{**FIELDS, "out": str(tmp_path / name), **fields})
    counted, executor = Counted(), LocalExecutor()
    if book is None:
        pipeline.run_pipeline(config, executor=executor, on_event=counted)
    else:
        with ResultCache(str(tmp_path / "work"), name, book) as cache:
            pipeline.run_pipeline(config, executor=executor, on_event=counted, cache=cache)
    return ur.load(tmp_path / name), counted


def test_the_same_work_in_another_geometry_is_taken_from_the_cache(tmp_path: Path) -> None:
    book = ClaimBook()
    _, first = run(tmp_path, "fold", book)
    shared, second = run(tmp_path, "complement", book, train_on="complement")
    alone, third = run(tmp_path, "alone", None, train_on="complement")
    assert (len(first.made), len(second.made), len(third.made)) == (2, 0, 2)
    assert shared.scores == alone.scores
    assert shared.coreset.ids.tolist() == alone.coreset.ids.tolist()
    tasks = shared.manifest.stages[0]["tasks"]
    assert [(task["index"], task["task"], task["reused"]) for task in tasks] == [
        (0, "stage 0 fold 0", True),
        (1, "stage 0 fold 1", True),
    ]


def test_features_and_probabilities_come_along(tmp_path: Path) -> None:
    book, more = ClaimBook(), {"save_features": True, "save_probs": True}
    first, _ = run(tmp_path, "first", book, **more)
    second, counted = run(tmp_path, "second", book, **more, score="margin", keep=0.4)
    assert not counted.made
    for name in ("stage-00/features.npy", "stage-00/probs.npy", "stage-00/scores.parquet"):
        assert second.manifest.files[name] == first.manifest.files[name]


def test_two_runs_at_once_do_each_training_once(tmp_path: Path) -> None:
    book, results = ClaimBook(), {}

    def work(name: str, **fields: object) -> None:
        results[name] = run(tmp_path, name, book, folds=4, **fields)

    others = [
        threading.Thread(target=work, args=("a",)),
        threading.Thread(target=work, args=("b",), kwargs={"score": "margin"}),
    ]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join(120)
    made = sorted(task for _, counted in results.values() for task in counted.made)
    assert made == [f"stage 0 fold {fold}" for fold in range(4)]
    for name, (result, counted) in results.items():
        alone, _ = run(tmp_path, f"alone-{name}", None, folds=4, **({"score": "margin"} if name == "b" else {}))
        assert result.coreset.ids.tolist() == alone.coreset.ids.tolist()
        assert len(counted.told) == 4


def test_an_evaluation_is_shared_and_measures_on_the_holdout(tmp_path: Path) -> None:
    book, made, tables = ClaimBook(), [], []
    for name in ("one", "two"):
        result, _ = run(tmp_path, name, book)
        chosen = {"coreset": ArmSubsets((result.coreset.ids,), 0.0)}
        config = ur.PruneConfig(**{**FIELDS, "out": str(tmp_path / name), "test": {"use": "digits", "limit": 50}})
        counted = Counted()
        with ResultCache(str(tmp_path / "work"), name, book) as cache:
            table = train_and_measure(
                ResolvedRun.of(config, 8),
                chosen,
                against=("random",),
                skipped_ids=result.coreset.ids[:0],
                seeds=1,
                budget="epochs",
                executor=LocalExecutor(),
                on_event=counted,
                on_holdout=True,
                cache=cache,
            )
        made.append(counted.made)
        tables.append(table)
    assert made == [["coreset seed 0", "random seed 0"], []]
    assert [arm.accuracies for arm in tables[0].arms] == [arm.accuracies for arm in tables[1].arms]
    assert tables[0].test == "holdout of digits" and tables[0].test_samples == 60


def test_a_damaged_cache_is_not_used(tmp_path: Path) -> None:
    book = ClaimBook()
    first, _ = run(tmp_path, "first", book)
    for file in (tmp_path / "work").rglob("*.parquet"):
        data = bytearray(file.read_bytes())
        data[len(data) // 3] ^= 1
        file.write_bytes(data)
    second, counted = run(tmp_path, "second", book, score="margin")
    assert len(counted.made) == 2
    assert second.scores.select(first.scores.column_names) == first.scores


def test_a_run_that_was_killed_before_it_could_lend_lends_when_it_goes_on(tmp_path: Path) -> None:
    book = ClaimBook()
    run(tmp_path, "first", None)
    (tmp_path / "first" / "coreset.parquet").unlink()
    run(tmp_path, "first", book)
    assert not run(tmp_path, "second", book, score="margin")[1].made


def test_claims_are_held_by_one_owner_until_it_gives_them_back_or_falls_silent() -> None:
    book = ClaimBook(silence_s=0.2)
    assert book.claim("a", ["x", "y"]) == ["x", "y"]
    assert book.claim("b", ["y", "z"]) == ["z"]
    book.release("b", ["x"])  # not its own
    assert book.claim("b", ["x"]) == []
    book.release("a", ["x"])
    assert book.claim("b", ["x", "y"]) == ["x"]
    time.sleep(0.3)
    assert book.claim("c", ["x", "y", "z"]) == ["x", "y", "z"]
    book.drop("c")
    assert book.claim("a", ["x", "y", "z"]) == ["x", "y", "z"]


def test_a_failing_task_gives_its_claims_back(tmp_path: Path) -> None:
    book = ClaimBook()

    def fails(tasks: list[str]) -> list[str]:
        raise ur.DataError("no such thing")

    with pytest.raises(ur.DataError, match="no such thing"):
        once(
            ["t"], ["k"], known=lambda _: None, do=fails, cache=ResultCache(str(tmp_path), "a", book), rest=lambda: None
        )
    assert book.claim("b", ["k"]) == ["k"]
