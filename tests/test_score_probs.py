"""`score`: probabilities of somebody's own models are scored as a run's own would be, and `select` chooses by them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import unseen_ray as ur
from unseen_ray.cli import main
from unseen_ray.config.score_columns import of_probabilities
from unseen_ray.core import scores

COUNT, CLASSES = 60, 4


def given(folder: Path, **arrays: np.ndarray) -> dict[str, str]:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: str(folder / f"{name}.npy") for name in arrays}


def distributions(seed: int = 0) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).normal(size=(COUNT, CLASSES))
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)


LABELS = np.random.default_rng(9).integers(0, CLASSES, COUNT)


def test_arrays_are_scored_as_files_are(tmp_path: Path) -> None:
    first, second = distributions(), distributions(1)
    files = given(tmp_path, first=first, second=second, labels=LABELS, folds=np.arange(COUNT) % 3)
    for name, of_files, of_arrays in (
        ("one", [files["first"]], first),
        ("two", [files["first"], files["second"]], [first, second]),
    ):
        by_files = ur.score(of_files, files["labels"], out=tmp_path / f"{name}-files")
        by_arrays = ur.score(of_arrays, LABELS, out=tmp_path / f"{name}-arrays")
        assert {**by_files, "out": ""} == {**by_arrays, "out": ""}
        tables = [
            ur.load(ur.select(each["out"], keep=0.5, out=f"{each['out']}-half").path).scores
            for each in (by_files, by_arrays)
        ]
        assert tables[0].equals(tables[1])
    folds = ur.score(first, LABELS.tolist(), folds=np.arange(COUNT) % 3, out=tmp_path / "folds")
    assert folds["votes"] == 1
    np.save(tmp_path / "again-labels.npy", LABELS + 1)
    with pytest.raises(ur.ConfigError, match=r"again-labels\.npy holds other labels"):
        ur.score(first, LABELS, out=tmp_path / "again")
    with pytest.raises(ur.DataError, match=r"probs\[1\] holds float32 of shape \(60,\)"):
        ur.score([first, first[:, 0]], LABELS, out=tmp_path / "wrong")
    with pytest.raises(ur.DataError, match="folds holds float64 of shape"):
        ur.score(first, LABELS, folds=np.ones(3), out=tmp_path / "wrong folds")


def test_one_file_is_scored_and_chosen_by(tmp_path: Path) -> None:
    probs = distributions()
    files = given(tmp_path, probs=probs, labels=LABELS)
    values = ur.score([files["probs"]], files["labels"], out=tmp_path / "scored")
    assert values["samples"] == COUNT and values["classes"] == CLASSES and values["votes"] == 1
    assert values["accuracy"] == pytest.approx((probs.argmax(axis=1) == LABELS).mean())
    chosen = ur.select(tmp_path / "scored", keep=0.5, score="margin", policy="top", out=tmp_path / "half")
    told = [name for name in scores.__all__ if of_probabilities(getattr(scores, name))]
    assert set(scores.__all__) - set(told) == {"grand"}
    for name in told:
        wanted = getattr(scores, name)(np.log(probs), LABELS)
        np.testing.assert_allclose(chosen.scores.column(name).to_numpy(), wanted, rtol=1e-5, atol=1e-6)
    margins = chosen.scores.column("margin").to_numpy()
    assert set(chosen.coreset.ids.tolist()) == set(np.argsort(-margins)[:30].tolist())
    assert ur.export(chosen, tmp_path / "kept.txt") == 30
    assert (tmp_path / "kept.txt").read_text().splitlines()[0] == f"labels.npy:{chosen.coreset.ids[0]}"


def test_certain_samples_are_told_apart(tmp_path: Path) -> None:
    logits = np.random.default_rng(5).normal(size=(COUNT, CLASSES))
    logits[np.arange(COUNT), LABELS] += np.linspace(10, 30, COUNT)
    probs = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    files = given(tmp_path, probs=probs, labels=LABELS)
    ur.score(files["probs"], files["labels"], out=tmp_path / "scored")
    for rule in ("mean", "mean_prob"):
        found = ur.select(tmp_path / "scored", keep=0.5, combine=rule, out=tmp_path / rule).scores
        for name in ("margin", "least_confidence", "loss", "el2n", "label_margin"):
            assert len(np.unique(found.column(name).to_numpy())) == COUNT, (rule, name)


def test_rows_that_do_not_quite_sum_to_one_score_within_the_range(tmp_path: Path) -> None:
    exact, labels = distributions(), LABELS.copy()
    exact[:3] = [[0.5, 0.5, 0, 0], [0.25] * 4, [0, 0, 1, 0]]
    labels[2] = 0
    rounded = exact * np.linspace(0.991, 1.009, COUNT)[:, None].astype(np.float32)
    found = []
    for name, probs in (("exact", exact), ("rounded", rounded), ("half", exact.astype(np.float16))):
        files = given(tmp_path, probs=probs, labels=labels)
        ur.score(files["probs"], files["labels"], out=tmp_path / name)
        found.append(ur.select(tmp_path / name, keep=0.5, out=tmp_path / f"{name}-half").scores)
    for column, highest in {
        "margin": 1,
        "least_confidence": 0.75,
        "entropy": np.log(4),
        "el2n": 2**0.5,
        "label_margin": 2,
    }.items():
        values = [table.column(column).to_numpy() for table in found]
        assert all(each.min() >= 0 and each.max() <= highest * (1 + 1e-6) for each in values), column
        np.testing.assert_allclose(values[1], values[0], rtol=1e-4, atol=1e-6)


def test_several_files_are_votes_and_a_row_of_nan_is_none(tmp_path: Path) -> None:
    """Three models, each scoring what the other two were not trained on: two votes a sample."""
    answers = [distributions(seed) for seed in range(3)]
    for number, probs in enumerate(answers):
        probs[np.arange(COUNT) % 3 == number] = np.nan
    files = given(tmp_path, a=answers[0], b=answers[1], c=answers[2], labels=LABELS)
    values = ur.score([files["a"], files["b"], files["c"]], files["labels"], out=tmp_path / "scored")
    assert values["votes"] == 2
    single = [np.where(np.isnan(probs[:, 0]), np.nan, scores.entropy(np.log(probs), LABELS)) for probs in answers]
    mean = ur.select(tmp_path / "scored", keep=0.5, out=tmp_path / "mean").scores
    np.testing.assert_allclose(mean.column("entropy").to_numpy(), np.nanmean(single, axis=0), rtol=1e-5)
    pooled = ur.select(tmp_path / "scored", keep=0.5, combine="mean_prob", out=tmp_path / "pooled").scores
    wanted = scores.entropy(np.log(np.nanmean(answers, axis=0)), LABELS)
    np.testing.assert_allclose(pooled.column("entropy").to_numpy(), wanted, rtol=1e-4)
    ranked = ur.select(tmp_path / "scored", keep=0.5, combine="rank_mean", out=tmp_path / "ranked").scores
    assert 0 < ranked.column("entropy").to_numpy().min() < ranked.column("entropy").to_numpy().max() < 1


def ref_disagreement(votes: list[np.ndarray]) -> np.ndarray:
    """(N,) mutual information of class and model, sample by sample: the mean divergence of a vote from the mean of the votes."""
    stack = np.stack(votes).astype(np.float64)
    mean = stack.mean(axis=0)
    return np.array([np.mean([np.sum(p * np.log(p / mean[i])) for p in stack[:, i]]) for i in range(len(mean))])


def test_disagreement_is_what_the_votes_contradict_each_other_in(tmp_path: Path) -> None:
    answers = [distributions(seed) for seed in range(3)]
    for each in answers[1:]:
        each[:5] = answers[0][:5]
    files = given(tmp_path, a=answers[0], b=answers[1], c=answers[2], labels=LABELS)
    paths = [files[name] for name in "abc"]
    ur.score(paths, files["labels"], out=tmp_path / "scored", score="disagreement")
    for rule in ("mean", "rank_mean", "mean_prob"):
        chosen = ur.select(tmp_path / "scored", keep=0.5, combine=rule, policy="top", out=tmp_path / rule)
        found = chosen.scores.column("disagreement").to_numpy()
        np.testing.assert_allclose(found, ref_disagreement(answers), rtol=1e-4, atol=1e-6)
        assert (found[:5] < 1e-6).all() and found.max() <= np.log(3)
        assert set(chosen.coreset.ids.tolist()) == set(np.argsort(-found)[:30].tolist())
    with pytest.raises(
        ur.ConfigError, match="score disagreement compares the predictions of several models, and each sample has one"
    ):
        ur.score(paths[:1], files["labels"], out=tmp_path / "one", score="disagreement")
    assert not (tmp_path / "one").exists()


def test_disagreement_in_a_run(tmp_path: Path) -> None:
    fields = {
        "source": {"use": "digits", "limit": 300},
        "keep": 0.4,
        "policy": "top",
        "fit": "tests.plugs:centroids",
        "executor": "local",
    }
    run = ur.prune(ur.PruneConfig(**fields, folds=3, score="disagreement", out=tmp_path / "run"))
    beside = ur.prune(ur.PruneConfig(**fields, folds=3, also_score=["disagreement"], out=tmp_path / "beside"))
    values = run.scores.column("disagreement").to_numpy()
    assert values.min() >= 0 and 0 < values.max() <= np.log(2)
    assert run.scores.column("disagreement") == beside.scores.column("disagreement")
    assert "disagreement" not in ur.prune(ur.PruneConfig(**fields, folds=3, out=tmp_path / "plain")).scores.column_names
    assert set(run.coreset.ids.tolist()) == set(run.scores.column("id").to_numpy()[np.argsort(-values)[:120]].tolist())
    bills = [
        ur.plan_values(ur.PruneConfig(**fields, folds=3, score=name))["disk_bytes"]
        for name in ("disagreement", "entropy")
    ]
    assert bills[0] - bills[1] == 2 * 300 * 10 * 4, "the plan shows what N x C of two votes takes"
    for more in ({"folds": 2}, {"folds": 3, "schedule": [0.2, 0.4]}, {"mode": "fitting"}, {"train_on": "complement"}):
        with pytest.raises(
            ur.ConfigError, match="score disagreement compares a sample's votes, and some samples have one vote"
        ):
            ur.prune(ur.PruneConfig(**fields, **more, score="disagreement", out=tmp_path / "refused"))
    with pytest.raises(ur.ConfigError, match="disagreement takes no option 'base'"):
        ur.prune(ur.PruneConfig(**fields, score={"use": "disagreement", "base": 2}, out=tmp_path / "refused"))


def test_folds_part_one_file_among_its_models(tmp_path: Path) -> None:
    probs, folds = distributions(), np.arange(COUNT) % 5
    files = given(tmp_path, probs=probs, labels=LABELS, folds=folds)
    ur.score([files["probs"]], files["labels"], folds=files["folds"], combine="rank_mean", out=tmp_path / "scored")
    found = ur.select(tmp_path / "scored", keep=0.5, out=tmp_path / "half").scores.column("entropy").to_numpy()
    for fold in range(5):
        assert np.sort(found[folds == fold]).tolist() == pytest.approx([(r + 0.5) / 12 for r in range(12)])


def test_with_the_source_the_pruned_data_can_be_exported(tmp_path: Path) -> None:
    labels = load_digits().target
    probs = np.full((len(labels), 10), 0.05, np.float64)
    probs[np.arange(len(labels)), labels] = 0.55
    files = given(tmp_path, probs=probs, labels=labels)
    ur.score([files["probs"]], files["labels"], source="digits", out=tmp_path / "scored")
    chosen = ur.select(tmp_path / "scored", keep=0.1, policy="random", out=tmp_path / "tenth")
    assert ur.export(chosen, tmp_path / "pruned") == 180
    assert Path(ur.report(chosen)).exists()


def test_a_choice_by_given_probabilities_is_measured_and_not_made_again_by_other_models(tmp_path: Path) -> None:
    labels = np.asarray(load_digits().target)
    probs = np.random.default_rng(0).dirichlet(np.ones(10), len(labels)).astype(np.float32)
    ur.score(probs, labels, out=tmp_path / "scored", source="digits")
    chosen = ur.select(tmp_path / "scored", keep=0.1, policy="top", score="loss", out=tmp_path / "tenth")
    for asked in ({"selections": 2}, {"against": ["fitting"]}):
        with pytest.raises(ur.ConfigError, match=r"probabilities that you gave; .* Leave both out"):
            ur.evaluate(chosen, test="digits", **asked)
    fast = {"use": "quick", "epochs": 1, "min_steps": 0}
    table = ur.evaluate(
        chosen, test="digits", seeds=1, against=["random", "full"], model="small_cnn", recipe=fast, executor="local"
    )
    assert [arm.samples for arm in table.arms] == [180, 180, 1797]
    assert table.arms[0].choosing_s is None and table.break_even is None  # what the models cost is not known
    page = Path(ur.report(chosen)).read_text()
    assert "Scored by probabilities that were given, by models" in page and "was the cost of the choice" not in page


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = given(tmp_path, probs=distributions(), labels=LABELS)
    scored = ["score", "--probs", files["probs"], "--labels", files["labels"], "--out", str(tmp_path / "scored")]
    main([*scored, "--guard", "confident_learning"])
    assert "Scored 60 samples of 4 classes, each by 1 model" in capsys.readouterr().out
    assert "Name a new or empty folder" in refused(capsys, *scored)
    main(["select", str(tmp_path / "scored"), "--keep", "0.5", "--out", str(tmp_path / "half"), "--json"])
    values = json.loads(capsys.readouterr().out)
    assert values["kept"] == 30 and values["suspects"]["found"] > 0
    for command in ("report", "evaluate"):
        assert "holds scores and no coreset yet" in refused(capsys, command, str(tmp_path / "scored"))


def refused(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    """What a command says of a bad configuration."""
    with pytest.raises(SystemExit) as left:
        main(list(line))
    assert left.value.code == 2
    return capsys.readouterr().err


def spoilt(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {"probs": distributions(), "labels": LABELS, **changes}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            spoilt(probs=np.log(distributions())),
            r"row 0 of .*probs.npy is not a probability distribution: it holds -.* and 59 others|is no",
        ),
        (spoilt(probs=distributions()[:, 0]), r"holds float32 of shape \(60,\)\. Give floating-point prob"),
        (spoilt(probs=np.ones((60, 4), int)), r"holds int64 of shape \(60, 4\)"),
        (spoilt(probs=distributions()[:50]), r"has 50 rows, but there are 60 labels"),
        (spoilt(labels=np.array(3)), r"must be one integer per sample"),
        (spoilt(probs=np.full((60, 4), np.nan)), r"model 1 of 1 scores no sample"),
        (spoilt(labels=np.full(60, 7)), r"label 7, but the probabilities have 4 columns"),
        (spoilt(labels=np.array(["cat"] * 60)), r"must be one integer per sample"),
        (spoilt(labels=np.array([None] * 60, object)), r"labels.npy is not a .npy file of numbers"),
    ],
)
def test_files_that_are_not_what_they_should_be(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    files = given(tmp_path, **arrays)
    with pytest.raises(ur.DataError, match=message):
        ur.score([files["probs"]], files["labels"], out=tmp_path / "scored")
    assert not (tmp_path / "scored").exists()


@pytest.mark.parametrize("labels", [LABELS.astype(object), LABELS.astype(float), LABELS > 1, LABELS - 1])
def test_labels_that_are_none_are_not_written_in_the_place_of_the_right_ones(
    tmp_path: Path, labels: np.ndarray
) -> None:
    with pytest.raises(ur.DataError, match=r"labels are 0 to C - 1|must be one integer per sample"):
        ur.score(distributions(), labels, out=tmp_path / "scored")
    assert ur.score(distributions(), LABELS, out=tmp_path / "scored")["votes"] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("holdout", 0.2), ("repeats", 2), ("policy", "random"), ("keep", 0.3), ("recipe", "quick"), ("scoer", "margin")],
)
def test_fields_that_scoring_does_not_have_are_refused(tmp_path: Path, field: str, value: object) -> None:
    files = given(tmp_path, probs=distributions(), labels=LABELS)
    message = rf"^score takes no '{field}'; it takes out, source, save_probs, score, also_score, combine, guard, seed\..*`select`"
    with pytest.raises(ur.ConfigError, match=message) as caught:
        ur.score([files["probs"]], files["labels"], out=tmp_path / "scored", **{field: value})
    assert ("Did you mean 'score'?" in str(caught.value)) == (field == "scoer")
    assert not (tmp_path / "scored").exists()


def test_one_file_of_probabilities_needs_no_list(tmp_path: Path) -> None:
    files = given(tmp_path, probs=distributions(), labels=LABELS)
    assert ur.score(files["probs"], files["labels"], out=tmp_path / "scored", seed=3)["samples"] == COUNT


def test_samples_without_equally_many_votes_are_refused(tmp_path: Path) -> None:
    probs = distributions()
    probs[3] = np.nan
    files = given(tmp_path, probs=probs, labels=LABELS)
    with pytest.raises(
        ur.DataError, match=r"1 of 60 samples were scored by fewer models .* the first is row 3 with 0 of 1"
    ):
        ur.score([files["probs"]], files["labels"], out=tmp_path / "scored")
    assert not (tmp_path / "scored").exists()


def test_another_sources_labels_are_refused(tmp_path: Path) -> None:
    files = given(tmp_path, probs=distributions(), labels=LABELS)
    with pytest.raises(ur.DataError, match=r"has 60 rows, but there are 1797 labels"):
        ur.score([files["probs"]], files["labels"], source="digits", out=tmp_path / "scored")


def test_columns_in_another_order_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = np.arange(120) % 4
    probs = np.full((120, 4), 0.1)
    probs[np.arange(120), labels] = 0.7
    np.save(tmp_path / "y.npy", labels)
    for name, columns in {"right": [0, 1, 2, 3], "shuffled": [0, 2, 3, 1]}.items():
        np.save(tmp_path / f"{name}.npy", probs[:, columns])
        caplog.clear()
        ur.score([str(tmp_path / f"{name}.npy")], str(tmp_path / "y.npy"), out=str(tmp_path / f"run-{name}"))
        assert ("Column c must be class c" in caplog.text) == (name == "shuffled")


def test_a_rounding_below_zero_is_zero(tmp_path: Path) -> None:
    probs = np.full((8, 2), 0.5)
    np.save(tmp_path / "y.npy", np.arange(8) % 2)
    found = []
    for name, low in {"zero": 0.0, "rounded": -1e-9}.items():
        probs[3] = [low, 1 - low]
        np.save(tmp_path / f"{name}.npy", probs)
        ur.score([str(tmp_path / f"{name}.npy")], str(tmp_path / "y.npy"), out=str(tmp_path / name))
        found.append(
            ur.select(tmp_path / name, keep=0.5, out=tmp_path / f"{name}-half").scores.column("entropy").to_numpy()
        )
    assert np.allclose(*found, atol=1e-6)
