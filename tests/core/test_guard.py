"""Guards against wrong labels: by the formula of the paper, sample by sample, and on labels that were flipped."""

from __future__ import annotations

import numpy as np
import pytest

from unseen_ray.core.guard import allowed, confident_learning, label_margin, prune_by_noise_rate, unlikely_label
from unseen_ray.errors import ConfigError


def answers(count: int, classes: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng((seed, count, classes))
    logits = 2 * rng.normal(size=(count, classes))
    labels = np.where(rng.random(count) < 0.7, logits.argmax(axis=1), rng.integers(0, classes, count))
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probs.astype(np.float32), labels


@pytest.mark.parametrize(("count", "classes"), [(50, 2), (200, 5), (300, 40)])
def test_confident_learning_as_its_paper_says(count: int, classes: int) -> None:
    probs, labels = answers(count, classes)
    thresholds = [
        np.mean([float(probs[i, k]) for i in range(count) if labels[i] == k]) if (labels == k).any() else np.inf
        for k in range(classes)
    ]
    wanted = []
    for i in range(count):
        reached = [k for k in range(classes) if probs[i, k] >= thresholds[k] - 1e-6]
        wanted.append(bool(reached) and max(reached, key=lambda k: probs[i, k]) != labels[i])
    assert confident_learning(probs_MC=probs, labels_M=labels, plain=True).tolist() == wanted
    left = [found and probs[i, labels[i]] + 1e-6 < probs[i].max() for i, found in enumerate(wanted)]
    assert confident_learning(probs_MC=probs, labels_M=labels).tolist() == left
    assert any(left) and not all(wanted)


def test_a_label_that_is_the_first_choice_is_no_suspect() -> None:
    probs = np.array([[0.99, 0.01], [0.99, 0.01], [0.6, 0.4], [0.7, 0.3], [0.65, 0.35]], np.float32)
    labels = np.array([0, 0, 0, 1, 1])
    assert np.flatnonzero(confident_learning(probs_MC=probs, labels_M=labels, plain=True)).tolist() == [2]
    assert not confident_learning(probs_MC=probs, labels_M=labels).any()
    with pytest.raises(ConfigError, match="guard option plain='yes' is neither true nor false"):
        confident_learning(probs_MC=probs, labels_M=labels, plain="yes")


def ref_prune_by_noise_rate(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(M,) bool by the paper's steps: confident joint, its calibration, the largest margins of each pair of classes."""
    count, classes = probs.shape
    thresholds = [np.mean(probs[labels == k, k]) if (labels == k).any() else np.inf for k in range(classes)]
    joint = np.eye(classes) * 0
    for i in range(count):
        reached = [k for k in range(classes) if probs[i, k] >= thresholds[k] - 1e-6]
        if reached:
            joint[labels[i], max(reached, key=lambda k: probs[i, k])] += 1
    suspects = np.zeros(count, bool)
    for k in range(classes):
        joint[k, k] = max(joint[k, k], 1)
        shares = joint[k] / joint[k].sum() * (labels == k).sum()
        counts = np.floor(shares)
        missing = round(shares.sum() - counts.sum())
        counts[np.argsort(counts - shares, kind="stable")[:missing]] += 1
        rows = np.flatnonzero(labels == k)
        for j in range(classes):
            if j != k:
                order = sorted(rows, key=lambda row: probs[row, k] - probs[row, j])
                suspects[order[: int(counts[j])]] = True
    return suspects & (probs.argmax(axis=1) != labels)


@pytest.mark.parametrize(("count", "classes"), [(50, 2), (200, 5), (300, 40), (2000, 10)])
def test_calibrated_counts_as_their_paper_says(count: int, classes: int) -> None:
    probs, labels = answers(count, classes, seed=3)
    probs = probs.astype(np.float64)
    if classes == 5:
        labels[labels == 3] = 0
    found = prune_by_noise_rate(probs_MC=probs, labels_M=labels, ids_M=np.arange(count), seed=0)
    np.testing.assert_array_equal(found, ref_prune_by_noise_rate(probs, labels))
    assert found.any() and not found.all()


def test_calibrated_counts_mind_neither_order_nor_ties() -> None:
    probs, labels = answers(60, 3, seed=4)
    probs, labels = np.repeat(probs, 5, axis=0), np.repeat(labels, 5)
    ids = np.random.default_rng(0).permutation(1000)[:300]
    found = [
        set(some[prune_by_noise_rate(probs_MC=p, labels_M=y, ids_M=some, seed=seed)].tolist())
        for p, y, some, seed in (
            (probs, labels, ids, 1),
            (probs[::-1], labels[::-1], ids[::-1], 1),
            (probs, labels, ids, 2),
        )
    ]
    assert found[0] == found[1] != found[2] and len(found[0]) == len(found[2])


def test_flipped_labels_are_suspected_and_others_are_not() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 10, 2000)
    logits = rng.normal(size=(2000, 10))
    logits[np.arange(2000), truth] += 5
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    flipped = rng.random(2000) < 0.2
    labels = np.where(flipped, (truth + rng.integers(1, 10, 2000)) % 10, truth)
    p_label = probs[np.arange(2000), labels]
    others = probs.copy()
    others[np.arange(2000), labels] = 0
    margins = (1 - p_label + others.max(axis=1)).astype(np.float32)
    by_joint = confident_learning(probs_MC=probs.astype(np.float32), labels_M=labels)
    by_margin = label_margin(label_margin_M=margins, ids_M=np.arange(2000), seed=0, cut=0.2)
    by_counts = prune_by_noise_rate(probs_MC=probs, labels_M=labels, ids_M=np.arange(2000), seed=0)
    unlikely = unlikely_label(labels_M=labels, pred_M=probs.argmax(axis=1), p_label_M=p_label)
    for suspects in (by_joint, by_margin, by_counts, unlikely):
        assert (suspects & flipped).sum() / flipped.sum() > 0.85
        assert (suspects & flipped).sum() / suspects.sum() > 0.85
    assert by_margin.sum() == 400


def test_an_unlikely_label_is_another_class_and_half_as_likely_as_by_chance() -> None:
    labels, pred = np.array([0, 1, 2, 3, 0, 2]), np.array([1, 1, 0, 0, 0, 2])
    p_label = np.array([0.124, 0.01, 0.125, 0.0, 0.1, 0.1], np.float32)
    found = {
        many: unlikely_label(labels_M=labels, pred_M=pred, p_label_M=p_label, many=many) for many in (0.0, 0.33, 0.34)
    }
    assert found[0.0].tolist() == found[0.33].tolist() == [True, False, False, True, False, False]
    assert not found[0.34].any()


@pytest.mark.parametrize(
    ("classes", "wrong", "credible"),
    [
        (2, 89, True),
        (2, 91, False),
        (50, 119, True),
        (50, 121, False),
    ],  # right on 55 %, where chance is 50 %; right on 40 %
)
def test_models_that_know_little_cannot_tell_wrong_labels(classes: int, wrong: int, credible: bool) -> None:
    labels = np.arange(200) % classes
    off = np.arange(200) < wrong
    p_label, pred = np.where(off, 0.0, 1.0).astype(np.float32), np.where(off, (labels + 1) % classes, labels)
    found = [unlikely_label(labels_M=labels, pred_M=pred, p_label_M=p_label, many=many) for many in (0.1, 0.0)]
    assert found[0].sum() == (wrong if credible else 0)
    assert found[1].sum() == wrong  # whoever sets the guard decides


def test_a_rare_class_is_not_suspected_for_being_rare() -> None:
    """Weak models predict the common class, and give the rare one its share."""
    labels = np.array([0] * 85 + [1] * 15)
    p_label = np.where(labels == 0, 0.85, 0.15).astype(np.float32)
    assert not unlikely_label(labels_M=labels, pred_M=np.zeros_like(labels), p_label_M=p_label).any()
    p_label[-1] = 0.07
    assert np.flatnonzero(unlikely_label(labels_M=labels, pred_M=0 * labels, p_label_M=p_label)).tolist() == [99]


def test_label_margin_minds_neither_order_nor_ties() -> None:
    ids = np.random.default_rng(0).permutation(500)[:100]
    margins = (ids % 3).astype(np.float32)
    chosen = set(ids[label_margin(label_margin_M=margins, ids_M=ids, seed=4, cut=0.5)].tolist())
    back = ids[::-1]
    again = set(back[label_margin(label_margin_M=margins[::-1], ids_M=back, seed=4, cut=0.5)].tolist())
    assert chosen == again
    assert len(chosen) == 50
    assert margins[np.isin(ids, list(chosen))].min() >= margins[~np.isin(ids, list(chosen))].max()
    other = set(ids[label_margin(label_margin_M=margins, ids_M=ids, seed=5, cut=0.5)].tolist())
    assert other != chosen


@pytest.mark.parametrize("cut", [-0.1, 1, "much", True])
def test_a_cut_outside_its_range_is_refused(cut: object) -> None:
    with pytest.raises(ConfigError, match=r"guard option cut=.* is not in \[0, 1\)"):
        label_margin(label_margin_M=np.zeros(3, np.float32), ids_M=np.arange(3), seed=0, cut=cut)
    with pytest.raises(ConfigError, match=r"guard option many=.* is not in \[0, 1\)"):
        unlikely_label(labels_M=np.arange(3), pred_M=np.arange(3), p_label_M=np.ones(3, np.float32), many=cut)


def test_as_many_suspects_come_back_as_the_budget_needs_the_likeliest_first() -> None:
    suspects = np.array([True, False, True, True, False])
    p_label = np.array([0.1, 0.9, 0.3, 0.2, 0.8], np.float32)
    for budget, wanted in ((0, [1, 4]), (2, [1, 4]), (3, [1, 2, 4]), (4, [1, 2, 3, 4]), (5, [0, 1, 2, 3, 4])):
        assert allowed(suspects, p_label, np.arange(5), budget, seed=0).tolist() == wanted
