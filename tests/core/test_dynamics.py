"""Scores over epochs against their formulas, written out sample by sample over the whole trajectory, and their laws."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.core.test_scores import log_softmax
from unseen_ray.core import dynamics, scores
from unseen_ray.core.trajectory import EpochView, Trajectory, scored_epochs
from unseen_ray.errors import ConfigError

NAMES = list(dynamics.__all__)
each_score = pytest.mark.parametrize("name", NAMES)
Row = list[np.ndarray]  # (C,) probabilities after each epoch


def trajectory(samples: int, classes: int, epochs: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(T, N, C) log-probabilities that sharpen from epoch to epoch, and labels, a fifth of them wrong."""
    rng = np.random.default_rng((seed, samples, classes, epochs))
    direction = rng.normal(size=(samples, classes))
    labels = np.where(rng.random(samples) < 0.8, direction.argmax(axis=1), rng.integers(0, classes, samples))
    steps = [(0.3 + 5 * epoch / epochs) * direction + rng.normal(size=direction.shape) for epoch in range(epochs)]
    return np.stack([log_softmax(logits) for logits in steps]).astype(np.float32), labels


def reduced(made: Trajectory, log_probs_TNC: np.ndarray, labels: np.ndarray, *, every: int = 1, batch: int = 17) -> Any:
    """A score as a recorder has it: batch by batch, of what came before the last answers in half precision."""
    epochs, samples = log_probs_TNC.shape[:2]
    numbers = scored_epochs(epochs, every)
    reducer = made.reduce(samples, numbers)
    before: np.ndarray | None = None
    for index, number in enumerate(numbers):
        floored = np.empty(log_probs_TNC.shape[1:], np.float16)
        for start in range(0, samples, batch):
            part = slice(start, min(start + batch, samples))
            view = EpochView(
                log_probs_TNC[number - 1, part], labels[part], before[part] if before is not None else None
            )
            reducer.add(part, made.series(view), index)
            floored[part] = view.log_floored_BC
        before = floored
    return reducer.result().astype(np.float32)


def windows(values: list[float], length: int) -> Iterator[list[float]]:
    for start in range(len(values) - length + 1):
        yield values[start : start + length]


def ref_forgetting(row: Row, label: int) -> float:
    right = [int(p.argmax()) == label for p in row]
    return float(sum(a and not b for a, b in itertools.pairwise(right))) if any(right) else len(row)


def ref_aum(row: Row, label: int) -> float:
    margins = []
    for p in row:
        logits = np.log(p)
        margins.append(logits[label] - max(np.delete(logits, label)))
    return -sum(margins) / len(margins)


def ref_tdds(row: Row, label: int, window: int = 10, decay: float = 0.9) -> float:
    changes = [
        sum(abs(p[c] * (np.log(p[c] + 1e-8) - np.log(q[c] + 1e-8))) for c in range(len(p)))
        for q, p in itertools.pairwise(row)
    ]
    window = min(window, len(row))
    lengths = [np.sqrt(sum((k - np.mean(part)) ** 2 for k in part)) for part in windows(changes, window - 1)]
    last = len(lengths) - 1
    return sum(length * decay * (1 - decay) ** (last - place) for place, length in enumerate(lengths))


def ref_dyn_unc(row: Row, label: int, window: int = 10, last_window: bool = False) -> float:
    parts = list(windows([float(p[label]) for p in row], min(window, len(row))))
    return float(np.mean([10 * np.std(part, ddof=1) for part in (parts if last_window else parts[:-1] or parts)]))


def ref_dual(row: Row, label: int, window: int = 10) -> float:
    p_label = [float(p[label]) for p in row]
    parts = windows(p_label, min(window, len(row)))
    return float(np.mean([10 * np.std(part, ddof=1) * (1 - np.mean(part)) for part in parts]))


