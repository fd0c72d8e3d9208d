"""Warnings about a finished choice: each where it holds, with its numbers, and none where it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from unseen_ray.config.run import PruneConfig
from unseen_ray.pruning.warnings import check_selection, suggest_weights, warn_of_beta
from unseen_ray.runs.manifest_entries import StageEntry
from unseen_ray.storage.filesystem import Folder
from unseen_ray.storage.tables import StoredTable, write_table

LABELS = np.arange(400) % 4
RIGHT = np.arange(400) >= 100


def table(p_label: np.ndarray | float = 0.5, **more: np.ndarray) -> pa.Table:
    preds = np.where(RIGHT, LABELS, (LABELS + 1) % 4)
    columns = {"id": np.arange(400), "label": LABELS, "pred": preds, "p_label": np.broadcast_to(p_label, 400)}
    return pa.table({**columns, "votes": np.full(400, 3), "entropy": np.linspace(1, 0, 400), **more})


def config(**fields: object) -> PruneConfig:
    return PruneConfig(**{"source": "digits", "keep": 0.5, **fields})


def said(
    caplog: pytest.LogCaptureFixture, config: PruneConfig, scores: pa.Table, kept: np.ndarray, names: tuple[str, ...]
) -> str:
    caplog.clear()
    check_selection(
        config,
        StoredTable(Folder("nowhere"), "scores.parquet", {}, scores),
        lambda ids: np.isin(ids, kept),
        names,
        sizes_C=np.bincount(LABELS),
        kept_C=np.bincount(LABELS[kept], minlength=4),
    )
    return caplog.text


def test_the_hardest_few_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    hardest = np.arange(100)
    text = said(caplog, config(policy="top"), table(), hardest, ())
    assert "the hardest 25 % alone often train worse than a random subset" in text
    assert "right on 0 % of what is kept and on 100 % of what is not" in text
    assert not said(caplog, config(policy="ccs"), table(), hardest, ())
    assert not said(caplog, config(), table(), np.arange(200), ())


def test_hard_samples_are_not_the_choice_of_a_random_draw_within_classes(caplog: pytest.LogCaptureFixture) -> None:
    within = {"use": "class_quota", "by": "recall", "inside": "random"}
    assert not said(caplog, config(policy=within), table(), np.arange(100), ())
    assert "train worse than a random" in said(
        caplog, config(policy={**within, "inside": "top"}), table(), np.arange(100), ()
    )


@pytest.mark.parametrize("policy", ["beta", {"use": "beta", "c": 2}, {"use": "class_balanced", "inside": "beta"}])
def test_beta_by_another_score_than_its_own_is_warned_of(
    caplog: pytest.LogCaptureFixture, policy: str | dict[str, object]
) -> None:
    warn_of_beta(config(policy=policy, score={"use": "entropy"}))
    assert "policy beta takes mu from the highest scores. It was made for score dual" in caplog.text
    assert "by entropy it can be near 0" in caplog.text
    caplog.clear()
    warn_of_beta(config(policy=policy, score={"use": "dual"}))
    warn_of_beta(config(policy={"use": "beta", "mu": 0.5}))
    warn_of_beta(config(policy="ccs"))
    assert not caplog.text


def test_classes_left_almost_empty_are_named(caplog: pytest.LogCaptureFixture) -> None:
    kept = np.flatnonzero(LABELS < 2)
    assert "almost nothing is kept of 2 of 4 classes: cat (0.0%), dog (0.0%); of all samples, 50.0 % is" in said(
        caplog, config(), table(), kept, ("ant", "bee", "cat", "dog")
    )
    assert "2 of 4 classes: 2 (0.0%), 3 (0.0%)" in said(caplog, config(), table(), kept, ())
    assert not said(caplog, config(), table(), np.union1d(kept, np.arange(40)), ())


def test_a_choice_full_of_suspects_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    kept, doubtful = np.arange(200), np.where(RIGHT, 0.9, 0.05)
    text = said(caplog, config(), table(doubtful), kept, ())
    assert "50 % of what is kept by entropy may have a wrong label" in text and "and 0 % of what is not" in text
    guarded = table(doubtful, suspect=np.zeros(400, bool))
    for quiet in ((config(), guarded), (config(mode="fitting"), table(doubtful)), (config(), table(0.2))):
        assert not said(caplog, *quiet, kept, ())


def test_a_guard_that_suspects_too_many_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    kept = np.arange(100, 300)
    text = said(caplog, config(guard="label_margin"), table(suspect=np.arange(400) < 200), kept, ())
    assert (
        "guard label_margin (always a share of 0.1) suspects 50 % of all labels, and the scoring models agree with 75 %"
        in text
    )
    assert not said(caplog, config(guard="label_margin"), table(suspect=np.arange(400) < 130), kept, ())


def test_scores_that_order_alike_are_named(caplog: pytest.LogCaptureFixture) -> None:
    own = np.linspace(1, 0, 400)
    twin, other = own**3, np.random.default_rng(0).normal(size=400)
    stds = {f"std_{name}": np.zeros(400) for name in ("entropy", "el2n", "margin")}
    columns = table(el2n=twin, margin=other, **stds)
    text = said(caplog, config(also_score=["el2n", "margin"]), columns, np.arange(200), ())
    assert "el2n and entropy rank the samples almost alike (rank correlation above 0.995)" in text
    assert "margin" not in text
    for quiet in ("all", ["margin"]):  # only scores that were asked for are worth a word
        assert not said(caplog, config(also_score=quiet), columns, np.arange(200), ())


def test_pretrained_weights_are_suggested_for_few_photographs(caplog: pytest.LogCaptureFixture) -> None:
    def text(config: PruneConfig, accuracy: float = 0.51, samples: int = 288, size_px: int = 64) -> str:
        caplog.clear()
        entry = StageEntry.model_construct(index=0, vote_accuracy=accuracy)
        suggest_weights(config, entry, samples=samples, size_px=size_px)
        return caplog.text

    assert "right on only 51 % of the samples that they did not see, of 288 in all" in text(config())
    assert "--recipe finetune --recipe.init FILE" in text(config())
    started = config(recipe={"init": "weights.safetensors", "init_saw": "none"})
    for quiet in (text(config(), 0.9), text(config(), samples=50_000), text(config(), size_px=8), text(started)):
        assert not quiet


def test_classes_of_a_long_run_are_judged_by_their_sizes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sample of a few rows a class would miss the kept ones of some."""
    rng = np.random.default_rng(0)
    labels, kept = rng.integers(0, 100, 6000), np.sort(rng.permutation(6000)[:1800])
    columns = {"id": np.arange(6000), "label": labels, "pred": labels, "p_label": np.full(6000, 0.5, np.float32)}
    values = {"votes": np.full(6000, 3), "entropy": rng.random(6000, np.float32)}
    scores = pa.table({**columns, **values, "std_entropy": np.zeros(6000, np.float32)})
    files = write_table(Folder(str(tmp_path)), "scores.parquet", scores, part_rows=1000)
    long = StoredTable(Folder(str(tmp_path)), "scores.parquet", files)

    def judged(kept_C: np.ndarray) -> str:
        caplog.clear()
        sizes_C = np.bincount(labels, minlength=100)
        check_selection(
            config(policy="random"),
            long,
            lambda ids: np.isin(ids, kept),
            (),
            sizes_C=sizes_C,
            kept_C=kept_C,
            sampled=300,
        )
        return caplog.text

    kept_C = np.bincount(labels[kept], minlength=100)
    assert "almost nothing" not in judged(kept_C)
    kept_C[37] = 0
    assert "almost nothing is kept of 1 of 100 classes: 37 (0.0%)" in judged(kept_C)
