"""Mistakes that were seen in other code for pruning data, each with a test that ours does not make it, here or elsewhere:

| seen elsewhere | tested in |
|---|---|
| a learning rate that overshoots at the start and ends high | tests/training/test_recipes.py::test_cosine_warms_up_peaks_and_ends_low |
| the size of the last class taken for that of every class | tests/core/test_select.py::test_class_balanced_shares_by_hand |
| strata whose last edge is max * 1.0001: samples lost where max <= 0, none of constant scores |
  tests/core/test_golden_policies.py::test_a_policy_keeps_what_its_formula_keeps |
| quantile strata that tie: more or fewer kept than asked for | tests/core/test_select.py::test_exact_budget_without_repeats |
| ties broken by index | tests/core/test_select.py::test_equal_scores_favour_no_ids |
| ranks passed as scores | tests/test_score_probs.py::test_files_that_are_not_what_they_should_be |
| labels that must not be a list | tests/data/sources/test_custom.py::test_labels_may_be_any_integers |
| the furthest sample taken for the nearest |
  tests/core/test_policy_orientation.py::test_moderate_takes_neither_the_surest_nor_the_hardest |
| gradients of a batch's mean loss: samples of a short last batch look harder |
  tests/training/test_recorder.py::test_grand_does_not_depend_on_the_batch |
| an accumulator reset within the loop, a window's index unused, the log of a logit |
  tests/core/test_dynamics.py::test_equals_the_formula |
| what was never learned counts as never forgotten | tests/core/test_dynamics.py::test_variants_of_well_known_code |
| the whole trajectory in memory | tests/core/test_dynamics.py::test_memory_does_not_grow_with_the_epochs |
| features of several models compared in one space |
  tests/distributed/test_features.py::test_one_model_describes_every_sample |
| a matrix of all distances | tests/core/test_diversity.py::test_memory_is_bounded |

What does not apply: herding.
"""

from __future__ import annotations

import ast
import itertools
import random
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

import unseen_ray as ur
from tests.training import fitting
from unseen_ray.config.recipe import Recipe
from unseen_ray.core import guard as guards
from unseen_ray.core import select
from unseen_ray.core.seeds import rng_for
from unseen_ray.plugins import offered
from unseen_ray.training.loop.batches import WorkerShare

