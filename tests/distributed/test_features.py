"""Features of one model for all samples: stored on demand, handed to the policies that name them, in every stage and by select."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import unseen_ray as ur
from unseen_ray.errors import StorageError

FIELDS = {
    "source": {"use": "tests.plugs:doubled_digits", "count": 150},
    "keep": 0.5,
    "executor": "local",
    "folds": 3,
    "recipe": {"epochs": 4, "min_steps": 0, "precision": "float32"},
}


def run(out: Path, **fields: object) -> ur.PruneResult:
    return ur.prune(ur.PruneConfig(**{**FIELDS, "out": str(out), **fields}))


def features_of(result: ur.PruneResult) -> np.ndarray:
    name = "stage-00/features.npy"
    return result.run.folder.read_array(name, result.manifest.files[name])


@pytest.mark.parametrize(
    "fields", [{}, {"train_on": "complement"}, {"mode": "fitting", "folds": None}, {"schedule": [0.3, 0.5]}]
)
def test_one_model_describes_every_sample(tmp_path: Path, fields: dict[str, object]) -> None:
    """Each image stands twice in the source: trained on or not, in whatever fold, its two copies have the same features."""
    given = {name: value for name, value in {**FIELDS, **fields, "out": str(tmp_path)}.items() if value is not None}
    features = features_of(ur.prune(ur.PruneConfig(**given, save_features=True)))
    assert features.dtype == np.float16 and features.shape == (300, 128)
    np.testing.assert_allclose(features[:150], features[150:], rtol=1e-2, atol=1e-3)
    assert len(np.unique(features[:150], axis=0)) > 140


def test_features_change_neither_scores_nor_ids(tmp_path: Path) -> None:
    plain, kept = run(tmp_path / "plain"), run(tmp_path / "kept", save_features=True)
    assert plain.scores == kept.scores
    assert plain.coreset.ids.tolist() == kept.coreset.ids.tolist()
    assert not (tmp_path / "plain" / "stage-00" / "features.npy").exists()


@pytest.mark.parametrize("policy", ["k_center", "d2", {"use": "window", "start": "auto"}])
def test_policies_over_features_choose_in_a_run_and_by_select(tmp_path: Path, policy: object) -> None:
    result = run(tmp_path / "run", policy=policy, save_features=True)
    assert len(result.coreset) == 150
    again = ur.select(result, keep=0.5, out=tmp_path / "again")
    assert again.coreset.ids.tolist() == result.coreset.ids.tolist()
    other = ur.select(run(tmp_path / "top", save_features=True), keep=0.5, policy=policy, out=tmp_path / "other")
    assert other.coreset.ids.tolist() == result.coreset.ids.tolist()


def test_k_center_keeps_no_copies_while_there_are_others(tmp_path: Path) -> None:
    result = run(tmp_path, policy="k_center", keep=0.4)
    images = result.coreset.ids % 150
    assert len(np.unique(images)) > 0.9 * len(images)


def test_later_stages_know_what_is_kept(tmp_path: Path) -> None:
    result = run(tmp_path, policy="tests.plugs:far_from_kept", schedule=[0.2, 0.4], keep=0.4)
    images = result.coreset.ids % 150
    first, second = (set(images[result.coreset.stages == stage].tolist()) for stage in (0, 1))
    assert first and second and not first & second


def test_without_stored_features_select_says_what_to_do(tmp_path: Path) -> None:
    plain = run(tmp_path / "run")
    with pytest.raises(ur.ConfigError, match=r"policy d2 reads the features of a model, .* else prune in a new folder"):
        ur.select(plain, keep=0.5, policy="d2", out=tmp_path / "d2")
    with pytest.raises(ur.ConfigError, match="save_features: true"):
        ur.select(plain, keep=0.5, policy={"use": "window", "start": "auto"}, out=tmp_path / "window")
    with pytest.raises(ur.ConfigError, match="save_features: true"):
        run(tmp_path / "auto", policy={"use": "window", "start": "auto"})
    with pytest.raises(
        ur.ConfigError, match="policy k_center reads the features of a model, but fit gives only probabilities"
    ):
        given = {name: value for name, value in FIELDS.items() if name != "recipe"}
        ur.prune(ur.PruneConfig(**given, out=str(tmp_path / "fit"), fit="tests.plugs:centroids", policy="k_center"))
    with pytest.raises(ur.ConfigError, match="save_features has no effect with fit"):
        ur.PruneConfig(source="digits", keep=0.5, fit="tests.plugs:centroids", save_features=True)


def test_damaged_features_are_found(tmp_path: Path) -> None:
    result = run(tmp_path / "run", save_features=True)
    path = tmp_path / "run" / "stage-00" / "features.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"features\.npy"):
        ur.select(result, keep=0.5, policy="d2", out=tmp_path / "d2")


@pytest.mark.ray
@pytest.mark.slow
def test_local_and_ray_give_the_same(tmp_path: Path, session: None) -> None:
    fields = {"policy": "d2", "score": "tdds", "schedule": [0.3, 0.5]}
    local = run(tmp_path / "local", **fields)
    spread = run(tmp_path / "ray", **{**fields, "executor": "ray"})
    assert local.scores == spread.scores
    assert (features_of(local) == features_of(spread)).all()
    assert local.coreset.ids.tolist() == spread.coreset.ids.tolist()
