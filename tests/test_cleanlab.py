"""The guards of probabilities beside cleanlab, which their inventors maintain, on the same out-of-fold probabilities.

Both count a sample for a class whose threshold it reaches, and both have the same thresholds. They part in one way, and in no other:
where several thresholds are reached, the guards take the most probable of these classes, as equation 1 of the paper says; cleanlab
takes the most probable of all, even if that does not reach its own. With `plain`, `confident_learning` suspects samples whose label is
the most probable class, too. Calibration scales cleanlab's counts, not the list of `confident_learning`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import unseen_ray as ur
from tests.conftest import class_pixels, png_bytes, write_parquet
from unseen_ray.core.guard import confident_learning, prune_by_noise_rate

pytest.importorskip("cleanlab")

from cleanlab.count import calibrate_confident_joint, compute_confident_joint, get_confident_thresholds
from cleanlab.filter import find_label_issues

COUNT, CLASSES = 600, 6


def by_cleanlab(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(M,) bool, what cleanlab lists."""
    found: np.ndarray = find_label_issues(labels, probs, filter_by="confident_learning", n_jobs=1)
    return found


def answers(count: int, classes: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of models that are right more often than not and surer of some classes, and labels of which a third is wrong."""
    rng = np.random.default_rng((count, classes))
    truth = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) * sharpness + np.linspace(0, 1.5, classes)
    logits[np.arange(count), truth] += 1.5 * sharpness
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.where(rng.random(count) < 1 / 3, rng.integers(0, classes, count), truth)
    return probs.astype(np.float32), labels


def reached(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(M, C) bool, which thresholds a sample reaches, by cleanlab's own."""
    answer: np.ndarray = probs >= get_confident_thresholds(labels, probs) - 1e-6
    return answer


def assert_related(probs: np.ndarray, labels: np.ndarray) -> tuple[int, int, int]:
    """The guard's suspects follow from cleanlab's list, and the other way round; how many are in both, in one, in the other alone."""
    ours, theirs = confident_learning(probs_MC=probs, labels_M=labels, plain=True), by_cleanlab(probs, labels)
    several = reached(probs, labels)
    top, best = probs.argmax(axis=1), np.where(several, probs, -1).argmax(axis=1)
    apart = (several.sum(axis=1) > 1) & ~several[np.arange(len(labels)), top]
    np.testing.assert_array_equal(theirs[~apart], confident_learning(probs_MC=probs, labels_M=labels)[~apart])
    np.testing.assert_array_equal(theirs[apart], (top != labels)[apart])
    np.testing.assert_array_equal(ours[apart], (best != labels)[apart])
    joint, listed = compute_confident_joint(labels, probs, calibrate=False, return_indices_of_off_diagonals=True)
    np.testing.assert_array_equal(np.isin(np.arange(len(labels)), listed)[~apart], ours[~apart])
    off = joint.sum() - np.trace(joint)
    assert off - apart.sum() <= ours.sum() <= off + apart.sum()
    return int((ours & theirs).sum()), int((ours & ~theirs).sum()), int((theirs & ~ours).sum())


@pytest.mark.parametrize(("count", "classes"), [(200, 2), (500, 3), (2000, 10), (3000, 50)])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_suspects_are_those_of_cleanlab_but_for_what_is_defined_otherwise(
    count: int, classes: int, sharpness: float
) -> None:
    probs, labels = answers(count, classes, sharpness)
    both, _, _ = assert_related(probs, labels)
    assert both


def test_both_differences_are_met_here() -> None:
    both, ours, theirs = assert_related(*answers(3000, 10, 0.3))
    assert min(both, ours, theirs) > 10


def test_thresholds_of_absent_classes_are_reached_by_none() -> None:
    probs, labels = answers(500, 5, 1.0)
    labels[labels == 3] = 0
    assert_related(probs, labels)


def test_with_two_classes_whose_thresholds_are_above_a_half_the_lists_are_equal() -> None:
    probs, labels = answers(1000, 2, 3.0)
    assert (get_confident_thresholds(labels, probs) > 0.5).all()
    np.testing.assert_array_equal(confident_learning(probs_MC=probs, labels_M=labels), by_cleanlab(probs, labels))


@pytest.mark.parametrize(("count", "classes"), [(200, 2), (500, 3), (2000, 10), (3000, 50)])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_calibrated_counts_are_cleanlabs_of_the_same_joint(count: int, classes: int, sharpness: float) -> None:
    probs, labels = answers(count, classes, sharpness)
    joint = np.zeros((classes, classes), int)
    best = np.where(reached(probs, labels), probs, -1).argmax(axis=1)
    np.add.at(joint, (labels, best), reached(probs, labels).any(axis=1))
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1))
    theirs = find_label_issues(
        labels,
        probs,
        confident_joint=calibrate_confident_joint(joint, labels),
        filter_by="prune_by_noise_rate",
        n_jobs=1,
    )
    ours = prune_by_noise_rate(probs_MC=probs, labels_M=labels, ids_M=np.arange(count), seed=0)
    assert (ours != theirs).sum() <= (3 if classes == 50 else 0), (
        "but for counts with equal remainders, one of which is rounded up"
    )
    assert ours.any() and not ours.all()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[ur.PruneResult, np.ndarray]:
    """Images that can be learned, a fifth of them with another label; and which these are."""
    folder, rng = tmp_path_factory.mktemp("cleanlab"), np.random.default_rng(0)
    truth = np.arange(COUNT) % CLASSES
    flipped = rng.random(COUNT) < 0.2
    labels = np.where(flipped, (truth + rng.integers(1, CLASSES, COUNT)) % CLASSES, truth)
    images = [png_bytes(pixels) for pixels in class_pixels(truth, 8)]
    source = write_parquet(folder / "flipped.parquet", labels.astype(np.int64), images)
    config = ur.PruneConfig(
        source=str(source),
        keep=0.5,
        folds=3,
        model="small_cnn",
        recipe={"epochs": 8},
        guard="confident_learning",
        save_probs=True,
        executor="local",
        out=folder / "run",
    )
    return ur.prune(config), flipped


def test_a_runs_suspects_are_cleanlabs_list(run: tuple[ur.PruneResult, np.ndarray]) -> None:
    result, flipped = run
    probs = np.load(Path(result.path) / "stage-00" / "probs.npy")
    labels, suspects = (result.scores.column(name).to_numpy() for name in ("label", "suspect"))
    np.testing.assert_array_equal(suspects, confident_learning(probs_MC=probs, labels_M=labels))
    both, _, theirs = assert_related(probs, labels)
    assert theirs <= 0.1 * both
    for found in (suspects, by_cleanlab(probs, labels)):
        assert (found & flipped).sum() / flipped.sum() > 0.7
        assert (found & flipped).sum() / found.sum() > 0.7
