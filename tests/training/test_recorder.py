"""Scores over epochs as a training records them: what the model said after each epoch, however often it was interrupted."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import unseen_ray as ur
from tests.core.test_dynamics import reduced
from tests.training.fitting import CPU, net, prepare, recipe
from unseen_ray.config.recipe import Recipe
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.core import dynamics
from unseen_ray.core.scores import grand
from unseen_ray.errors import FitError
from unseen_ray.training.hardware import numerics
from unseen_ray.training.loop import trajectory_recorder as recorder
from unseen_ray.training.loop.fit import fit
from unseen_ray.training.loop.predict import predict
from unseen_ray.training.loop.trajectory_recorder import TrajectoryRecorder

SAMPLES = 300  # that are trained on
UNSEEN = np.arange(600, 900)
NAMES = list(dynamics.__all__)
EPOCHS = 10


def scored(every: int = 1, **fields: object) -> ur.PruneConfig:
    return ur.PruneConfig(**{"source": "digits", "keep": 0.5, "score_every": every, **fields})


def record(
    folder: Path | None,
    plan_of: Recipe,
    *,
    every: int = 1,
    stop_after: int | None = None,
    also: Sequence[str] = tuple(NAMES),
) -> tuple[nn.Module, dict[str, np.ndarray], list[int]]:
    """A fit that is recorded: its model, the scores over epochs of 300 unseen digits, and the epochs that it told of."""
    with numerics(1, True, CPU):
        model, feed, plan, checkpoints = prepare(folder, plan_of, CPU, samples=SAMPLES)
        labels = prepare_labels()
        scores = ResolvedRun(scored(every, also_score=list(also), score="tdds")).scores
        sizes = {"epochs": plan.epochs, "num_classes": 10}
        recording = TrajectoryRecorder(model, feed, UNSEEN, labels, plan_of, scores=scores, **sizes)
        told = [s.epoch for s in itertools.islice(fit(model, feed, plan, checkpoints, recording), stop_after)]
        if stop_after is not None:
            return model, {}, told
        for answers in predict(model, feed, UNSEEN, plan_of):
            recording.add(answers)
    return model, recording.columns(), told


@functools.cache
def undisturbed(every: int) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """What a fit that nothing interrupts records."""
    return record(None, recipe(EPOCHS), every=every)[:2]


def prepare_labels() -> np.ndarray:
    from unseen_ray.data.sources.registry import open_source, source_ref

    return open_source(source_ref("digits")).info.labels_N[UNSEEN]


def said(plan_of: Recipe) -> tuple[nn.Module, np.ndarray]:
    """The same fit unrecorded, and (T, M, C) log-probabilities of the unseen digits after each epoch."""
    with numerics(1, True, CPU):
        model, feed, plan, _ = prepare(None, plan_of, CPU, samples=SAMPLES)
        each = []
        for _ in fit(model, feed, plan):
            each.append(np.concatenate([a.log_probs_BC for a in predict(model, feed, UNSEEN, plan_of)]))
    return model, np.stack(each)


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("every", [1, 3])
def test_columns_are_of_what_the_model_said_after_each_epoch_and_the_training_is_the_same(every: int) -> None:
    model, columns, _ = record(None, recipe(EPOCHS), every=every)
    unrecorded, log_probs = said(recipe(EPOCHS))
    assert_same_weights(model, unrecorded)
    assert set(columns) == set(NAMES)
    for name in NAMES:
        wanted = reduced(getattr(dynamics, name)(), log_probs, prepare_labels(), every=every, batch=128)
        np.testing.assert_array_equal(columns[name], wanted)
        assert wanted.std() > 0


@pytest.mark.parametrize("stop_after", [1, 3, 7])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("carried", [True, False], ids=["carried", "looked up again"])
def test_an_interrupted_one_goes_on_to_the_same_bits(
    tmp_path: Path,
    stop_after: int,
    every: int,
    carried: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the answers of the epoch before in the checkpoint, and, where they are many, given again by its model."""
    caplog.set_level("INFO")
    monkeypatch.setattr(recorder, "_CARRIED", recorder._CARRIED if carried else 0)
    plan_of = recipe(EPOCHS)
    whole, wanted = undisturbed(every)
    _, _, before = record(tmp_path, plan_of, every=every, stop_after=stop_after + 1)
    assert before == list(range(1, stop_after + 2))
    model, columns, told = record(tmp_path, plan_of, every=every)
    assert f"of {EPOCHS}" in caplog.text and "resuming after epoch" in caplog.text
    assert (carried or told[0] % every == 0) and told[-1] == EPOCHS
    assert_same_weights(model, whole)
    for name in NAMES:
        np.testing.assert_array_equal(columns[name], wanted[name])


