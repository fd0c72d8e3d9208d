"""Does each policy take what it should, of samples that are surely right, confused, surely wrong, or wrongly labelled?"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.core.test_golden_policies import CLASSES, Case, chosen
from unseen_ray.core import scores as builtin_scores

SURE, CONFUSED, MISTAKEN, NOISY = "surely right", "confused", "surely wrong", "wrong label"
P_LABEL = {SURE: 0.97, CONFUSED: 0.3, MISTAKEN: 0.1, NOISY: 0.001}
EACH = 50


def four_kinds(score: str, *, share: float, sure_class: bool = False) -> tuple[Case, list[str]]:
    """As many samples of each kind, scored by what models say of them: a wrong label is one that they give no chance at all.

    With `sure_class`, the surely right ones are a class of their own, which is hard to none.
    """
    kinds = [kind for kind in P_LABEL for _ in range(EACH)]
    labels = [0 if kind == SURE and sure_class else 1 + place % 2 for place, kind in enumerate(kinds)]
    jitter = np.random.default_rng(0).uniform(0.9, 1.0, len(kinds))
    p_label = np.array([P_LABEL[kind] for kind in kinds]) * jitter
    probs = np.empty((len(kinds), CLASSES))
    for place, (kind, label, p) in enumerate(zip(kinds, labels, p_label, strict=True)):
        others = [c for c in range(CLASSES) if c != label]
        probs[place, label] = p
        probs[place, others] = (
            (1 - p) * np.array([1, 1, 1] if kind == CONFUSED else [0.96, 0.02, 0.02]) / (3 if kind == CONFUSED else 1)
        )
    values = getattr(builtin_scores, score)(np.log(probs), np.array(labels)).tolist()
    ids = np.random.default_rng(1).permutation(1000)[: len(kinds)].tolist()
    return Case(values, labels, ids, p_label.tolist(), round(share * len(kinds))), kinds


def kept_of_each(name: str, score: str, share: float, *, sure_class: bool = False, **options: Any) -> dict[str, int]:
    case, kinds = four_kinds(score, share=share, sure_class=sure_class)
    picked = [kinds[place] for place in chosen(name, case, **options)]
    return {kind: picked.count(kind) for kind in P_LABEL}


def test_the_four_kinds_are_what_they_are_called() -> None:
    case, kinds = four_kinds("loss", share=0.5)
    means = {kind: np.mean([s for s, k in zip(case.scores, kinds, strict=True) if k == kind]) for kind in P_LABEL}
    assert means[SURE] < means[CONFUSED] < means[MISTAKEN] < means[NOISY]
    case, kinds = four_kinds("entropy", share=0.5)
    means = {kind: np.mean([s for s, k in zip(case.scores, kinds, strict=True) if k == kind]) for kind in P_LABEL}
    assert means[CONFUSED] > means[MISTAKEN] > max(means[SURE], means[NOISY])


def test_top_takes_what_is_hardest_by_the_score_and_wrong_labels_where_it_asks_for_the_label() -> None:
    assert kept_of_each("top", "loss", 0.5) == {SURE: 0, CONFUSED: 0, MISTAKEN: EACH, NOISY: EACH}
    assert kept_of_each("top", "entropy", 0.25) == {SURE: 0, CONFUSED: EACH, MISTAKEN: 0, NOISY: 0}


def test_random_takes_of_each_kind_alike() -> None:
    assert all(10 <= count <= 40 for count in kept_of_each("random", "loss", 0.5).values())


def test_ccs_takes_of_each_kind_but_of_what_it_cuts() -> None:
    whole = kept_of_each("ccs", "loss", 0.2)
    assert all(whole.values())
    cut = kept_of_each("ccs", "loss", 0.2, cut=0.25)
    assert cut[NOISY] == 0
    assert all(cut[kind] for kind in (SURE, CONFUSED, MISTAKEN))


def test_window_passes_over_the_very_hardest() -> None:
    assert kept_of_each("window", "loss", 0.5, start=0.25) == {SURE: 0, CONFUSED: EACH, MISTAKEN: EACH, NOISY: 0}


def test_moderate_takes_neither_the_surest_nor_the_hardest() -> None:
    assert kept_of_each("moderate", "loss", 0.5) == {SURE: 0, CONFUSED: EACH, MISTAKEN: EACH, NOISY: 0}


def test_beta_shuns_wrong_labels_and_takes_easier_samples_the_less_is_kept() -> None:
    few, many = kept_of_each("beta", "entropy", 0.1), kept_of_each("beta", "entropy", 0.5)
    assert few[NOISY] == 0
    assert few[CONFUSED] + few[SURE] > 0.9 * sum(few.values())
    assert many[CONFUSED] == max(many.values())
    assert few[SURE] / sum(few.values()) > many[SURE] / sum(many.values())


def test_policies_of_classes_take_the_hardest_of_each_and_differ_in_what_a_sure_class_gets() -> None:
    gets = {
        name: kept_of_each(name, "loss", 0.5, sure_class=True, **options)
        for name, options in (("top", {}), ("class_quota", {}), ("class_floor", {"floor": 0.5}), ("class_balanced", {}))
    }
    assert gets["class_balanced"][SURE] == EACH // 2
    assert gets["class_floor"][SURE] == EACH // 4
    assert gets["top"][SURE] == 0 < gets["class_quota"][SURE] < EACH // 4
    for its in gets.values():
        assert its[NOISY] == EACH  # no policy that goes by the loss alone knows a wrong label: a guard does
        assert its[MISTAKEN] >= its[CONFUSED]
