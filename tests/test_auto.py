"""`policy: auto` with trials: trainings decide between candidates and random, and are paid for as planned."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unseen_ray as ur
from unseen_ray.cli.summary.evaluation import evaluation_lines
from unseen_ray.cli.summary.run import prune_lines, prune_values
from unseen_ray.config.limits import Limits
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.core.policies.auto import use_by_rule
from unseen_ray.data.sources.digits import DigitsSource
from unseen_ray.errors import ConfigError, StorageError
from unseen_ray.pruning.trials.plan import chosen_policy, rounds_of
from unseen_ray.runs.manifest import read_manifest
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import EvalResult
from unseen_ray.storage.filesystem import Folder


class HalfMislabelled:
    """Digits of which every other one has a random label."""

    def __init__(self) -> None:
        digits = DigitsSource(limit=1000)
        self.keys = digits.keys(range(1000))
        wrong = np.random.default_rng(0).integers(0, 10, 1000)
        self.labels = np.where(np.arange(1000) % 2, wrong, digits.info.labels_N)
        self._images = dict(digits.read(range(1000)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> np.ndarray:
        return np.asarray(self._images[place])


def mislabelled() -> HalfMislabelled:
    return HalfMislabelled()


def used(sizes_C: np.ndarray, right: int, budget: int, kept_C: np.ndarray) -> str:
    return use_by_rule(sizes_C, right, budget, kept_C).policy


def useful_rows(scores_M, labels_M, ids_M, budget, *, kept_C, seed):  # type: ignore[no-untyped-def]
    """Keeps rows with right labels, in an order that differs with the seed."""
    keys = np.random.default_rng(seed).permutation(10_000)[ids_M]
    return np.lexsort((keys, ids_M % 2))[:budget]


def useless_rows(scores_M, labels_M, ids_M, budget, *, kept_C, seed):  # type: ignore[no-untyped-def]
    """Keeps rows with random labels."""
    return np.lexsort((ids_M, 1 - ids_M % 2))[:budget]


def last_labels(scores_M, labels_M, ids_M, budget, *, kept_C, seed):  # type: ignore[no-untyped-def]
    """Has the name of another policy."""
    return np.argsort(-labels_M, kind="stable")[:budget]


USEFUL, USELESS = "tests.test_auto:useful_rows", "tests.test_auto:useless_rows"
MANY = {"use": "unlikely_label", "many": 0.1}
FIELDS: dict[str, Any] = {
    "source": "tests.test_auto:mislabelled",
    "keep": 0.15,
    "recipe": {"epochs": 12, "min_steps": 0, "batch_size": 24},
    "scoring": {"share": 1},
    "executor": "local",
}


def auto(*candidates: Any, trials: float = 2) -> dict[str, Any]:
    return {"use": "auto", "trials": trials, "candidates": list(candidates)}


def prune(out: Path, policy: Any, on_event: Any = None, **fields: Any) -> ur.PruneResult:
    config = ur.PruneConfig(**{**FIELDS, **fields}, policy=policy, out=out)
    return ur.prune(config, on_event=on_event) if on_event else ur.prune(config)


def planned(policy: Any, **fields: Any) -> dict[str, Any]:
    return ur.plan_values(ur.PruneConfig(**{**FIELDS, **fields}, policy=policy))


@pytest.fixture(scope="module")
def better(tmp_path_factory: pytest.TempPathFactory) -> ur.PruneResult:
    return prune(tmp_path_factory.mktemp("better"), auto(USELESS, "top", USEFUL))


def test_numbers_without_a_sample_are_no_classes() -> None:
    gaps = np.zeros(1000, np.int64)
    gaps[::100] = 1000  # ten of ImageNet's classes, under their numbers there
    assert (
        used(gaps, 9500, 7000, np.zeros(1000, np.int64))
        == used(gaps[::100], 9500, 7000, np.zeros(10, np.int64))
        == "top"
    )


def test_rounds_halve_and_the_last_one_is_fresh() -> None:
    assert rounds_of(5) == ((5, 1), (2, 2), (1, 4))
    assert rounds_of(1) == ((1, 4),)
    assert rounds_of(12) == ((12, 1), (4, 2), (2, 4), (1, 4))


def test_a_candidate_that_is_better_than_random_is_used(better: ur.PruneResult, tmp_path: Path) -> None:
    stage = better.manifest.stages[0]
    assert stage.policy == USEFUL
    useless, top, useful = (trial.to_json() for trial in stage.trials)
    assert [useless["policy"], top["policy"], useful["policy"]] == [USELESS, "top", USEFUL]
    assert (useless["seeds"], top["seeds"], useful["seeds"]) == (1, 1, 5)
    assert useless["gain"] < 0 < useful["final_low"] < useful["final_gain"]
    assert "final_low" not in useless
    assert better.coreset.ids.tolist() == prune(tmp_path, USEFUL, guard=MANY).coreset.ids.tolist()


@pytest.mark.slow
def test_random_is_used_where_no_candidate_is_better(tmp_path: Path) -> None:
    result = prune(tmp_path / "auto", auto(USELESS))
    assert result.manifest.stages[0].policy == "random"
    assert result.manifest.stages[0].trials[0].final_low < 0
    assert result.coreset.ids.tolist() == prune(tmp_path / "random", "random").coreset.ids.tolist()


def test_the_bill_counts_the_trials_and_they_stay_within_their_price(better: ur.PruneResult) -> None:
    without, with_trials = (planned(policy)["bill"] for policy in ("top", auto(USELESS, "top", USEFUL)))
    assert 1.5 < with_trials - without <= 2
    assert better.manifest.cost.bill == pytest.approx(with_trials, abs=1e-4)
    (stage,) = planned(auto(USELESS, "top", USEFUL))["stages"]
    assert stage["tasks"][-1]["models"] == (3 + 1) * 1 + (1 + 1) * 4
    trained = sum(receipt.worker_seconds for receipt in better.manifest.stages[0].tasks)
    assert better.manifest.stages[0].fit_seconds > trained
    assert better.manifest.cost.fit_seconds == better.manifest.stages[0].fit_seconds


@pytest.mark.parametrize("stop_after", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 11)), 5])
def test_an_interrupted_trial_is_resumed_and_decides_the_same(
    tmp_path: Path, better: ur.PruneResult, stop_after: int
) -> None:
    done: list[EvalResult] = []

    def observe(event: object) -> None:
        if isinstance(event, EvalResult):
            done.append(event)
            if len(done) == stop_after:
                raise KeyboardInterrupt

    policy = auto(USELESS, "top", USEFUL)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, policy, observe)
    result = prune(tmp_path, policy, observe)
    assert len(done) == 12
    assert result.manifest.stages[0].trials == better.manifest.stages[0].trials
    assert result.coreset.ids.tolist() == better.coreset.ids.tolist()


@pytest.mark.slow
def test_a_later_stage_of_a_resumed_run_uses_what_was_decided(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"keep": 0.18, "schedule": [0.15, 0.18]}
    policy = auto(USEFUL)
    whole = prune(tmp_path / "whole", policy, **fields)
    assert (whole.coreset.ids % 2 == 0).all()

    def stop(event: object) -> None:
        if isinstance(event, Receipt) and event.task.startswith("stage 1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path / "parts", policy, stop, **fields)
    folder = Folder(str(tmp_path / "parts"))
    manifest = read_manifest(folder)
    assert manifest is not None and manifest.stages[0].policy == USEFUL
    assert prune(tmp_path / "parts", policy, **fields).coreset.ids.tolist() == whole.coreset.ids.tolist()


def test_the_report_says_what_was_used(better: ur.PruneResult) -> None:
    values = ur.report_values(better)
    assert values["policy"] == "auto: useful_rows"
    assert [trial["seeds"] for trial in values["stages"][0]["trials"]] == [1, 1, 5]
    page = Path(ur.report(better)).read_text()
    assert "<td>useless_rows</td><td>1</td><td>-" in page
    assert "<td>useful_rows</td><td>5</td><td>+" in page


@pytest.mark.slow
def test_wrong_labels_are_left_out_where_they_are_many(tmp_path: Path) -> None:
    """Half of the labels are random here, and few of digits' own are suspected."""
    recipe = {"epochs": 30, "min_steps": 0, "batch_size": 24}
    noisy = prune(tmp_path / "noisy", "auto", keep=0.4, recipe=recipe)
    plain = prune(tmp_path / "plain", {"use": "auto", "guard": False}, keep=0.4, recipe=recipe, reuse=noisy.path)
    wrong = {name: (run.coreset.ids % 2).mean() for name, run in (("noisy", noisy), ("plain", plain))}
    assert wrong["noisy"] < 0.7 * wrong["plain"]
    suspects = noisy.manifest.stages[0].suspects
    assert suspects is not None and suspects > 200
    assert noisy.manifest.policy_label == "auto: random" and not noisy.manifest.is_random  # without its suspects
    assert plain.manifest.stages[0].suspects is None
    asked = prune(tmp_path / "asked", "random", keep=0.4, recipe=recipe, guard=MANY, reuse=noisy.path)
    assert asked.coreset.ids.tolist() == noisy.coreset.ids.tolist()
    again = ur.select(plain, keep=0.4, policy="auto", out=str(tmp_path / "select"))
    assert again.coreset.ids.tolist() == noisy.coreset.ids.tolist()
    clean = prune(tmp_path / "clean", "auto", keep=0.4, source={"use": "digits", "limit": 1000}, recipe=recipe)
    assert clean.manifest.stages[0].suspects is None and "suspect" not in clean.scores.column_names


