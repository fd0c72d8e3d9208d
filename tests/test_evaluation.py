"""The table of an evaluation: its arithmetic, and what each baseline and budget trains on."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes, write_parquet
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.core.samples.population import make_population
from unseen_ray.core.seeds import digest_ids, fit_seed
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.evaluation.arms import eval_tasks
from unseen_ray.evaluation.evaluate import _chosen_arms
from unseen_ray.evaluation.table import Arm, arm_of, break_even_of, differences_of
from unseen_ray.pruning.suspects import drawable_ids
from unseen_ray.pruning.validate import check_test_set
from unseen_ray.runs.evaluation_file import stored_tables
from unseen_ray.runs.tasks import EvalResult, Progress, make_job

FAST = {"use": "quick", "epochs": 1, "min_steps": 0}


def arm(
    name: str,
    accuracies: list[float],
    *,
    selections: int = 1,
    seconds_each: float = 1.0,
    seconds_std: float = 0.0,
    choosing_s: float | None = 0.0,
    devices: tuple[str, ...] = ("cpu",),
    choosing_devices: tuple[str, ...] = (),
    drawn: bool = False,
) -> Arm:
    return Arm(
        name=name,
        samples=10,
        selections=selections,
        accuracies=tuple(accuracies),
        class_accuracy=(0.5, math.nan, 0.7),
        class_samples=(5.0, 0.0, 5.0),
        seconds=seconds_each * len(accuracies),
        seconds_each=seconds_each,
        seconds_std=seconds_std,
        choosing_s=choosing_s,
        devices=devices,
        choosing_devices=choosing_devices,
        drawn=drawn,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ur.PruneResult:
    source = {"use": "digits", "limit": 400}
    out = tmp_path_factory.mktemp("evaluated") / "run"
    return ur.prune(ur.PruneConfig(source=source, keep=0.5, out=out, folds=2, recipe=FAST, executor="local"))


def test_several_choices_are_compared_choice_by_choice() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.8, 0.01, (3, 4)), rng.normal(0.79, 0.01, (3, 4))
    (found,) = differences_of(
        [arm(name, values.ravel().tolist(), selections=3) for name, values in (("coreset", ours), ("random", theirs))]
    )
    test = stats.ttest_rel(ours.mean(axis=1), theirs.mean(axis=1)).confidence_interval(0.95)
    assert (found.baseline, found.choices) == ("random", 3)
    assert found.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (found.low, found.high) == pytest.approx((test.low, test.high))


def test_trainings_of_one_choice_are_two_samples() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.8, 0.01, 5).tolist(), rng.normal(0.79, 0.02, 5).tolist()
    (found,) = differences_of([arm("coreset", ours), arm("random", theirs)])
    test = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((test.low, test.high))
    (equal,) = differences_of([arm("coreset", [0.5, 0.5]), arm("full", [0.4, 0.4])])
    assert equal.mean == pytest.approx(0.1) and math.isnan(equal.low) and math.isnan(equal.high)


def test_an_interval_over_choices_covers_what_choosing_again_would_give() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        chosen = 0.8 + rng.normal(0, 0.006, (3, 1)) + rng.normal(0, 0.003, (3, 3))
        random = 0.8 + rng.normal(0, 0.003, (3, 3))
        (found,) = differences_of(
            [
                arm("coreset", chosen.ravel().tolist(), selections=3),
                arm("random", random.ravel().tolist(), selections=3),
            ]
        )
        covered += found.low <= 0 <= found.high
    assert covered / 400 > 0.92


def test_one_training_has_no_interval() -> None:
    (found,) = differences_of([arm("coreset", [0.5]), arm("random", [0.4])])
    assert found.mean == pytest.approx(0.1)
    assert math.isnan(found.low)


def test_deviations_of_choosing_and_of_training_are_told_apart() -> None:
    chosen = arm("coreset", [0.5, 0.5, 0.7, 0.7], selections=2)
    assert (chosen.std_trainings, chosen.std_selections) == pytest.approx((0.0, math.sqrt(0.02)))
    trained = arm("coreset", [0.5, 0.7, 0.5, 0.7], selections=2)
    assert (trained.std_trainings, trained.std_selections) == pytest.approx((math.sqrt(0.02), 0.0))
    both = arm("coreset", [0.4, 0.6, 0.8, 1.0], selections=2)  # of the means' 0.08, training again explains 0.01
    assert both.std_selections == pytest.approx(math.sqrt(0.08 - 0.01))
    once = arm("coreset", [0.4, 0.6], selections=2)
    assert math.isnan(once.std_trainings) and math.isnan(once.std_selections)
    drawn = arm("random", [0.4, 0.6, 0.8, 1.0], selections=2, drawn=True)
    assert math.isnan(drawn.std_trainings) and math.isnan(drawn.std_selections)
    assert math.isnan(arm("coreset", [0.5]).std)


def test_classes_without_a_test_sample_count_for_nothing() -> None:
    assert (arm("coreset", [0.5]).worst_class, arm("coreset", [0.5]).class_spread) == pytest.approx((0.5, 0.1))


@pytest.mark.parametrize(
    ("full_s", "choosing_s", "trainings"), [(9.0, 12.0, 6.0), (3.0, 12.0, None), (2.0, 12.0, None)]
)
def test_break_even_is_the_cost_over_what_a_training_saves(
    full_s: float, choosing_s: float, trainings: float | None
) -> None:
    coreset = arm("coreset", [0.5, 0.5, 0.5], choosing_s=choosing_s)
    even = break_even_of([coreset, arm("full", [0.5], seconds_each=full_s / 3)])
    assert even is not None
    assert even.trainings == (None if trainings is None else pytest.approx(trainings))


def test_a_difference_in_the_noise_of_the_clock_is_no_saving() -> None:
    full = arm("full", [0.5] * 4, seconds_each=2.0, seconds_std=1.2)
    for seconds, trainings in ((0.9, None), (0.4, pytest.approx(12 / 1.6))):
        even = break_even_of([arm("coreset", [0.5] * 4, seconds_each=seconds, choosing_s=12.0), full])
        assert even is not None
        assert even.trainings == trainings


def timed(name: str, seconds: Sequence[float], choosing_s: float) -> Arm:
    same: dict[str, Any] = {
        "trained": 100,
        "accuracy": 0.5,
        "class_accuracy": (0.5, 0.5),
        "node": "node",
        "device": "cpu",
    }
    results = [
        EvalResult(task=name, arm=name, selection=0, repeat=repeat, seconds=each, worker_seconds=each, **same)
        for repeat, each in enumerate(seconds)
    ]
    return arm_of(name, results, [np.array([50, 50])] * len(results), choosing_s=choosing_s)


def test_the_first_training_of_a_process_does_not_hide_what_the_others_save() -> None:
    """Its start counts in its seconds; these are those of digits on one core."""
    even = break_even_of(
        [timed("coreset", [6.2, 0.7, 0.8, 0.7, 0.7], 6.0), timed("full", [2.9, 3.0, 2.8, 2.9, 2.9], 0)]
    )
    assert even is not None and even.trainings == pytest.approx(6.0 / 2.2)


def test_no_break_even_without_its_two_measures() -> None:
    coreset, unknown = arm("coreset", [0.5]), arm("coreset", [0.5], choosing_s=None)
    assert break_even_of([coreset, arm("random", [0.5])]) is None
    assert break_even_of([unknown, arm("full", [0.5])]) is None
    assert break_even_of([coreset, arm("full", [0.5], seconds_each=9.0, devices=("H200",))]) is None
    chosen_elsewhere = arm("coreset", [0.5], choosing_s=12.0, choosing_devices=("H200",))
    assert break_even_of([chosen_elsewhere, arm("full", [0.5], seconds_each=9.0)]) is None


def test_the_matched_baseline_has_the_coresets_class_counts(finished: ur.PruneResult) -> None:
    table = ur.evaluate(finished, test="digits", seeds=1, against=("random", "random_matched", "full"))
    coreset, random, matched, full = table.arms
    labels = np.bincount(finished.run.folder.read_table("coreset.parquet").column("label").to_numpy(), minlength=10)
    assert coreset.class_samples == matched.class_samples == tuple(labels)
    assert random.class_samples != matched.class_samples
    assert (full.samples, full.choosing_s, coreset.choosing_s) == (400, 0.0, finished.manifest.cost["fit_seconds"])
    assert [difference.baseline for difference in table.differences] == ["random", "random_matched", "full"]
    assert table.class_names == tuple("0123456789")
    written = json.loads(Path(finished.path, "evaluation.json").read_text())
    assert written["tables"][0] == table.to_json()


def test_resampled_arms_train_on_as_many_samples_drawn_anew(finished: ur.PruneResult) -> None:
    asked = {"test": "digits", "seeds": 2, "against": ("random", "resampled", "resampled:fixed=0.5")}
    events: list[Any] = []
    table = ur.evaluate(finished, **asked, on_event=events.append)
    coreset, _, anew, half = table.arms
    assert anew.samples == half.samples == coreset.samples == 200
    labels = open_source(source_ref(finished.config.source)).info.labels_N
    counts, kept = np.bincount(labels), finished.coreset
    fixed = np.bincount(labels[kept.first(100, 0)], minlength=10)
    assert anew.class_samples == pytest.approx(counts / 2)
    assert half.class_samples == pytest.approx(fixed + (counts - fixed) * 100 / 300)
    assert (anew.choosing_s, half.choosing_s) == (0.0, coreset.choosing_s)
    assert len({*anew.accuracies, *half.accuracies}) > 2
    assert math.isnan(half.std_trainings)
    passes = {event.task: event.passes for event in events if isinstance(event, Progress) and event.done}
    assert passes["resampled seed 0"] == passes["resampled:fixed=0.5 seed 1"] == 3 * 64
    assert ur.evaluate(finished, **asked).to_json() == table.to_json()  # seconds and all: nothing was done again


def test_resampled_arms_never_draw_a_suspect(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden" / "short"
    run = ur.load(shutil.copytree(golden, tmp_path / "run"))
    drawable = drawable_ids(run.run, run.coreset.ids)
    assert len(run.coreset) < len(drawable) < run.scores.num_rows
    chosen = _chosen_arms(run, run.config, ("resampled", "resampled:fixed=0.25"), 1, None)
    assert chosen["resampled"].seconds == chosen["coreset"].seconds != 0  # to know the suspects took scores
    (train,), (draw,) = chosen["resampled:fixed=0.25"].subsets, chosen["resampled:fixed=0.25"].draws
    assert train.tolist() == drawable.tolist()
    assert draw.fixed_ids.tolist() == run.coreset.first(round(0.25 * len(run.coreset)), 3).tolist()


def test_an_arm_of_draws_is_another_training_for_every_seed_and_share(finished: ur.PruneResult) -> None:
    info = open_source(source_ref(finished.config.source)).info
    job = make_job(ResolvedRun.of(finished.config, 8), info)
    population = job.population(info.labels_N)
    chosen = _chosen_arms(finished, finished.config, ("resampled", "resampled:fixed=0.3"), 1, None)
    tasks = eval_tasks(chosen, ["resampled", "resampled:fixed=0.3", "full"], population, 2, 0)
    keys = {task.name: job.fit_key(task, population) for task in tasks}
    assert len(set(keys.values())) == len(keys) == 6


def test_no_two_trainings_of_an_arm_of_draws_start_alike(finished: ur.PruneResult) -> None:
    population = make_population(open_source(source_ref(finished.config.source)).info.labels_N, 10)
    once = _chosen_arms(finished, finished.config, ("resampled",), 1, None)["resampled"]
    twice = replace(once, subsets=once.subsets * 2, draws=once.draws * 2)
    tasks = eval_tasks({"resampled": twice}, ["resampled"], population, 3, 0)
    seeds = [fit_seed(0, digest_ids(task.train.resolve(population)), task.repeat) for task in tasks]
    assert len(set(seeds)) == len(seeds) == 6
    named = {task.name: task.repeat for task in tasks}
    more = {task.name: task.repeat for task in eval_tasks({"resampled": twice}, ["resampled"], population, 4, 0)}
    assert named.items() < more.items()  # further seeds leave what was trained as it is


def test_iterations_give_every_arm_the_steps_of_everything(finished: ur.PruneResult) -> None:
    epochs = ur.evaluate(finished, test="digits", seeds=1, against=("full",))
    iterations = ur.evaluate(finished, test="digits", seeds=1, against=("full",), budget="iterations")
    assert (epochs.budget, iterations.budget) == ("epochs", "iterations")
    assert (epochs.recipe["epochs"], epochs.recipe["steps"]) == (1, None)
    assert (iterations.recipe["epochs"], iterations.recipe["steps"]) == (None, 400 // 64)
    assert iterations.arms[0].accuracies != epochs.arms[0].accuracies
    assert iterations.arms[1].accuracies == epochs.arms[1].accuracies  # full has these steps already
    assert iterations.break_even is None  # as many steps each: nothing is saved
    kept = json.loads(Path(finished.path, "evaluation.json").read_text())["tables"]
    assert [table["budget"] for table in kept[:2]] == ["iterations", "epochs"]


def test_small_sets_get_no_more_epochs_than_everything(finished: ur.PruneResult) -> None:
    longer = {"use": "quick", "epochs": 1, "min_steps": 10}
    table = ur.evaluate(finished, test="digits", seeds=1, against=("full",), recipe=longer)
    assert (table.recipe["epochs"], table.recipe["min_steps"]) == (2, 0)


def test_an_interrupted_evaluation_keeps_its_results_and_the_tables_before(tmp_path: Path) -> None:
    source = {"use": "digits", "limit": 200}
    result = ur.prune(ur.PruneConfig(source=source, keep=0.5, out=tmp_path, folds=2, recipe=FAST, executor="local"))
    first = ur.evaluate(result, test="digits", seeds=1, against=())
    done: list[str] = []

    def interrupt(event: object) -> None:
        if isinstance(event, EvalResult):
            done.append(event.task)
            if len(done) == 2:
                raise KeyboardInterrupt

    asked = {"test": "digits", "seeds": 2, "against": ("full",)}
    with pytest.raises(KeyboardInterrupt):
        ur.evaluate(result, **asked, on_event=interrupt)
    assert done == ["coreset seed 1", "full seed 0"]  # the first was measured before
    assert stored_tables(result.run.folder) == [first.to_json()]
    again: list[str] = []
    ur.evaluate(result, **asked, on_event=lambda event: again.append(getattr(event, "task", "")))
    assert set(again) == {"full seed 1"}


def test_a_test_set_that_is_the_source_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = ur.prune(ur.PruneConfig(source="digits", keep=0.5, out=tmp_path, folds=2, recipe=FAST, executor="local"))
    table = ur.evaluate(result, test="digits", seeds=1, against=())
    assert table.test == "digits (the very data that is pruned)"
    assert "test digits is the data that you prune" in caplog.text


def test_the_files_of_the_source_are_no_test_set_either(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = np.arange(10) % 2
    path = write_parquet(tmp_path / "a.parquet", labels, [b"P6\n1 1\n255\n" + bytes([n, 0, 0]) for n in range(10)])
    some, every = (open_source(source_ref({"path": str(path), "limit": limit})).info for limit in (5, None))
    check_test_set(every, some)
    assert "is the data that you prune" in caplog.text


@pytest.mark.parametrize("names", [("cat", "wolf"), ("cat", "dog", "eel", "fox")])
def test_a_test_set_must_have_the_classes_of_the_source(tmp_path: Path, names: tuple[str, ...]) -> None:
    for folder, classes in (("train", ("cat", "dog", "eel")), ("test", names)):
        labels = np.arange(30) % len(classes)
        images = [{"bytes": png_bytes(pixels), "path": None} for pixels in class_pixels(labels, 8)]
        table = pa.table({"image": images, "label": labels})
        named = table.replace_schema_metadata({b"class_names": json.dumps(classes).encode()})
        pq.write_table(named, tmp_path / f"{folder}.parquet")
    fields = {"keep": 0.5, "folds": 2, "recipe": FAST, "executor": "local", "out": tmp_path / "run"}
    with pytest.raises(ur.DataError, match=r"has 'wolf', unlike|has 'fox', unlike"):
        ur.prune(ur.PruneConfig(source=str(tmp_path / "train.parquet"), test=str(tmp_path / "test.parquet"), **fields))
    assert not (tmp_path / "run").exists()


def test_the_test_split_is_what_a_test_source_means() -> None:
    assert source_ref("cifar10", field="test").options == {"split": "test"}
    assert source_ref({"use": "imagenet", "root": "x"}, field="test").options == {"split": "val", "root": "x"}
    assert source_ref({"use": "cifar100", "split": "train"}, field="test").options == {"split": "train"}
    assert source_ref("cifar10").options == {}


def test_another_selection_is_another_prune_and_is_kept(finished: ur.PruneResult) -> None:
    asked = {"test": "digits", "seeds": 2, "selections": 2, "against": ("random", "full", "fitting")}
    table = ur.evaluate(finished, **asked)
    coreset, random, full, fitting = table.arms
    assert [len(line.accuracies) for line in (coreset, random, full, fitting)] == [4, 4, 4, 4]
    assert len(set(full.accuracies)) > 1
    again = ur.load(Path(finished.path, "selections", "01"))
    assert (again.config.seed, again.config.folds) == (1, 2)
    assert again.coreset.ids.tolist() != finished.coreset.ids.tolist()
    assert Path(finished.path, "selections", "01", "fitting", "coreset.parquet").exists()
    assert ur.evaluate(finished, **asked).to_json() == table.to_json()  # seconds and all: nothing was done again


def test_a_choice_made_again_costs_what_its_votes_did(finished: ur.PruneResult, tmp_path: Path) -> None:
    chosen = ur.select(finished, keep=0.3, out=tmp_path / "chosen")
    again = ur.select(chosen, keep=0.2, out=tmp_path / "again")
    for result in (chosen, again):
        table = ur.evaluate(result, test="digits", seeds=1, against=("full",))
        assert table.arms[0].choosing_s == finished.manifest.cost["fit_seconds"]
        assert table.break_even is not None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"against": ("randm",)}, "'randm' is not a baseline. Allowed: random, random_matched, full, fitting"),
        ({"against": ("full", "full")}, "names 'full' more than once"),
        ({"against": ("resampled", "resampled:fixed=0")}, "names 'resampled' more than once"),
        ({"against": ("resampled:fixed=0.50", "resampled:fixed=.5")}, r"names 'resampled:fixed=0\.5' more than once"),
        (
            {"against": ("resampled:0.5",)},
            r"'resampled:0\.5' is not a baseline.*, and resampled:fixed=SHARE with a share of 0 or more",
        ),
        ({"against": ("resampled:fixed=1",)}, r"'resampled:fixed=1' is not a baseline"),
        ({"selections": 0}, "selections=0 must be 1 or more"),
        ({"budget": "steps"}, "budget='steps' is not allowed: it must be epochs, iterations or both"),
    ],
)
def test_what_cannot_be_measured_is_refused(finished: ur.PruneResult, asked: dict[str, object], message: str) -> None:
    with pytest.raises(ur.ConfigError, match=message):
        ur.evaluate(finished, test="digits", **asked)


def test_several_selections_need_a_test_set_that_no_seed_moves(tmp_path: Path) -> None:
    config = ur.PruneConfig(
        source={"use": "digits", "limit": 200},
        keep=0.5,
        holdout=0.2,
        folds=2,
        recipe=FAST,
        executor="local",
        out=tmp_path,
    )
    with pytest.raises(ur.ConfigError, match=r"determines the samples of holdout=0\.2"):
        ur.evaluate(ur.prune(config), selections=2)


def test_functions_that_only_a_folder_names_are_not_imported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    named = {"policy": "tests.plugs:lowest", "score": "tests.plugs:gini"}
    source = {"use": "tests.plugs:rows", "count": 80}
    result = ur.prune(
        ur.PruneConfig(
            source=source, keep=0.5, folds=2, holdout=0.25, recipe=FAST, executor="local", out=tmp_path, **named
        )
    )
    asked = {"seeds": 1, "against": ("fitting",)}
    with pytest.raises(ur.ConfigError) as refused:
        ur.evaluate(tmp_path, **asked)
    flags = "--source tests.plugs:rows --score tests.plugs:gini --policy tests.plugs:lowest"
    assert f"Name them yourself: {flags}." in str(refused.value)
    with pytest.raises(ur.ConfigError, match=r"policy='top' differs from the run's 'tests.plugs:lowest'"):
        ur.evaluate(tmp_path, **asked, source=source, policy="top")
    with caplog.at_level("INFO", logger="unseen_ray"):
        table = ur.evaluate(tmp_path, **asked, source=source, **named)
    assert "importing tests.plugs:rows for source" in caplog.text
    assert [arm.name for arm in table.arms] == ["coreset", "fitting"]
    assert ur.evaluate(result, **asked).to_json() == table.to_json()  # this process was given the functions
    assert len(ur.evaluate(tmp_path, seeds=1, against=(), source=source).arms) == 1  # no baseline is pruned
