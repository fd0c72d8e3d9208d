"""Laws of the schedule: exact targets, strictly rising, ending in the budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from unseen_ray.core.schedule import Stage, spaced_fractions, stages_of
from unseen_ray.errors import ConfigError

repeatable = settings(derandomize=True, deadline=None, max_examples=200)


@pytest.mark.parametrize(
    ("fractions", "size", "targets"),
    [
        ([0.7], 1_281_167, [896_817]),
        ([0.5, 0.6, 0.7], 1797, [898, 1078, 1258]),
        ([0.5], 5, [2]),  # 2.5: halves to even
        ([0.5], 7, [4]),  # 3.5
        ([0.25, 0.75], 10, [2, 8]),  # 2.5 and 7.5
        ([0.1, 0.5], 15, [2, 8]),  # 1.5 and 7.5
        ([0.999], 1000, [999]),
    ],
)
def test_targets_are_rounded_halves_to_even(fractions: list[float], size: int, targets: list[int]) -> None:
    assert [stage.target for stage in stages_of(fractions, size)] == targets


@repeatable
@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=6, unique=True), st.integers(2, 10**7))
def test_stages_add_up(fractions: list[float], size: int) -> None:
    fractions = sorted(fractions)
    targets = [round(fraction * size) for fraction in fractions]
    assume(targets[0] >= 1 and targets[-1] < size and len(set(targets)) == len(targets))
    stages = stages_of(fractions, size)
    assert [stage.target for stage in stages] == targets
    assert [stage.index for stage in stages] == list(range(len(fractions)))
    assert np.cumsum([stage.added for stage in stages]).tolist() == targets
    assert all(stage.added > 0 for stage in stages)


def test_one_shot() -> None:
    assert stages_of([0.7], 10) == (Stage(index=0, added=7, target=7),)


@pytest.mark.parametrize("stages", [2, 3, 5, 10])
@pytest.mark.parametrize(("first", "keep"), [(0.4, 0.7), (0.1, 0.9), (0.05, 0.3)])
def test_even_spacing_is_of_equal_steps(first: float, keep: float, stages: int) -> None:
    fractions = spaced_fractions(first, keep, stages, "even")
    wanted = [first + index * (keep - first) / (stages - 1) for index in range(stages)]
    assert fractions == pytest.approx(wanted, rel=1e-12)
    assert fractions[0] == first and fractions[-1] == keep
    assert spaced_fractions(first, keep, stages) == fractions


@pytest.mark.parametrize("stages", [2, 3, 5, 10])
@pytest.mark.parametrize(("first", "keep"), [(0.4, 0.7), (0.1, 0.9), (0.05, 0.3)])
def test_geometric_spacing_is_of_equal_ratios(first: float, keep: float, stages: int) -> None:
    fractions = spaced_fractions(first, keep, stages, "geometric")
    wanted = [first * (keep / first) ** (index / (stages - 1)) for index in range(stages)]
    assert fractions == pytest.approx(wanted, rel=1e-12)
    assert fractions[0] == first and fractions[-1] == keep
    ratios = np.array(fractions[1:]) / fractions[:-1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-12)


@pytest.mark.parametrize("spacing", ["even", "geometric"])
def test_one_stage_is_the_budget_alone(spacing: str) -> None:
    assert spaced_fractions(0.4, 0.7, 1, spacing) == [0.7]


@pytest.mark.parametrize(
    ("fractions", "size"), [([0.001], 100), ([0.999], 100), ([1.0], 10), ([0.0, 0.5], 10), ([0.5, 1.0], 10)]
)
def test_targets_outside_the_data_are_refused(fractions: list[float], size: int) -> None:
    with pytest.raises(ConfigError, match=rf"must lie within 1\.\.{size - 1}: N is {size}"):
        stages_of(fractions, size)


@pytest.mark.parametrize(
    ("fractions", "index", "targets"),
    [
        ([0.5, 0.5], 1, r"\[5, 5\]"),
        ([0.2, 0.5, 0.54], 2, r"\[2, 5, 5\]"),
        ([0.5, 0.3, 0.7], 1, r"\[5, 3, 7\]"),
    ],
)
def test_a_stage_that_adds_nothing_is_refused(fractions: list[float], index: int, targets: str) -> None:
    with pytest.raises(
        ConfigError, match=f"stage {index} of the schedule would add nothing: the targets are {targets} of N = 10"
    ):
        stages_of(fractions, 10)