def test_a_guard_comes_with_the_default_unless_none_is_asked_for() -> None:
    fields: dict[str, Any] = {"source": "digits", "keep": 0.5}
    assert ResolvedRun(ur.PruneConfig(**fields)).guard_value == MANY
    none = ur.PruneConfig(**fields, guard="none")
    assert none.policy == {"use": "auto", "guard": False} and ResolvedRun(none).guard_value == "none"
    assert ur.PruneConfig.from_json(none.to_json()).policy == none.policy
    assert ResolvedRun(ur.PruneConfig.from_json(ur.PruneConfig(**fields).to_json())).guard_value == MANY


def test_the_default_follows_the_mode() -> None:
    fitting = ur.PruneConfig(source="digits", keep=0.5, mode="fitting")
    assert fitting.policy == "top" and fitting.changed(mode="unseen").policy == "auto"
    named = ur.PruneConfig(source="digits", keep=0.5, policy="top")
    assert named.changed(mode="fitting").policy == named.changed(keep=0.4).policy == "top"
    assert ur.PruneConfig(source="digits", keep=0.5).changed(mode="fitting").policy == "top"


@pytest.mark.parametrize("total", range(1000, 1010))
def test_the_rule_takes_whole_numbers_for_the_share_that_was_asked_for(total: int) -> None:
    none, sizes = np.zeros(10, np.int64), np.bincount(np.arange(total) % 10)
    assert used(sizes, round(0.8 * total), round(0.75 * total), none) == "top"
    assert used(sizes, round(0.5 * total), round(0.6 * total), none) == "mix"
    assert used(sizes, round(0.5 * total), round(0.5 * total), none) == "random"
    assert used(sizes, round(0.8 * total), round(0.5 * total), none) == "ccs"