def ref_eva(row: Row, label: int, window: int = 10, late: int | None = None) -> float:
    window, start = min(window, len(row) // 2), len(row) // 2 if late is None else late - 1
    lengths = [np.linalg.norm(p - np.eye(len(p))[label]) for p in row]
    return float(np.var(lengths[:window], ddof=1) + np.var(lengths[start : start + window], ddof=1))


def ref_accumulated_el2n(row: Row, label: int, epochs: int = 10) -> float:
    return float(np.mean([np.linalg.norm(p - np.eye(len(p))[label]) for p in row[:epochs]]))


def ref_correctness(row: Row, label: int) -> float:
    return sum(int(p.argmax()) != label for p in row) / len(row)


def ref_consistency(row: Row, label: int) -> float:
    return 1 - sum(float(p[label]) for p in row) / len(row)


REFERENCES: dict[str, Callable[..., float]] = {
    "forgetting": ref_forgetting,
    "aum": ref_aum,
    "tdds": ref_tdds,
    "dyn_unc": ref_dyn_unc,
    "dual": ref_dual,
    "eva": ref_eva,
    "accumulated_el2n": ref_accumulated_el2n,
    "correctness": ref_correctness,
    "consistency": ref_consistency,
}
TOLERANCE = {"tdds": 2e-3}  # of a half-precision memory of the epoch before


def wanted(
    reference: Callable[..., float], log_probs_TNC: np.ndarray, labels: np.ndarray, **options: Any
) -> list[float]:
    probs = np.exp(log_probs_TNC.astype(np.float64))
    return [reference(list(probs[:, place]), int(label), **options) for place, label in enumerate(labels)]


def test_each_score_has_a_reference() -> None:
    assert set(NAMES) == set(REFERENCES)
    assert len(NAMES) > 7


@each_score
@pytest.mark.parametrize(("samples", "classes", "epochs"), [(60, 4, 30), (33, 2, 12), (40, 50, 10), (25, 3, 4)])
def test_equals_the_formula(name: str, samples: int, classes: int, epochs: int) -> None:
    log_probs, labels = trajectory(samples, classes, epochs, seed=1)
    values = reduced(getattr(dynamics, name)(), log_probs, labels)
    rtol = TOLERANCE.get(name, 2e-5)
    np.testing.assert_allclose(values, wanted(REFERENCES[name], log_probs, labels), rtol=rtol, atol=rtol / 10)
    assert len(set(values.tolist())) > 2


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tdds", {"window": 5, "decay": 0.5}),
        ("dyn_unc", {"window": 3}),
        ("dyn_unc", {"window": 3, "last_window": True}),
        ("dual", {"window": 7}),
        ("eva", {"window": 4}),
        ("eva", {"window": 3, "late": 17}),
        ("accumulated_el2n", {"epochs": 4}),
    ],
)
def test_equals_the_formula_with_options(name: str, options: dict[str, Any]) -> None:
    log_probs, labels = trajectory(40, 5, 20, seed=2)
    values = reduced(getattr(dynamics, name)(**options), log_probs, labels)
    rtol = TOLERANCE.get(name, 2e-5)
    np.testing.assert_allclose(values, wanted(REFERENCES[name], log_probs, labels, **options), rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("name", "epochs"), [("tdds", 12), ("dual", 15), ("dyn_unc", 15)])
def test_the_first_epochs_alone_count_where_asked(name: str, epochs: int) -> None:
    log_probs, labels = trajectory(40, 5, 20, seed=3)
    values = reduced(getattr(dynamics, name)(epochs=epochs), log_probs, labels)
    np.testing.assert_array_equal(values, reduced(getattr(dynamics, name)(), log_probs[:epochs], labels))
    assert (values != reduced(getattr(dynamics, name)(), log_probs, labels)).any()


def test_variants_of_well_known_code() -> None:
    log_probs, labels = trajectory(60, 5, 12, seed=4)
    probs = np.exp(log_probs.astype(np.float64))
    own = np.take_along_axis(probs, np.broadcast_to(labels[None, :, None], (12, 60, 1)), axis=2)[..., 0]
    others = probs.copy()
    np.put_along_axis(others, np.broadcast_to(labels[None, :, None], (12, 60, 1)), -1, axis=2)
    summed = -(own - others.max(axis=2)).sum(axis=0)
    np.testing.assert_allclose(
        reduced(dynamics.aum(space="prob", reduce="sum"), log_probs, labels), summed, rtol=1e-5, atol=1e-5
    )
    never = ~(probs.argmax(axis=2) == labels).any(axis=0)
    most, zero = (reduced(dynamics.forgetting(never_learned=what), log_probs, labels) for what in ("max", "zero"))
    assert never.any() and (most[never] == 12).all() and (zero[never] == 0).all()
    np.testing.assert_array_equal(most[~never], zero[~never])


@pytest.mark.parametrize(("epochs", "counted"), [(5, range(5)), ([3, 8], [2, 7])])
def test_a_score_of_single_epochs_over_some_of_them(epochs: Any, counted: Any) -> None:
    log_probs, labels = trajectory(30, 5, 12, seed=5)
    each = np.stack([scores.el2n(log_probs[index], labels) for index in counted])
    values = reduced(dynamics.over_epochs(scores.el2n, epochs), log_probs, labels)
    np.testing.assert_allclose(values, each.mean(axis=0), rtol=1e-6)


@each_score
@pytest.mark.parametrize("every", [2, 3, 5])
def test_scored_every_few_epochs_it_is_the_score_of_these(name: str, every: int) -> None:
    log_probs, labels = trajectory(30, 4, 22, seed=6)
    options = {"epochs": 20} if name == "accumulated_el2n" else {}
    taken = log_probs[[number - 1 for number in scored_epochs(22, every)]]
    values = reduced(getattr(dynamics, name)(**options), log_probs, labels, every=every)
    if name == "accumulated_el2n":
        taken, options = taken[: len([n for n in scored_epochs(22, every) if n <= 20])], {}
    np.testing.assert_allclose(values, reduced(getattr(dynamics, name)(**options), taken, labels), rtol=1e-6)


