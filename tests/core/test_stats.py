"""Laws of the statistics of scores, against scipy where it has them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from unseen_ray.core.stats import common_range, correlation, fullest_bin, rank_correlation


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rank_correlation_is_spearmans(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    first = rng.integers(0, levels, 200).astype(np.float32)
    second = first + rng.integers(0, levels, 200)
    assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert rank_correlation(first, -first) == pytest.approx(-1)


def test_a_score_of_one_value_agrees_with_nothing() -> None:
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5.0)))


def test_the_fullest_bin_holds_its_share() -> None:
    assert fullest_bin(np.array([0.0] * 15 + [1.0, 0.3, 0.5, 0.7, 0.9]), (0.0, 1.0)) == 0.75
    assert fullest_bin(np.linspace(0, 1, 2000), (0.0, 1.0)) == pytest.approx(0.05)


def test_scores_in_a_narrow_range_are_in_fewer_bins_than_those_they_are_compared_with() -> None:
    narrow, wide = np.linspace(0, 0.01, 1000), np.linspace(0, 2.3, 1000)
    within = common_range([narrow, wide])
    assert within == (0.0, 2.3)
    assert fullest_bin(narrow, within) == 1.0
    assert fullest_bin(wide, within) == pytest.approx(0.05)
    assert common_range([np.ones(3)]) == (1.0, 2.0)


def test_a_correlation_leaves_out_what_is_not_known() -> None:
    accuracy = np.array([0.9, 0.5, np.nan, 0.1])
    assert correlation(accuracy, np.array([0.1, 0.5, 0.3, 0.9])) == pytest.approx(-1.0)
    assert np.isnan(correlation(accuracy, np.array([0.1, np.nan, 0.3, 0.9])))
    assert np.isnan(correlation(accuracy, np.full(4, 0.5)))


def test_scores_that_float32_can_hardly_tell_apart_have_bins_too() -> None:
    values = np.array([0.3, np.nextafter(np.float32(0.3), np.float32(1))], np.float32)
    assert fullest_bin(values, common_range([values])) == 0.5