def test_the_rule_draws_at_random_where_few_are_kept_of_a_class() -> None:
    none, sizes = np.zeros(10, np.int64), np.full(10, 100)
    assert used(sizes, 970, 250, none) == "ccs"
    assert used(sizes, 970, 249, none) == "random"
    assert used(sizes - 10, 873, 150, none + 10) == "ccs"  # what earlier stages kept counts


def test_the_rule_draws_at_random_where_models_have_learned_nothing() -> None:
    none, even, uneven = np.zeros(10, np.int64), np.full(10, 400), np.array([1300, *[300] * 9])
    assert used(even, round(0.18 * 4000), 2800, none) == "random"  # always the largest class: 0.1
    assert used(even, round(0.2 * 4000), 2800, none) == "mix"
    assert used(uneven, round(0.39 * 4000), 2800, none) == "random"  # always the largest class: 0.325
    assert used(uneven, round(0.41 * 4000), 2800, none) == "mix"


def test_the_rule_keeps_the_hardest_of_classes_of_unlike_size() -> None:
    none, sizes = np.zeros(10, np.int64), np.array([1000, 800, 600, 500, 400, 300, 200, 100, 90, 80])
    total = int(sizes.sum())
    for keep, right, expected in ((0.3, 0.5, "top"), (0.7, 0.7, "top"), (0.29, 0.7, "random"), (0.7, 0.49, "mix")):
        assert used(sizes, round(right * total), round(keep * total), none) == expected
    sizes[-3] += 1
    assert used(sizes, round(0.6 * total), round(0.5 * total), none) == "random"
    for strays in (0, 1):  # neither an absent class nor one of a single sample makes a long tail
        even = np.append(np.full(10, 400), strays)
        assert used(even, 2400, 2000, np.zeros(11, np.int64)) == "random"