@each_score
def test_batches_change_nothing_and_rows_do_not_see_each_other(name: str) -> None:
    log_probs, labels = trajectory(40, 5, 14, seed=7)
    made = getattr(dynamics, name)()
    whole = reduced(made, log_probs, labels, batch=40)
    np.testing.assert_array_equal(reduced(made, log_probs, labels, batch=1), whole)
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(reduced(made, log_probs[:, order], labels[order]), whole[order])


def four_kinds(epochs: int = 20, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Certain-right, confused (the label now ahead, now not), certain-wrong, and a wrong label that is unlearned: true class 0."""
    rng = np.random.default_rng(8)
    logits = np.zeros((epochs, 4, classes))
    rise = np.linspace(2, 12, epochs)
    logits[:, 0, 0] = rise
    logits[:, 1, 0] = 1.5 * np.where(np.arange(epochs) % 2, 1, -1)
    logits[:, 2, 1] = rise
    logits[:, 3, 1] = rise / 2 + rng.normal(size=epochs)
    return np.stack([log_softmax(step) for step in logits]).astype(np.float32), np.zeros(4, np.int64)


@each_score
def test_orientation(name: str) -> None:
    log_probs, labels = four_kinds()
    right, confused, wrong, noisy = reduced(getattr(dynamics, name)(), log_probs, labels)
    assert right < confused
    if name in ("forgetting", "aum", "accumulated_el2n", "correctness", "consistency"):
        assert right < confused < wrong, "these read the label"
        assert right < noisy
    if name in ("tdds", "dyn_unc", "dual", "eva"):
        assert wrong < confused, "what is surely wrong from first to last is not uncertain"


@each_score
@pytest.mark.parametrize("label", [0, 1])
def test_extreme_answers_stay_finite(name: str, label: int) -> None:
    rows = np.array([[0, -80, -80], [-80, 0, -80], [-1e-30, -80, -79]], np.float32)
    log_probs = np.stack([rows, rows[::-1], rows, rows, rows[::-1]])
    values = reduced(getattr(dynamics, name)(), log_probs, np.full(3, label))
    assert np.isfinite(values).all()


def test_one_class_has_nothing_to_tell() -> None:
    log_probs = np.zeros((5, 4, 1), np.float32)
    for name in NAMES:
        assert np.isfinite(reduced(getattr(dynamics, name)(), log_probs, np.zeros(4, np.int64))).all(), name


@each_score
def test_memory_does_not_grow_with_the_epochs(name: str) -> None:
    made = getattr(dynamics, name)()
    bytes_of = [
        sum(values.nbytes for values in made.reduce(1000, scored_epochs(epochs, 1)).state.values())
        for epochs in (20, 90, 400)
    ]
    assert bytes_of[0] == bytes_of[1] == bytes_of[2] <= 60_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dynamics.forgetting(never_learned="most"), "never_learned='most' is neither max nor zero"),
        (lambda: dynamics.aum(space="log"), "space='log' is neither logit nor prob"),
        (lambda: dynamics.aum(reduce="max"), "reduce='max' is neither mean nor sum"),
        (lambda: dynamics.tdds(window=2), "window=2 must be a whole number, 3 or more"),
        (lambda: dynamics.tdds(decay=0), "decay=0 must be above 0 and at most 1"),
        (lambda: dynamics.dyn_unc(window=True), "window=True must be a whole number, 2 or more"),
        (lambda: dynamics.dyn_unc(last_window=1), "last_window=1 is neither true nor false"),
        (lambda: dynamics.dyn_unc(epochs=0), "epochs=0 must be a whole number, 1 or more"),
        (lambda: dynamics.dual(epochs=0), "epochs=0 must be a whole number, 1 or more"),
        (lambda: dynamics.over_epochs(scores.el2n, []), "epochs=.. must be a whole number"),
        (lambda: dynamics.over_epochs(scores.el2n, [3, "a"]), "epochs='a' must be a whole number"),
        (lambda: dynamics.eva(window=1), "window=1 must be a whole number, 2 or more"),
        (lambda: dynamics.eva(late=0), "late=0 must be a whole number, 1 or more"),
        (lambda: dynamics.eva().reduce(5, (1, 2, 3)), "needs twice 2 scored epochs, but there is twice 1. Raise"),
        (
            lambda: dynamics.eva(window=2, late=2).reduce(5, range(1, 9)),
            "late=2: no 2 scored epochs from there on are after",
        ),
        (
            lambda: dynamics.eva(window=2, late=8).reduce(5, range(1, 9)),
            "late=8: no 2 scored epochs from there on are after",
        ),
        (lambda: dynamics.tdds().reduce(5, (1, 2)), "needs 3 scored epochs, but there are 2. Raise recipe.epochs"),
        (lambda: dynamics.dual().reduce(5, (1,)), "needs 2 scored epochs, but there is 1"),
        (
            lambda: dynamics.over_epochs(scores.el2n, [20]).reduce(5, (5, 10, 15)),
            r"epochs=\(20,\) asks for epoch 20, but models score after epochs 5, 10, 15 to 15",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
