"""Functions of the user's own: fit, score, policy, model, source."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import unseen_ray as ur
from tests import plugs

ROOT = Path(__file__).parents[2]


def run(out: Path, **fields: object) -> ur.PruneResult:
    fields = {"source": {"use": "digits", "limit": 400}, "keep": 0.5, "out": str(out), "executor": "local", **fields}
    return ur.prune(ur.PruneConfig(**fields))


def test_logistic_regression_prunes_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    fit = {"use": "sklearn_fit:logistic_regression", "strength": 0.05}
    result = run(tmp_path, source="digits", fit=fit, schedule={"first": 0.3, "stages": 3})
    assert len(result.coreset) == round(0.5 * 1797)
    assert result.manifest.stages[0]["accuracy"] > 0.9
    assert [stage["target"] for stage in result.manifest.stages] == [539, 719, 898]


def test_score_and_policy_by_name_or_as_functions_agree(tmp_path: Path) -> None:
    named = run(
        tmp_path / "a",
        fit="tests.plugs:centroids",
        score="tests.plugs:gini",
        policy={"use": "tests.plugs:skip_hardest", "skip": 0.2},
    )
    given = run(tmp_path / "b", fit=plugs.centroids, score=plugs.gini, policy={"use": plugs.skip_hardest, "skip": 0.2})
    assert np.array_equal(named.coreset.ids, given.coreset.ids)
    scores = named.scores.column("gini").to_numpy()
    assert set(named.coreset.ids) == set(np.argsort(-scores, kind="stable")[80:280])
    assert "std_gini" in named.scores.column_names


def test_a_model_of_ones_own_takes_options(tmp_path: Path) -> None:
    fields = {"recipe": {"epochs": 2, "min_steps": 0}, "source": {"use": "tests.plugs:noise", "count": 80}, "folds": 2}
    result = run(tmp_path, model={"use": "tests.plugs:tiny_model", "hidden": 4}, **fields)
    assert len(result.coreset) == 40
    with pytest.raises(ur.ConfigError, match=r"takes no option 'hiden'.*Did you mean 'hidden'"):
        run(tmp_path / "typo", model={"use": "tests.plugs:tiny_model", "hiden": 4}, **fields)


def test_torch_subset_gives_the_kept_images(tmp_path: Path) -> None:
    result = run(tmp_path, fit="tests.plugs:centroids")
    subset = ur.torch_subset(result)
    image, label = subset[3]
    kept = result.coreset.ids[3]
    from unseen_ray.data.sources.registry import open_source, source_ref

    source = open_source(source_ref("digits"))
    assert len(subset) == 200
    assert label == source.info.labels_N[kept]
    assert np.array_equal(np.asarray(image), next(iter(source.read([kept])))[1])


def test_a_run_made_here_gives_the_images_of_its_own_function(tmp_path: Path) -> None:
    result = run(tmp_path, source=plugs.noise, fit="tests.plugs:centroids")
    assert len(ur.torch_subset(result)) == 300
    with pytest.raises(ur.ConfigError, match=r"tests\.plugs:noise, a user-defined function.*source="):
        ur.torch_subset(ur.load(tmp_path))
    assert len(ur.torch_subset(tmp_path, source=plugs.noise)) == 300
    with pytest.raises(ur.DataError, match="or is another one"):
        ur.torch_subset(ur.load(tmp_path), source={"use": plugs.noise, "count": 599})


def test_torch_subset_refuses_data_that_has_changed(tmp_path: Path, parquet_file: Callable[..., Path]) -> None:
    data = parquet_file(count=40)
    result = run(tmp_path / "run", source=str(data), fit="tests.plugs:centroids")
    parquet_file(count=41)
    for done in (result, ur.load(tmp_path / "run")):
        with pytest.raises(ur.DataError, match="has changed since the run"):
            ur.torch_subset(done)
    moved = parquet_file(count=40, name="moved/elsewhere.parquet")
    with pytest.raises(ur.DataError, match="or is another one"):  # whose keys are other ones
        ur.torch_subset(result, source=str(moved))
    moved = parquet_file(count=40, name="moved/data.parquet")
    assert len(ur.torch_subset(result, source=str(moved))) == 20


def test_keys_of_the_coreset_name_its_ids(tmp_path: Path) -> None:
    result = run(tmp_path, fit="tests.plugs:centroids")
    table = result.run.folder.read_table("coreset.parquet")
    assert table.column("key").to_pylist() == [f"digits:{number}" for number in result.coreset.ids]
    assert table.schema.names == ["id", "key", "label", "stage", "score"]