@pytest.mark.parametrize(
    ("right", "budget", "policy", "reason"),
    [
        (
            500,
            2800,
            "random",
            "right on 12.5 % of the samples that they never saw, and always predicting the largest class is right on 10 %",
        ),
        (3900, 240, "random", "24 samples of a class are kept on average, fewer than 25"),
        (3900, 249, "random", "24.9 samples of a class are kept on average, fewer than 25"),
        (
            2999,
            2800,
            "mix",
            "right on 74.97 % of the samples that they never saw, less than 75 %, and 60 % or more are kept",
        ),
        (3900, 2800, "top", "right on 97.5 % of the samples that they never saw, and 40 % or more are kept"),
        (
            3900,
            800,
            "ccs",
            "right on 97.5 % of the samples that they never saw, and less than 40 % are kept",
        ),
        (
            2000,
            2800,
            "mix",
            "right on 50 % of the samples that they never saw, less than 75 %, and 60 % or more are kept",
        ),
        (
            2000,
            2000,
            "random",
            "right on 50 % of the samples that they never saw, less than 75 %, and less than 60 % are kept",
        ),
    ],
)
def test_the_rule_gives_its_reason(right: int, budget: int, policy: str, reason: str) -> None:
    choice = use_by_rule(np.full(10, 400), right, budget, np.zeros(10, np.int64))
    assert choice.policy == policy and choice.reason.endswith(reason)


def test_a_selection_says_what_it_used_and_is_evaluated_by_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    recipe = {"epochs": 2, "min_steps": 0}
    run = prune(tmp_path / "run", "auto", source={"use": "digits", "limit": 400}, holdout=0.25, recipe=recipe)
    again = ur.select(run, keep=0.5, out=tmp_path / "again")
    assert again.manifest.policy_used == "random" and ur.report_values(again)["policy"] == "auto: random"
    reason = "samples of a class are kept on average, fewer than 25"
    assert (
        reason in again.manifest.policy_reason
        and reason in repr(again)
        and reason in Path(ur.report(again)).read_text()
    )
    assert f"policy auto uses random: {again.manifest.policy_reason}" in caplog.text
    assert any(reason in line for line in prune_lines(prune_values(again)))
    asked = ur.select(again, keep=0.5, policy="top", out=tmp_path / "asked")
    assert asked.manifest.policy_reason == "" and "policy_reason" not in asked.manifest.model_dump()
    table = ur.evaluate(again, against=["fitting"], seeds=1)
    assert ur.load(tmp_path / "again" / "fitting").coreset.ids.tolist() == again.coreset.ids.tolist()
    assert any("fitting keeps the same samples" in line for line in evaluation_lines(table, is_random=True))
    assert "fitting keeps the same samples" in Path(ur.report(again)).read_text()
    assert again.manifest.is_random and "suspects" not in again.manifest.model_dump() and not asked.manifest.is_random
    guarded = ur.select(again, keep=0.5, policy="random", guard="label_margin", out=tmp_path / "guarded")
    assert guarded.manifest.policy_label == "random" and not guarded.manifest.is_random
    noisy = prune(tmp_path / "noisy", "auto", recipe={"epochs": 30, "min_steps": 0, "batch_size": 24})
    fewer = ur.select(noisy, keep=0.2, out=tmp_path / "fewer")
    assert noisy.manifest.suspected == fewer.manifest.suspected > 0 and fewer.manifest.policy_label == "auto: random"
    assert not fewer.manifest.is_random  # without its suspects
    caplog.set_level(logging.WARNING)
    for before in (noisy, fewer):
        ur.select(before, keep=0.3, policy="ccs", out=tmp_path / f"ccs{before.manifest.kind}")
        assert "suspected of wrong labels may be chosen: their guard came with policy auto" in caplog.text
        caplog.clear()
    ur.select(noisy, keep=0.3, policy="ccs", guard="none", out=tmp_path / "named")
    assert "suspected of wrong labels" not in caplog.text  # you said so


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "schedule"),
    [(FIELDS["source"], None), (FIELDS["source"], [0.2, 0.4]), ({"use": "digits", "limit": 1000}, None)],
)
def test_long_tables_leave_out_the_same(source: Any, schedule: Any, tmp_path: Path) -> None:
    """In ranges, where each counts its suspects and all together say whether they are many."""
    recipe = {"epochs": 30, "min_steps": 0, "batch_size": 24}
    config = ur.PruneConfig(
        **{**FIELDS, "recipe": recipe, "keep": 0.4, "source": source}, schedule=schedule, out=tmp_path / "short"
    )
    short = ur.prune(config)
    long = ur.prune(config.changed(out=tmp_path / "long"), limits=Limits(rows_in_memory=300, rows_of_a_part=256))
    assert len([name for name in long.manifest.files if name.startswith("stage-00/scores.parquet/")]) > 2
    assert long.coreset.ids.tolist() == short.coreset.ids.tolist()
    assert long.manifest.stages[0].suspects == short.manifest.stages[0].suspects
    assert long.manifest.policy_used == short.manifest.policy_used
    assert ("suspect" in long.scores.column_names) == (source == FIELDS["source"])
    assert long.scores.equals(short.scores)