def test_a_checkpoint_with_other_scores_is_trained_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan_of = recipe(EPOCHS)
    record(tmp_path, plan_of, stop_after=4, also=["aum"])
    _, columns, told = record(tmp_path, plan_of)
    assert told == list(range(1, EPOCHS + 1))
    assert "other scores over epochs" in caplog.text
    _, wanted = undisturbed(1)
    np.testing.assert_array_equal(columns["forgetting"], wanted["forgetting"])


def test_last_layer_grand_is_the_length_of_the_gradient() -> None:
    with numerics(1, True, CPU):
        model, feed, plan, _ = prepare(None, recipe(2), CPU)
        list(fit(model, feed, plan))
        ids, labels = UNSEEN[:40], torch.from_numpy(prepare_labels()[:40])
        (answers,) = predict(model, feed, ids, recipe(2))
        values = grand(answers.log_probs_BC, labels.numpy(), head_norm_N=answers.head_norm_B)
        ((_, inputs),) = feed.scoring(ids, 40)
        head = model[-1]
        lengths = []
        for row in range(40):
            model.zero_grad()
            nn.functional.cross_entropy(model(inputs[row : row + 1]), labels[row : row + 1]).backward()
            lengths.append(float(torch.cat([head.weight.grad.flatten(), head.bias.grad]).norm()))
    np.testing.assert_allclose(values, lengths, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size", [40, 33, 7])
def test_grand_does_not_depend_on_the_batch(size: int) -> None:
    """A loss that is the mean of a batch makes samples of a short last one look harder; seen in other code."""
    with numerics(1, True, CPU):
        model, feed, _, _ = prepare(None, recipe(1), CPU)
        labels = prepare_labels()[:40]
        (whole,) = predict(model, feed, UNSEEN[:40], recipe(1))
        parts = list(predict(model, feed, UNSEEN[:40], recipe(1, batch_size=size)))
        lengths = [len(part.ids_B) for part in parts]
        norms = np.concatenate([part.head_norm_B for part in parts])
    assert sum(lengths) == 40
    np.testing.assert_allclose(norms, whole.head_norm_B, rtol=1e-5)
    np.testing.assert_allclose(
        grand(np.concatenate([p.log_probs_BC for p in parts]), labels, head_norm_N=norms),
        grand(whole.log_probs_BC, labels, head_norm_N=whole.head_norm_B),
        rtol=1e-4,
    )


def run(out: Path, **fields: object) -> ur.PruneResult:
    fields = {"source": {"use": "digits", "limit": 300}, "keep": 0.5, "out": str(out), "executor": "local", **fields}
    if "fit" not in fields:
        fields.setdefault("recipe", {"epochs": 5, "min_steps": 0})
        fields.setdefault("scoring", {"share": 1})
    return ur.prune(ur.PruneConfig(**fields))


@pytest.mark.parametrize("mode", ["unseen", "fitting"])
def test_every_score_is_there_in_both_modes(tmp_path: Path, mode: str) -> None:
    from unseen_ray.core import scores

    result = run(tmp_path, score="forgetting", policy="top", also_score=[*scores.__all__, *NAMES], mode=mode)
    for name in (*scores.__all__, *NAMES):
        values = result.scores.column(name).to_numpy()
        assert np.isfinite(values).all(), name
        assert values.std() > 0, name
    kept = np.isin(result.scores.column("id").to_numpy(), result.coreset.ids)
    forgotten = result.scores.column("forgetting").to_numpy()
    assert forgotten[kept].min() >= forgotten[~kept].max()


def test_scores_of_the_last_epoch_alone_cost_no_pass_and_store_no_dynamics(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain")
    assert not set(NAMES) & set(plain.scores.column_names)
    both = run(tmp_path / "both", score_every=2)
    assert set(NAMES) - set(dynamics.ONLY_NAMED) < set(both.scores.column_names)
    for name in ("entropy", "el2n", "grand", "p_label"):
        assert both.scores.column(name) == plain.scores.column(name)


def test_variants_by_name(tmp_path: Path) -> None:
    variants = [
        {"use": "aum", "space": "prob", "reduce": "sum"},
        {"use": "forgetting", "never_learned": "zero"},
        {"use": "least_confidence", "space": "logit"},
        {"use": "el2n", "epochs": 3},
    ]
    result = run(tmp_path, score=variants[0], also_score=variants[1:])
    assert {"aum", "forgetting", "least_confidence", "el2n"} < set(result.scores.column_names)
    assert result.scores.column("forgetting").to_numpy().max() < 5
    assert result.scores.column("least_confidence").to_numpy().max() < 0


def test_the_guard_by_area_under_the_margin_stores_what_it_reads(tmp_path: Path) -> None:
    result = run(tmp_path, guard={"use": "aum", "cut": 0.1}, also_score="none")
    suspects, areas = (result.scores.column(name).to_numpy() for name in ("suspect", "aum"))
    assert suspects.sum() == 30
    assert areas[suspects].min() >= areas[~suspects].max()
    assert not np.isin(result.scores.column("id").to_numpy()[suspects], result.coreset.ids).any()


def test_own_scores_over_epochs(tmp_path: Path) -> None:
    result = run(tmp_path, score="tests.plugs:waver", also_score=["correctness"])
    assert result.scores.column("waver").to_numpy().std() > 0


class NoHead(nn.Module):
    """Ends in a convolution."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, num_classes, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).flatten(1)


def test_a_model_without_a_last_linear_layer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run(tmp_path / "all", model=NoHead)
    assert "grand" not in result.scores.column_names
    with pytest.raises(FitError, match="score grand reads what enters the last linear layer, and this model has none"):
        run(tmp_path / "grand", model=NoHead, score="grand")
    with pytest.raises(FitError, match="features are needed"):
        run(tmp_path / "features", model=NoHead, save_features=True)


def test_the_net_of_these_tests_has_a_head() -> None:
    assert isinstance(net()[-1], nn.Linear)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score": "tdds", "fit": "tests.plugs:centroids"}, "score tdds needs predictions after every epoch, but fit"),
        ({"score": "grand", "fit": "tests.plugs:centroids"}, "score grand needs more than probabilities, but fit"),
        ({"score": "aum", "mode": "fitting", "gpus_per_fit": 2, "executor": "ray"}, "cannot be computed for a model that gpus_per_fit=2"),
        ({"score_every": 2, "also_score": "none"}, "score_every=2 has no effect: no score over epochs is stored"),
        ({"score_every": 0}, "score_every=0 is not allowed"),
        ({"score": "tdds", "combine": "mean_prob"}, "combine=mean_prob does not work for score tdds, which the choice reads"),
        ({"score": {"use": "least_confidence", "space": "logit"}, "combine": "mean_prob"}, "does not work for score least_confidence"),
        ({"score": {"use": "aum", "spce": "prob"}}, "score over epochs: aum takes no option 'spce'.*Did you mean 'space'"),
        ({"score": "tests.plugs:returns_nothing"}, "takes no log-probabilities and returned a NoneType"),
        ({"score": "tdds", "recipe": {"epochs": 2, "min_steps": 0}}, "needs 3 scored epochs, but there are 2"),
        ({"score": {"use": "el2n", "epochs": [20]}}, "asks for epoch 20"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused_before_anything_starts(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ur.ConfigError, match=message):
        run(tmp_path / "out", **fields)
    assert not (tmp_path / "out" / "stage-00").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guard": "aum", "combine": "mean_prob"}, "does not work for score aum, which the guard reads"),
        ({"guard": "aum", "fit": "tests.plugs:centroids"}, "score aum needs predictions after every epoch, but fit"),
        ({"score_every": 1, "combine": "rank_mean", "policy": {"use": "beta", "over": "epochs"}}, "as the mean of votes"),
        ({"score_every": 1, "combine": "mean_prob", "policy": {"use": "beta", "over": "epochs"}}, "as the mean of votes"),
        ({"score": {"use": "grand", "epochs": 2}}, "score grand needs more than probabilities, and over epochs only these are kept"),
        ({"score": {"use": "least_confidence", "space": "logit", "epochs": 2}}, "needs more than probabilities"),
        ({"score": {"use": "least_confidence", "space": "logit"}, "fit": "tests.plugs:centroids"}, "more than probabilities, but fit"),
        ({"score": "forgetting", "score_every": 50}, "needs 2 scored epochs, but there is 1"),
    ],
)  # fmt: skip
def test_what_would_fail_after_the_training_is_refused_before(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ur.ConfigError, match=message):
        run(tmp_path / "out", **fields)
    assert not (tmp_path / "out" / "stage-00").exists()


def test_scores_that_nobody_asks_for_are_left_out_where_the_epochs_do_not_suffice(tmp_path: Path) -> None:
    result = run(tmp_path, score="aum", recipe={"epochs": 2, "min_steps": 0})
    names = set(result.scores.column_names)
    assert {"aum", "correctness", "forgetting", "dual"} < names and "tdds" not in names


def test_variants_are_chosen_by_as_they_are_stored(tmp_path: Path) -> None:
    asked = {"use": "aum", "space": "prob"}
    result = run(tmp_path / "run", score=asked, also_score=["el2n", {"use": "least_confidence", "space": "logit"}])
    again = ur.select(result, keep=0.5, out=tmp_path / "again", score=asked)
    assert again.coreset.ids.tolist() == result.coreset.ids.tolist()
    for score in ("aum", {"use": "aum", "space": "logit"}, {"use": "aum", "nonsense": 3}):
        with pytest.raises(ur.ConfigError, match=r"is not the variant that .* stores as aum"):
            ur.select(result, keep=0.5, out=tmp_path / "other", score=score)
    with pytest.raises(ur.ConfigError, match="is not the variant"):
        ur.select(result, keep=0.5, out=tmp_path / "other", score={"use": "el2n", "epochs": 2})
    by_another = ur.select(result, keep=0.6, out=tmp_path / "by-another", score="el2n")
    back = ur.select(by_another, keep=0.5, out=tmp_path / "back", score=asked)
    assert back.coreset.ids.tolist() == result.coreset.ids.tolist()
    for score in ("aum", "least_confidence"):
        with pytest.raises(ur.ConfigError, match=rf"is not the variant that .* stores as {score}"):
            ur.select(by_another, keep=0.5, out=tmp_path / "other", score=score)


class Caching(nn.Module):
    """Keeps a table that it makes in its forward pass, as rotary embeddings are made."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.table = torch.zeros(0)
        self.head = nn.Linear(192, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.table) < len(x):
            self.table = torch.ones(len(x), 1) * 0.5
        return self.head(x.flatten(1).float() * self.table[: len(x)])


def test_a_model_that_keeps_what_it_made_while_scoring_is_trained_on(tmp_path: Path) -> None:
    assert run(tmp_path, model=Caching, score="aum").scores.column("aum").to_numpy().std() > 0


def test_a_series_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FitError, match=r"score one_number returned \(\) for \d+ samples; its series must return one number each"
    ):
        run(tmp_path, score="tests.plugs:one_number")


def test_keeping_less_than_before_repeats_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = run(tmp_path / "first", save_features=True)
    caplog.set_level("INFO")
    again = run(tmp_path / "again", reuse=[str(tmp_path / "first")])
    assert caplog.text.count("was finished before; its scores are reused") == 4
    assert again.scores == first.scores
    run(tmp_path / "first", save_probs=True, save_features=True)
    assert "save_probs was not set when the run was made" in caplog.text


def test_folds_on_both_sides_of_a_batch_train_alike(tmp_path: Path) -> None:
    """Of 32, 32, 32 and 31 samples, the last one's model would take half the steps, or twice the epochs with `min_steps`."""
    fields = {"source": {"use": "digits", "limit": 127}, "executor": "local", "keep": 0.5, "policy": "top"}
    lengths = {"epochs": 2, "min_steps": 8, "batch_size": 16}, {"epochs": 12, "min_steps": 0, "batch_size": 16}
    for recipe_, steps, epochs in zip(lengths, (8, 24), (4, 12), strict=True):
        config = ur.PruneConfig(
            **fields,
            folds=4,
            recipe=recipe_,
            score="forgetting",
            also_score=["entropy"],
            out=str(tmp_path / str(steps)),
        )
        planned = {(task.trained, task.steps, task.epochs) for task in ur.plan(config).run.tasks}
        assert planned == {(32, steps, epochs), (31, steps, epochs)}
        ur.prune(config)
        files = sorted((tmp_path / str(steps) / "stage-00" / "votes").glob("*.parquet"))
        votes = [pq.read_table(file) for file in files]
        assert [len(each) for each in votes] == [95, 95, 95, 96]
        # samples that were never right have the number of scored epochs, in each fold some
        assert {pc.max(each["forgetting"]).as_py() for each in votes} == {epochs}
        unsure = [pc.mean(each["entropy"]).as_py() for each in votes]
        assert unsure[-1] < 1.5 * max(unsure[:-1])  # with half the steps: twice as unsure


def test_an_epoch_is_common_where_sets_differ_by_a_sample_or_must_have_equally_many_epochs() -> None:
    by_epochs, by_steps = Recipe(epochs=15, min_steps=0), Recipe(epochs=15, min_steps=300)
    for sizes, over, common in (([450, 449], False, None), ([128, 127], False, 128), ([128, 127, 128], True, 128)):
        assert by_epochs.common_epoch(sizes, over_epochs=over) == common
    assert by_epochs.model_copy(update={"drop_last": False}).common_epoch([129, 128], over_epochs=False) == 128
    for asked, over, common in ((by_epochs, True, None), (by_steps, False, None), (by_steps, True, 300)):
        assert asked.common_epoch([900, 300], over_epochs=over) == common  # as groups divide samples