ROOT = Path(__file__).parents[1]
COUNT, CLASSES = 120, 4
SHORT = {"epochs": 1, "min_steps": 0}
DIGITS: dict[str, Any] = {
    "source": {"use": "digits", "limit": 200},
    "keep": 0.5,
    "folds": 2,
    "recipe": SHORT,
    "executor": "local",
    "log_to": "none",
}
LABELS = np.random.default_rng(9).choice(CLASSES, COUNT, p=[0.5, 0.25, 0.15, 0.1])


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models' probabilities, scored."""
    folder = tmp_path_factory.mktemp("scored")
    np.save(folder / "labels.npy", LABELS)
    for seed in range(2):
        logits = np.random.default_rng(seed).normal(size=(COUNT, CLASSES)) + 2 * np.eye(CLASSES)[LABELS]
        np.save(folder / f"{seed}.npy", np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    ur.score([folder / "0.npy", folder / "1.npy"], folder / "labels.npy", out=folder / "run")
    return folder / "run"


def columns_of(result: ur.PruneResult, score: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) scores, and (N,) bool which samples were kept."""
    kept = np.isin(result.scores.column("id").to_numpy(), result.coreset.ids)
    return result.scores.column(score).to_numpy(), kept


def test_every_test_that_the_table_names_is_there() -> None:
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", __doc__ or "")
    assert len(named) == (__doc__ or "").count("::") == 14
    for path, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"


@pytest.mark.parametrize("policy", ["top", "class_balanced", "class_floor", "class_quota"])
def test_no_option_turns_the_direction_of_a_score(scored: Path, tmp_path: Path, policy: str) -> None:
    """Seen in other code: with the option for balanced classes the lowest scores were kept, without it the highest."""
    options = itertools.product(("entropy", "loss"), ("mean", "rank_mean", "mean_prob"), ("none", "label_margin"))
    for number, (score, combine, guard) in enumerate(options):
        fields: dict[str, Any] = {"policy": policy, "score": score, "combine": combine, "guard": guard}
        result = ur.select(scored, keep=0.4, **fields, out=tmp_path / str(number))
        values, kept = columns_of(result, score)
        suspects = result.scores.column("suspect").to_numpy() if guard != "none" else np.zeros(COUNT, bool)
        for label in range(CLASSES):
            mine, others = (values[(label == LABELS) & which & ~suspects] for which in (kept, ~kept))
            assert not len(mine) or not len(others) or mine.min() >= others.max(), (fields, label)


def test_repeats_are_of_different_seeds(tmp_path: Path) -> None:
    """Seen in other code: each of several experiments got the same seed, so that five of them were one."""
    run = ur.prune(ur.PruneConfig(**DIGITS, repeats=3, holdout=0.25, out=tmp_path / "run"))
    votes: dict[bytes, list[bytes]] = {}
    for path in sorted((tmp_path / "run" / "stage-00" / "votes").glob("*.parquet")):
        table = pq.read_table(path)
        votes.setdefault(table.column("id").to_numpy().tobytes(), []).append(
            table.column("p_label").to_numpy().tobytes()
        )
    assert [len(its) for its in votes.values()] == [len(set(its)) for its in votes.values()] == [3, 3]
    table = ur.evaluate(run, seeds=4, against=("random", "full"))
    assert all(len(set(arm.accuracies)) > 1 for arm in table.arms)


def test_what_is_trained_on_is_prepared_as_what_is_scored() -> None:
    """Seen in other code: inputs were normalised in training and not when they were scored."""
    recipe = fitting.recipe(1, augment="none")
    _, feed, plan, _ = fitting.prepare(None, recipe, fitting.CPU)
    batches = feed.epoch(plan.ids_M, plan.labels_M, recipe, shape=(12, 50), rng=rng_for(0), shard=WorkerShare())
    trained = torch.cat([inputs for inputs, _ in batches])
    found = torch.cat([inputs for _, inputs in feed.scoring(plan.ids_M, 128)])
    assert sorted(map(bytes, trained.contiguous().numpy())) == sorted(map(bytes, found.contiguous().numpy()))
    assert abs(float(found.mean())) < 0.01 and float(found.std()) == pytest.approx(1, abs=0.01)


def test_ids_labels_keys_scores_and_suspects_stay_in_one_order(scored: Path, tmp_path: Path) -> None:
    """Seen in other code: noisy samples were filtered out of the scores, and not out of the labels beside them."""
    guard = {"use": "label_margin", "cut": 0.3}
    result = ur.select(scored, keep=0.5, score="loss", policy="class_balanced", guard=guard, out=tmp_path / "run")
    rows = pq.read_table(tmp_path / "run" / "coreset.parquet").to_pydict()
    values, kept = columns_of(result, "loss")
    assert rows["label"] == LABELS[rows["id"]].tolist()
    assert rows["key"] == [f"labels.npy:{number}" for number in rows["id"]]
    assert rows["score"] == values[rows["id"]].tolist()
    margins, suspects = (result.scores.column(name).to_numpy() for name in ("label_margin", "suspect"))
    assert margins[suspects].min() > margins[~suspects].max()
    assert suspects.sum() == round(0.3 * COUNT) and not (suspects & kept).any()


def test_keep_says_what_is_kept_and_an_export_holds_that(scored: Path, tmp_path: Path) -> None:
    """Seen in other code: `rate` was what is kept here and what is pruned there, and ids to drop were taken for ids to keep."""
    result = ur.select(scored, keep=0.2, policy="top", out=tmp_path / "run")
    values, kept = columns_of(result, "entropy")
    assert kept.sum() == round(0.2 * COUNT) and values[kept].min() >= values[~kept].max()
    assert ur.export(result, tmp_path / "kept.npy") == kept.sum()
    assert np.load(tmp_path / "kept.npy").tolist() == np.flatnonzero(kept).tolist()
    assert [name for name in ur.PruneConfig.model_fields if re.search("rate|ratio|prun|drop|subset", name)] == []


def test_nothing_depends_on_global_generators_nor_changes_them(tmp_path: Path) -> None:
    """Seen in other code: draws came from a generator that nobody seeded, or that every run seeded alike."""
    kept = []
    for name, state, seed in (("one", 1, 0), ("two", 2, 0), ("other", 1, 1)):
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        before = random.getstate(), *map(str, np.random.get_state()[1])
        config = ur.PruneConfig(**DIGITS, policy="ccs", seed=seed, out=tmp_path / name)
        kept.append(ur.prune(config).coreset.ids.tolist())
        assert (random.getstate(), *map(str, np.random.get_state()[1])) == before
    assert kept[0] == kept[1] != kept[2]


@pytest.mark.parametrize("fields", [{"steps": 1}, {"steps": 4}, {"epochs": 1, "batch_size": 600}])
def test_a_training_may_be_shorter_than_an_epoch(fields: dict[str, Any]) -> None:
    """Seen in other code: how often to measure was a whole number of epochs, which became 0 where epochs were long."""
    _, stats = fitting.train(None, Recipe(**{"epochs": None, "min_steps": 0, "precision": "float32", **fields}))
    assert len(stats) == 1 and np.isfinite(stats[0].loss)


def test_a_small_training_of_a_very_large_set_can_be_planned() -> None:
    assert Recipe(epochs=None, steps=300_000, batch_size=256).plan(10**10) == (256, 300_000)


PASSES: list[tuple[str, int]] = []


class Noting(nn.Module):
    """Notes every pass, in training or not."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        PASSES.append(("trained" if self.training else "measured", len(inputs)))
        answer: Tensor = self.body(inputs)
        return answer


def test_the_test_set_is_looked_at_once_after_the_last_epoch(tmp_path: Path) -> None:
    """Seen in other code: the test set was measured every epoch, and the best of these was reported."""
    fields = {**DIGITS, "recipe": {"epochs": 4, "min_steps": 0}, "model": Noting}
    run = ur.prune(ur.PruneConfig(**fields, holdout=0.25, out=tmp_path / "run"))
    PASSES.clear()
    table = ur.evaluate(run, seeds=2, against=("full",))
    phases = [(kind, [size for _, size in its]) for kind, its in itertools.groupby(PASSES, key=lambda one: one[0])]
    assert [kind for kind, _ in phases] == ["trained", "measured"] * 4
    assert [sum(sizes) for kind, sizes in phases if kind == "measured"] == [table.test_samples] * 4


def names_read(paths: list[Path], owner: str) -> set[str]:
    """Attributes that code reads of what it calls `owner`."""
    reads = (
        node
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    )
    named = ((getattr(read.value, "attr", getattr(read.value, "id", "")), read.attr) for read in reads)
    return {attribute for name, attribute in named if name.lstrip("_") == owner}


def test_every_field_is_read_by_code_that_works_with_it() -> None:
    """Seen in other code: options on the command line that nothing looked at."""
    package = ROOT / "unseen_ray"
    declares = {package / "config" / name for name in ("run.py", "checks.py", "recipe.py", "named_recipes.py")}
    working = [path for path in package.rglob("*.py") if path not in declares | {package / "cli" / "flags.py"}]
    of_run = names_read(working, "config") | names_read([package / "config" / "run.py"], "self")
    of_recipe = names_read(working, "recipe") | names_read([package / "config" / "recipe.py"], "self")
    assert set(ur.PruneConfig.model_fields) - of_run == set()
    assert set(Recipe.model_fields) - of_recipe == set()
    assert "recipe" in of_run and "no_such_field" not in of_run


@pytest.mark.parametrize("name", [*select.__all__, *guards.__all__])
def test_memory_grows_as_the_samples_do(name: str) -> None:
    """Seen in other code: matrices of all pairs of samples, or of the budget and all samples: 20 GB for 50,000 images."""
    count, rng = 20_000, np.random.default_rng(0)
    scores, labels, ids = rng.random(count).astype(np.float32), rng.integers(0, 10, count), np.arange(count)
    probs = rng.dirichlet(np.ones(10), count).astype(np.float32)
    given = {
        "scores_M": scores,
        "labels_M": labels,
        "ids_M": ids,
        "budget": count // 4,
        "kept_C": np.zeros(10, np.int64),
    }
    given |= {"seed": 0, "p_label_M": scores, "label_margin_M": scores, "aum_M": scores, "probs_MC": probs}
    given |= {"pred_M": labels, "features_MD": rng.normal(size=(count, 16)).astype(np.float16)}
    function = getattr(select if name in select.__all__ else guards, name)
    tracemalloc.start()
    try:
        function(**offered(function, given))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    blocks = 100e6 if name in ("d2", "k_center", "window") else 0  # of distances, whatever the number of samples
    assert peak < 1000 * count + blocks


def test_a_run_writes_where_it_is_told_to_under_names_that_every_system_takes(tmp_path: Path) -> None:
    """Seen in other code: paths of one machine, names with colons, and a tracking service that had to be there."""
    told, beside = tmp_path / "told", tmp_path / "beside"
    beside.mkdir()
    code = (
        "import sys, unseen_ray as ur\n"
        f"run = ur.prune(ur.PruneConfig(**{ {**DIGITS, 'log_to': None, 'holdout': 0.25, 'out': str(told)}!r}))\n"
        "ur.evaluate(run, seeds=1, against=('random',)), ur.report(run)\n"
        "print(sorted({'wandb', 'mlflow', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=beside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert list(beside.iterdir()) == []
    names = [part for path in told.rglob("*") for part in path.relative_to(told).parts]
    assert len(names) > 10
    assert [name for name in names if not re.fullmatch(r"[\w.,=-]*[\w=-]", name)] == []