@pytest.mark.slow
def test_the_rule_is_recorded_for_each_stage(tmp_path: Path) -> None:
    fields = {
        "keep": 0.95,
        "schedule": [0.35, 0.95],
        "source": {"use": "digits", "limit": 800},
        "recipe": {"epochs": 4},
    }
    result = prune(tmp_path / "auto", "auto", **fields)
    right = (result.scores.column("pred").to_numpy() == result.scores.column("label").to_numpy()).mean()
    assert right > 0.95
    assert [stage.policy for stage in result.manifest.stages] == ["ccs", "top"]
    assert ur.report_values(result)["policy"] == "auto: ccs, then top"
    assert ur.report_values(result)["policy_reason"].startswith("at first the scoring models are right on")
    assert result.manifest.changed(policy_reason="").policy_why == ""
    first = ur.select(result, keep=0.35, out=str(tmp_path / "select")).coreset.ids
    assert first.tolist() == result.coreset.ids[result.coreset.stages == 0].tolist()


def test_candidates_of_one_name_are_told_apart(tmp_path: Path) -> None:
    other = {"use": "tests.plugs:last_labels"}
    result = prune(tmp_path, auto(other, {"use": "tests.test_auto:last_labels"}, "random", trials=3))
    assert [trial.seeds for trial in result.manifest.stages[0].trials].count(1) == 2


@pytest.mark.slow
def test_later_stages_leave_the_same_labels_out(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "keep": 0.3,
        "schedule": [0.2, 0.3],
        "recipe": {"epochs": 30, "min_steps": 0, "batch_size": 24},
    }
    result = prune(tmp_path / "run", auto("ccs", trials=3), **fields)
    assert result.manifest.stages[0].policy == "ccs"
    suspects = {
        number
        for number, is_one in zip(*(result.scores.column(name).to_pylist() for name in ("id", "suspect")), strict=True)
        if is_one
    }
    assert suspects and not suspects & set(result.coreset.ids.tolist())


def test_evaluate_imports_no_candidate_that_only_the_folder_names(better: ur.PruneResult) -> None:
    with pytest.raises(
        ConfigError, match=r"policy is tests\.test_auto:useless_rows and tests.* Name them yourself: --source"
    ):
        ur.evaluate(better.path, against=["random"], selections=2)


