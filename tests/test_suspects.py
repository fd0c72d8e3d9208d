"""A guard in a run: wrong labels are found out of fold, are not chosen, and can be guarded against afterwards too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

import unseen_ray as ur
from tests.conftest import png_bytes, write_parquet

COUNT = 800
FLIPPED = np.random.default_rng(0).random(COUNT) < 0.2
FIELDS: dict[str, Any] = {
    "policy": "top",
    "keep": 0.4,
    "score": "loss",
    "fit": "tests.plugs:centroids",
    "executor": "local",
}


def margins_above(label_margin_M: np.ndarray, *, most: float) -> np.ndarray:
    """A guard of a user's own."""
    return label_margin_M > most


def halved(label_margin_M: np.ndarray) -> np.ndarray:
    """One that answers for too few."""
    return label_margin_M[::2] > 1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digits, a fifth of them with the next digit's label."""
    digits = load_digits()
    images = [
        png_bytes(np.repeat((pixels * 15).astype(np.uint8)[:, :, None], 3, 2)) for pixels in digits.images[:COUNT]
    ]
    labels = np.where(FLIPPED, (digits.target[:COUNT] + 1) % 10, digits.target[:COUNT])
    path = write_parquet(tmp_path_factory.mktemp("data") / "flipped.parquet", labels.astype(np.int64), images)
    return str(path)


@pytest.fixture(scope="module")
def guarded(data: str, tmp_path_factory: pytest.TempPathFactory) -> ur.PruneResult:
    out = tmp_path_factory.mktemp("guarded") / "run"
    config = {**FIELDS, "guard": "confident_learning", "save_probs": True, "schedule": [0.2, 0.4]}
    return ur.prune(ur.PruneConfig(source=data, **config, out=out))


def share_of_wrong(result: ur.PruneResult) -> float:
    return float(FLIPPED[result.coreset.ids].mean())


def test_suspects_are_named_and_not_chosen(guarded: ur.PruneResult) -> None:
    suspects = guarded.scores.column("suspect").to_numpy()
    assert (suspects & FLIPPED).sum() / FLIPPED.sum() > 0.8
    assert (suspects & FLIPPED).sum() / suspects.sum() > 0.6
    assert share_of_wrong(guarded) < 0.12
    assert guarded.manifest.stages[0]["suspects"] == suspects.sum()
    values = ur.report_values(guarded)
    told = {shot["id"] for groups in values["images"].values() for shot in groups["suspected mislabelled"]}
    assert told and suspects[sorted(told)].all()
    assert not suspects[guarded.coreset.ids].any()  # in no stage
    assert (values["suspects"]["found"], values["suspects"]["kept"]) == (suspects.sum(), 0)
    page = Path(ur.report(guarded)).read_text()
    assert f"{suspects.sum():,} labels look wrong to guard confident_learning; 0 of these samples were kept" in page


def test_another_guard_is_chosen_afterwards(guarded: ur.PruneResult, tmp_path: Path) -> None:
    def chosen(name: str, guard: object) -> ur.PruneResult:
        return ur.select(guarded, keep=0.4, guard=guard, out=tmp_path / name)

    same, none = chosen("same", None), chosen("none", "none")
    assert same.scores.column("suspect").equals(guarded.scores.column("suspect"))
    assert "suspect" not in none.scores.column_names
    assert share_of_wrong(none) > 0.35 > 0.2 > share_of_wrong(same)
    plain, by_counts = (
        chosen("plain", {"use": "confident_learning", "plain": True}),
        chosen("counts", "prune_by_noise_rate"),
    )
    found = {run.scores.column("suspect").to_numpy().sum() for run in (plain, same, by_counts)}
    assert len(found) == 3 and share_of_wrong(by_counts) < share_of_wrong(none)
    by_margin = chosen("margin", {"use": "label_margin", "cut": 0.25})
    assert by_margin.scores.column("suspect").to_numpy().sum() == 200
    assert share_of_wrong(by_margin) < 0.2
    own = chosen("own", {"use": "tests.test_suspects:margins_above", "most": 1.0})
    assert (
        own.scores.column("suspect").to_numpy().tolist() == (own.scores.column("label_margin").to_numpy() > 1).tolist()
    )
    again = ur.select(same, keep=0.2, out=tmp_path / "again")
    assert again.scores.column("suspect").equals(same.scores.column("suspect"))
    with pytest.raises(
        ur.ConfigError, match=r"the run's guard is tests.test_suspects:margins_above: a user-defined function"
    ):
        ur.select(own, keep=0.2, out=tmp_path / "refused")


def test_what_a_guard_needs_and_a_run_does_not_hold_is_named(data: str, tmp_path: Path) -> None:
    bare = ur.prune(ur.PruneConfig(source=data, **FIELDS, also_score="none", out=tmp_path / "bare"))
    with pytest.raises(
        ur.ConfigError, match=r"guard=confident_learning needs the mean probabilities, which .* does not"
    ):
        ur.select(bare, keep=0.4, guard="confident_learning", out=tmp_path / "probs")
    with pytest.raises(
        ur.ConfigError, match=r"guard=label_margin reads the score label_margin, which .* does not hold"
    ):
        ur.select(bare, keep=0.4, guard="label_margin", out=tmp_path / "margin")
    lean = ur.prune(
        ur.PruneConfig(source=data, **FIELDS, also_score="none", guard="label_margin", out=tmp_path / "lean")
    )
    assert {"loss", "label_margin", "suspect"} <= set(lean.scores.column_names)
    assert share_of_wrong(lean) < share_of_wrong(bare)


def test_a_guard_that_leaves_too_few_gives_back_the_likeliest(
    guarded: ur.PruneResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = ur.select(guarded, keep=0.9, out=tmp_path / "most")
    assert len(result.coreset) == 720
    suspects = result.scores.column("suspect").to_numpy()
    p_label = result.scores.column("p_label").to_numpy()
    kept = np.isin(result.scores.column("id").to_numpy(), result.coreset.ids)
    assert p_label[suspects & kept].min() >= p_label[suspects & ~kept].max()
    assert f"the {(suspects & kept).sum()} likeliest suspects are kept with them" in caplog.text


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        (
            "confident",
            "guard='confident' is not a guard. Allowed: none, aum, confident_learning, label_margin, prune_by_noise_rate",
        ),
        ({"use": "label_margin", "cut": 2}, "guard option cut=2 is not in \\[0, 1\\)"),
        ({"use": "confident_learning", "plain": 1}, "guard option plain=1 is neither true nor false"),
        ({"use": "label_margin", "share": 0.1}, "takes no option 'share'; it takes cut"),
        ("tests.test_suspects:halved", r"guard tests.test_suspects:halved returned bool of shape \(400,\)"),
    ],
)
def test_a_bad_guard_is_refused(data: str, tmp_path: Path, guard: object, message: str) -> None:
    with pytest.raises(ur.UnseenError, match=message):
        ur.prune(ur.PruneConfig(source=data, **FIELDS, guard=guard, out=tmp_path / "run"))
