"""Laws of every score: one number a sample, the surely right ones lowest, no crowd of near-certain samples tied."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from unseen_ray.core import scores
from unseen_ray.core.predictions import EpochView
from unseen_ray.errors import ConfigError
from unseen_ray.plugins import offered

NAMES = list(scores.__all__)
LABEL_FREE = {"entropy", "margin", "least_confidence"}
SIZES = [(1, 2), (7, 3), (50, 10), (64, 1000)]
DTYPES = [np.float32, np.float64]
each_score = pytest.mark.parametrize("name", NAMES)


def log_softmax(logits_NC: np.ndarray) -> np.ndarray:
    shifted = logits_NC - logits_NC.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def example(num: int, classes: int, *, sharpness: float = 3.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng((seed, num, classes))
    return log_softmax(sharpness * rng.normal(size=(num, classes))), rng.integers(0, classes, num)


HEAD_NORM = 2.5


def score_of(name: str, log_probs_NC: np.ndarray, labels_N: np.ndarray, **shared: EpochView) -> np.ndarray:
    """A score, given features of one length where it asks for them."""
    function = getattr(scores, name)
    given = offered(function, {"head_norm_N": np.full(len(labels_N), HEAD_NORM, np.float32)})
    return function(log_probs_NC, labels_N, **given, **shared)


def leaning(log_p: float, classes: int = 4, toward: int = 0) -> np.ndarray:
    """A row whose class `toward` has the log-probability `log_p`, the others sharing what is left."""
    row = np.full(classes, np.log(-np.expm1(log_p)) - np.log(classes - 1))
    row[toward] = log_p
    return row


def ref_entropy(p: np.ndarray, label: int) -> float:
    return -sum(q * np.log(q) for q in p if q > 0)


def ref_margin(p: np.ndarray, label: int) -> float:
    first, second = sorted(p, reverse=True)[:2]
    return 1 - (first - second)


def ref_least_confidence(p: np.ndarray, label: int) -> float:
    return 1 - max(p)


def ref_loss(p: np.ndarray, label: int) -> float:
    return -np.log(p[label])


def ref_el2n(p: np.ndarray, label: int) -> float:
    return np.linalg.norm(p - np.eye(len(p))[label])


def ref_grand(p: np.ndarray, label: int) -> float:
    features = np.array([1.5, 2.0])  # of length 2.5
    return np.linalg.norm(np.outer(p - np.eye(len(p))[label], features))


def ref_label_margin(p: np.ndarray, label: int) -> float:
    return 1 - (p[label] - max(np.delete(p, label)))


REFERENCES: dict[str, Callable[[np.ndarray, int], float]] = {
    "entropy": ref_entropy,
    "margin": ref_margin,
    "least_confidence": ref_least_confidence,
    "loss": ref_loss,
    "el2n": ref_el2n,
    "grand": ref_grand,
    "label_margin": ref_label_margin,
}


def test_there_are_scores_and_each_has_a_reference() -> None:
    assert NAMES
    assert set(NAMES) == set(REFERENCES)
    assert set(NAMES) > LABEL_FREE


@each_score
@pytest.mark.parametrize("size", [*SIZES, (0, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_finite_float32_a_sample(name: str, size: tuple[int, int], dtype: type) -> None:
    log_probs, labels = example(*size) if size[0] else (np.empty(size), np.empty(0, np.int64))
    values = score_of(name, log_probs.astype(dtype), labels)
    assert values.shape == (size[0],)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


@each_score
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sharpness", [0.1, 3.0, 10.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_formula(name: str, size: tuple[int, int], sharpness: float, dtype: type) -> None:
    log_probs, labels = example(*size, sharpness=sharpness, seed=1)
    log_probs = log_probs.astype(dtype)
    wanted = [
        REFERENCES[name](np.exp(row.astype(np.float64)), label) for row, label in zip(log_probs, labels, strict=True)
    ]
    np.testing.assert_allclose(score_of(name, log_probs, labels), wanted, rtol=1e-5, atol=1e-14)


@each_score
def test_rows_may_come_in_any_order(name: str) -> None:
    log_probs, labels = example(101, 5, seed=2)
    order = np.random.default_rng(2).permutation(101)
    straight, shuffled = score_of(name, log_probs, labels), score_of(name, log_probs[order], labels[order])
    np.testing.assert_array_equal(shuffled, straight[order])


@each_score
def test_a_row_does_not_depend_on_the_others(name: str) -> None:
    log_probs, labels = example(101, 5, seed=3)
    alone = [score_of(name, log_probs[row : row + 1], labels[row : row + 1])[0] for row in range(101)]
    np.testing.assert_array_equal(score_of(name, log_probs, labels), alone)


@each_score
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 10])
def test_a_view_that_scores_share_gives_the_same_bits(name: str, dtype: type, classes: int) -> None:
    log_probs, labels = example(101, classes, sharpness=6.0, seed=9)
    view = EpochView(log_probs.astype(dtype), labels)
    alone = {each: score_of(each, view.log_probs_BC, labels) for each in NAMES}
    for each in [name, *reversed(NAMES)]:
        np.testing.assert_array_equal(score_of(each, view.log_probs_BC, labels, epoch_view=view), alone[each])


@each_score
def test_more_samples_than_are_scored_at_once(name: str) -> None:
    log_probs, labels = example(700, 500, seed=10)
    parts = [score_of(name, log_probs[rows], labels[rows]) for rows in (slice(0, 300), slice(300, 700))]
    np.testing.assert_array_equal(score_of(name, log_probs, labels), np.concatenate(parts))


@each_score
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_inputs_stay_as_they_were(name: str, dtype: type) -> None:
    log_probs, labels = example(20, 4, seed=4)
    log_probs = log_probs.astype(dtype)
    before = log_probs.copy(), labels.copy()
    score_of(name, log_probs, labels)
    np.testing.assert_array_equal(log_probs, before[0])
    np.testing.assert_array_equal(labels, before[1])
    log_probs.setflags(write=False)
    labels.setflags(write=False)
    score_of(name, log_probs, labels)


@each_score
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_surely_right_is_lowest_and_confusion_higher(name: str, classes: int) -> None:
    confused = np.full(classes, -np.log(classes))
    rows = np.stack([leaning(np.log(0.999), classes), leaning(np.log(0.8), classes), confused])
    values = score_of(name, rows, np.zeros(3, np.int64))
    assert values[0] < values[1] < values[2]


@each_score
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_surely_wrong(name: str, classes: int) -> None:
    right, wrong = leaning(np.log(0.999), classes), leaning(np.log(0.999), classes, toward=1)
    confused = np.full(classes, -np.log(classes))
    sure, lost, mistaken = score_of(name, np.stack([right, confused, wrong]), np.zeros(3, np.int64))
    if name in LABEL_FREE:
        assert mistaken == pytest.approx(sure, rel=1e-6)
    else:
        assert sure < lost < mistaken


@pytest.mark.parametrize("name", sorted(LABEL_FREE))
def test_label_free_scores_ignore_the_labels(name: str) -> None:
    log_probs, labels = example(50, 5, seed=5)
    values = score_of(name, log_probs, labels)
    np.testing.assert_array_equal(score_of(name, log_probs, (labels + 1) % 5), values)


@each_score
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_p", [-1e-7, -1e-9, -1e-12, -1e-15])
def test_near_certain_samples_do_not_tie(name: str, dtype: type, log_p: float) -> None:
    rows = np.stack([leaning(log_p * factor) for factor in (1, 1.5, 2, 3)]).astype(dtype)
    values = score_of(name, rows, np.zeros(4, np.int64))
    assert (np.diff(values) > 0).all()


@pytest.mark.parametrize("name", ["entropy", "margin", "el2n", "label_margin"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_p", [-20.0, -40.0, -60.0, -75.0])
def test_what_is_left_for_the_other_classes_tells_certain_samples_apart(name: str, dtype: type, log_p: float) -> None:
    rows = np.array([[0, log_p + step, log_p + step] for step in range(4)], dtype)  # log p_y is 0 when rounded
    values = score_of(name, rows, np.zeros(4, np.int64))
    assert (np.diff(values) > 0).all()


@each_score
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_what_a_float32_softmax_leaves_of_certain_samples_is_told_apart(name: str, classes: int) -> None:
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(1797, classes))
    logits[:, 0] = logits[:, 1:].max(axis=1) + np.linspace(3, 30, 1797)
    labels = np.zeros(1797, np.int64)
    values, exact = score_of(name, log_softmax(logits.astype(np.float32)), labels), log_softmax(logits)
    np.testing.assert_allclose(values, score_of(name, exact, labels), rtol=1e-4)
    assert len(np.unique(values)) > 1795 and values.min() > 0


@each_score
def test_runs_of_an_earlier_version_go_on_to_round_certain_samples(name: str) -> None:
    rows = np.stack([leaning(log_p) for log_p in (-1e-9, -2e-8, -0.01, -0.02, -1.0)]).astype(np.float32)
    rows[:2, 0] = 0
    labels = np.zeros(5, np.int64)
    view = EpochView(rows, labels, exact=False)
    old, new = score_of(name, rows, labels, epoch_view=view), score_of(name, rows, labels)
    np.testing.assert_allclose(old, new, atol=3e-7)
    np.testing.assert_array_equal(old[3:], new[3:])
    assert (old != new)[:2].any()


@pytest.mark.parametrize("name", ["margin", "label_margin"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tie_of_the_top_two_is_one_exactly(name: str, dtype: type) -> None:
    shares = np.random.default_rng(11).uniform(0.26, 0.5, 1000)
    rows = np.log(np.stack([shares, shares, 1 - 2 * shares + 1e-12], axis=1)).astype(dtype)
    assert (score_of(name, rows, np.zeros(1000, np.int64))[shares > 1 / 3] == 1).all()
    beside = rows.copy()
    beside[:, 1] = np.nextafter(beside[:, 0], dtype(-9))
    assert (score_of(name, beside, np.zeros(1000, np.int64))[shares > 1 / 3] <= 1).all()


@each_score
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label", [0, 1])
def test_extreme_log_probs_stay_finite(name: str, dtype: type, label: int) -> None:
    rows = np.array([[0, -80, -80], [-80, 0, -80], [-1e-30, -80, -79]], dtype)
    values = score_of(name, rows, np.full(3, label))
    assert np.isfinite(values).all()
    assert (values >= 0).all()


@pytest.mark.parametrize(
    ("name", "highest"),
    [
        ("entropy", lambda classes: np.log(classes)),
        ("margin", lambda classes: 1),
        ("least_confidence", lambda classes: 1 - 1 / classes),
        ("loss", lambda classes: np.inf),
        ("el2n", lambda classes: np.sqrt(2)),
        ("grand", lambda classes: HEAD_NORM * np.sqrt(2)),
        ("label_margin", lambda classes: 2),
    ],
)
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 30.0])
def test_values_stay_in_the_documented_range(name: str, highest: Callable[[int], float], sharpness: float) -> None:
    for classes in (2, 5, 100):
        log_probs, labels = example(200, classes, sharpness=sharpness, seed=6)
        values = score_of(name, log_probs.astype(np.float32), labels)
        assert values.min() >= -1e-6
        assert values.max() <= highest(classes) * (1 + 1e-6)


def test_with_two_classes_the_label_free_scores_agree_on_the_order() -> None:
    log_probs, labels = example(200, 2, seed=7)
    least = score_of("least_confidence", log_probs, labels)
    np.testing.assert_allclose(score_of("margin", log_probs, labels), 2 * least, rtol=1e-6)
    by_least = score_of("entropy", log_probs, labels)[np.argsort(least)]
    assert (np.diff(by_least) >= 0).all()


@each_score
def test_with_one_class_nothing_is_uncertain(name: str) -> None:
    values = score_of(name, np.zeros((3, 1), np.float32), np.zeros(3, np.int64))
    np.testing.assert_array_equal(values, np.zeros(3, np.float32))
    assert values.dtype == np.float32


def test_least_confidence_of_logits_is_another_order_and_says_so_without_them() -> None:
    log_probs, labels = example(50, 5, seed=8)
    logits = np.random.default_rng(8).normal(size=50).astype(np.float32)
    values = scores.least_confidence(log_probs, labels, space="logit", max_logit_N=logits)
    np.testing.assert_array_equal(np.argsort(values), np.argsort(-logits))
    with pytest.raises(ConfigError, match="space: logit needs a model's logits"):
        scores.least_confidence(log_probs, labels, space="logit")
    with pytest.raises(ConfigError, match="space='logits' is neither prob nor logit"):
        scores.least_confidence(log_probs, labels, space="logits")