@pytest.mark.slow
def test_the_fitting_baseline_chooses_by_the_policy_that_was_used(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "source": {"use": "digits", "limit": 1200},
        "holdout": 0.25,
        "recipe": {"epochs": 2},
        "keep": 0.3,
    }
    result = prune(tmp_path, "auto", **fields)
    ur.evaluate(result, against=["fitting"], seeds=1)
    assert ur.load(tmp_path / "fitting").config.policy == result.manifest.policy_used == "ccs"


def test_what_a_manifest_names_is_not_imported() -> None:
    config = ur.PruneConfig(**FIELDS, policy=auto("top", {"use": "ccs", "cut": 0.1}))
    # of what trials tried, and of what the rule names where `select` chooses again
    for policy in ({"use": "ccs", "cut": 0.1}, "top", "mix", "random"):
        assert chosen_policy(config, policy) == policy
    with pytest.raises(StorageError, match=r"policy auto used 'os:remove', which it cannot have"):
        chosen_policy(config, "os:remove")


@pytest.mark.slow
@pytest.mark.ray
def test_ray_decides_the_same(tmp_path: Path, better: ur.PruneResult) -> None:
    result = prune(tmp_path, auto(USELESS, "top", USEFUL), executor="ray")
    assert result.manifest.stages[0].trials == better.manifest.stages[0].trials
    assert result.coreset.ids.tolist() == better.coreset.ids.tolist()


def test_a_choice_made_again_goes_by_the_rule(
    tmp_path: Path, better: ur.PruneResult, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    again = ur.select(better, keep=0.15, out=str(tmp_path / "again"))
    assert "policy auto decides by its rule instead of by trials" in caplog.text
    assert again.config.policy == "auto", "as another seed of it is to choose, too"
    drawn = ur.select(better, keep=0.15, out=str(tmp_path / "drawn"), policy="random", guard=MANY)
    assert again.coreset.ids.tolist() == drawn.coreset.ids.tolist()


@pytest.mark.parametrize(
    ("policy", "fields", "message"),
    [
        (
            auto("top", trials=0.001),
            {},
            r"trials=0.001 of a training pays for less than one epoch of each of 8 trainings\. Give 0\.\d+ or",
        ),
        (auto("top", trials=-1), {}, r"policy option trials=-1 must be a number, 0 or more"),
        (auto("best"), {}, r"candidates='best' is not a policy"),
        (auto("k_center"), {}, r"candidates='k_center' is not a policy"),
        (auto("auto"), {}, r"candidates='auto' is not a policy"),
        (auto({"use": "ccs", "cut": 2}), {}, r"policy option cut=2 is not in \[0, 1\)"),
        (
            auto({"use": "moderate", "of": "distance"}),
            {"save_features": True},
            r"looks at features, and none are stored",
        ),
        ({"use": "auto", "candidates": ["top"]}, {}, r"candidates has no effect without trials"),
        ({"use": "auto", "guard": "none"}, {}, r"policy option guard='none' is neither true nor false"),
        ("auto", {"mode": "fitting"}, r"policy auto needs the accuracy on unseen samples.* Name another policy"),
        (
            auto("top"),
            {"source": {"use": "digits", "limit": 300}},
            r"would get 36 and be measured on 60; it needs 2 and 100",
        ),
        ({"use": "auto", "trials": 1, "candidates": []}, {}, r"candidates=\[\] must be a list of policies"),
        (
            auto("top"),
            {"fit": "tests.plugs:centroids"},
            r"trials cannot be used: fit trains by itself",
        ),
        (
            auto("top"),
            {"scoring": {"model": "tests.plugs:tiny_model"}},
            r"what scoring.model costs beside model is not known",
        ),
    ],
)
def test_what_trials_cannot_do_is_refused_before_anything_starts(
    tmp_path: Path, policy: Any, fields: dict[str, Any], message: str
) -> None:
    asked = {name: value for name, value in FIELDS.items() if name != "recipe" or "fit" not in fields}
    with pytest.raises(ConfigError, match=message):
        ur.prune(ur.PruneConfig(**{**asked, **fields}, policy=policy, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
