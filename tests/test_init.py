"""Start weights: what is loaded, what is refused, and that a run with them is a run of its own."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import unseen_ray as ur
from unseen_ray.cli.summary.plan import plan_lines
from unseen_ray.config.recipe import Recipe
from unseen_ray.config.resolved import ResolvedRun
from unseen_ray.core.samples.id_sets import ArrayIds
from unseen_ray.core.tasks import ScoreTask
from unseen_ray.data.sources.registry import open_source, source_ref
from unseen_ray.errors import ConfigError
from unseen_ray.runs.manifest_entries import Receipt
from unseen_ray.runs.tasks import Progress, make_job
from unseen_ray.storage.filesystem import sha256_of
from unseen_ray.training.initial_weights import start_from
from unseen_ray.training.models import small_cnn

QUICK = {"epochs": 2, "min_steps": 0, "precision": "float32"}
BASE: dict[str, Any] = {"source": {"use": "digits", "limit": 200}, "keep": 0.5, "folds": 2, "executor": "local"}


def weights(path: Path, seed: int = 7, classes: int = 10) -> Path:
    torch.manual_seed(seed)
    save_file({name: value.contiguous() for name, value in small_cnn(classes).state_dict().items()}, path)
    return path


def config(out: Path, init: Path | str | None, **fields: Any) -> ur.PruneConfig:
    start = {} if init is None else {"init": str(init), "init_saw": "none"}
    return ur.PruneConfig(**{**BASE, "out": str(out), "recipe": {**QUICK, **start}, **fields})


def entropies(result: ur.PruneResult) -> np.ndarray:
    return result.scores.column("entropy").to_numpy()


def loaded(model: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    start_from(model, Recipe(init=str(path), init_saw="none"))
    return model.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def init(tmp_path: Path) -> Path:
    return weights(tmp_path / "weights.safetensors")


def test_a_run_starts_from_the_weights_and_says_so(tmp_path: Path, init: Path) -> None:
    plain = ur.prune(config(tmp_path / "plain", None))
    begun = ur.prune(config(tmp_path / "begun", init, schedule=[0.3, 0.5]))
    again = ur.prune(config(tmp_path / "again", init, schedule=[0.3, 0.5]))
    assert not np.array_equal(entropies(plain), entropies(begun))
    assert np.array_equal(entropies(begun), entropies(again))
    assert np.array_equal(begun.coreset.ids, again.coreset.ids)
    recipe = begun.manifest.config["recipe"]
    digest = sha256_of(init.read_bytes())
    assert (recipe["init"], recipe["init_saw"], recipe["init_sha256"]) == (str(init), "none", digest)
    assert not any(name.startswith("init") for name in plain.manifest.config["recipe"])
    assert ur.report_values(begun)["init"] == {"file": str(init), "sha256": digest, "saw": "none"}
    page = Path(ur.report(begun)).read_text()
    assert digest in page and "never saw a sample of the source" in page
    assert "started from the weights" not in Path(ur.report(plain)).read_text()


def test_another_file_makes_another_run_and_another_place_does_not(tmp_path: Path, init: Path) -> None:
    other = weights(tmp_path / "other.safetensors", seed=8)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(init.read_bytes())
    scores = {name: entropies(ur.prune(config(tmp_path / name, path))) for name, path in
              {"init": init, "other": other, "moved": moved}.items()}  # fmt: skip
    assert np.array_equal(scores["init"], scores["moved"])
    assert not np.array_equal(scores["init"], scores["other"])


def test_start_weights_are_read_and_reported_once_a_run(
    tmp_path: Path, init: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> int:
        count = sum("every training starts from" in record.message for record in caplog.records)
        caplog.clear()
        return count

    with caplog.at_level("INFO"):
        done = ur.prune(config(tmp_path / "run", init, holdout=0.2))
        assert said() == 1
        ur.evaluate(done, seeds=1, against=("full",))
        assert said() == 1
        ur.plan(config(tmp_path / "run", init))
        assert said() == 1


def test_keys_of_fits_without_start_weights_are_what_they_were(init: Path, tmp_path: Path) -> None:
    ids, info = np.arange(50), open_source(source_ref("digits")).info
    task = ScoreTask(stage=1, index=0, fold=None, repeat=0, train=ArrayIds(ids), scored=ArrayIds(ids))

    def key(**recipe: Any) -> str:
        fields = {"source": "digits", "keep": 0.5, "out": "runs/x", "model": "small_cnn", "recipe": {**QUICK, **recipe}}
        job = make_job(ResolvedRun(ur.PruneConfig(**fields)), info)
        return job.fit_key(task, job.population(info.labels_N))

    begun = {"init": str(init), "init_saw": "none", "init_sha256": "a" * 64}
    assert key() == "97fde7b1c3998f44f08232649aa170d30d47605e9c20866725185b9c13a2e70d"
    assert key(**begun) != key()
    assert key(**begun) == key(**{**begun, "init": "elsewhere.safetensors"})
    assert key(**begun) != key(**{**begun, "init_sha256": "b" * 64})


def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path: Path, init: Path) -> None:
    whole = ur.prune(config(tmp_path / "whole", init))

    def stop(event: Any) -> None:
        if isinstance(event, Progress) and event.task == "stage 0 fold 1" and event.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ur.prune(config(tmp_path / "halves", init), on_event=stop)
    trained: list[str] = []
    again = ur.prune(
        config(tmp_path / "halves", init),
        on_event=lambda e: trained.append(e.task) if isinstance(e, Progress) else None,
    )
    assert "stage 0 fold 0" not in trained and "stage 0 fold 1" in trained
    assert np.array_equal(entropies(whole), entropies(again))


def test_a_file_that_changed_meanwhile_is_refused(tmp_path: Path, init: Path) -> None:
    def change(event: Any) -> None:
        if isinstance(event, Receipt):
            weights(init, seed=9)

    with pytest.raises(ConfigError, match=r"has SHA-256 .*was expected: it is not the file that the run began with"):
        ur.prune(config(tmp_path / "run", init), on_event=change)  # whoever trains fold 1 finds another file
    with pytest.raises(ConfigError, match="Restore that file, or start in a new folder"):
        ur.prune(config(tmp_path / "run", init))
    weights(init)
    assert len(ur.prune(config(tmp_path / "run", init)).coreset) == 100


def test_an_evaluation_starts_from_the_run_s_file_alone(tmp_path: Path, init: Path) -> None:
    run = {"holdout": 0.2, "schedule": None}
    begun = ur.prune(config(tmp_path / "begun", init, **run))
    plain = ur.prune(config(tmp_path / "plain", None, **run))
    found = [ur.evaluate(result, seeds=1, against=("full",)) for result in (begun, plain)]
    full = [next(arm for arm in table.arms if arm.name == "full") for table in found]
    assert full[0].class_accuracy != full[1].class_accuracy
    assert found[0].recipe["init_sha256"] == sha256_of(init.read_bytes())
    weights(init, seed=9)
    with pytest.raises(ConfigError, match="was expected"):
        ur.evaluate(begun.path, seeds=1, against=("random",))


def test_mode_unseen_needs_the_user_s_word(tmp_path: Path, init: Path) -> None:
    fields = {**BASE, "out": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"may have been trained on the samples.*recipe\.init_saw: none"):
        ur.PruneConfig(**fields, recipe={**QUICK, "init": str(init)})
    fields.pop("folds")
    fitted = ur.PruneConfig(**fields, mode="fitting", recipe={**QUICK, "init": str(init)})
    result = ur.prune(fitted)
    assert "init_saw" not in result.manifest.config["recipe"]
    assert "nothing is known about the data they saw" in Path(ur.report(result)).read_text()


@pytest.mark.parametrize("field", [{"init_saw": "none"}, {"init_sha256": "a" * 64}])
def test_a_word_on_no_weights_is_refused(field: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"has no effect without recipe\.init"):
        ur.PruneConfig(**BASE, recipe={**QUICK, **field})


def test_the_file_is_looked_for_before_anything_starts(tmp_path: Path, init: Path) -> None:
    begun: list[Any] = []
    with pytest.raises(ConfigError, match=r"recipe\.init=.*nowhere.* cannot be read"):
        ur.prune(config(tmp_path / "run", tmp_path / "nowhere.safetensors"), on_event=begun.append)
    assert not begun and not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="cannot be read"):
        ur.plan(config(tmp_path / "run", tmp_path / "nowhere.safetensors"))
    with pytest.raises(ConfigError, match="holds a key or a password"):
        config(tmp_path / "run", "s3://me:secret@bucket/weights.safetensors")


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(small_cnn(10).state_dict()))
    with pytest.raises(
        ConfigError, match=r"neither a safetensors file nor one from torch\.save; plain pickles are never read"
    ):
        ur.prune(config(tmp_path / "run", path))
    assert not (tmp_path / "run").exists()


class Planted:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, ("raise SystemExit('it was run')",)


@pytest.mark.parametrize("content", [small_cnn(10), {"a": Planted()}])
def test_objects_within_a_file_of_torch_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ConfigError, match="pickled objects, which are never loaded"):
        ur.prune(config(tmp_path / "run", tmp_path / "model.pt"))


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:200] + b"x" * 50 + data[250:]])
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_a_damaged_file_is_refused(tmp_path: Path, form: str, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "weights"
    state = {name: value.contiguous() for name, value in small_cnn(10).state_dict().items()}
    save_file(state, path) if form == "safetensors" else torch.save(state, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"holds no plain weights|neither a safetensors file"):
        start_from(small_cnn(10), Recipe(init=str(path)))


@pytest.mark.parametrize(
    "wrap", [dict, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": {"state_dict": s}}]
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("old", [False, True])
def test_wrappers_and_prefixes_are_taken_off(tmp_path: Path, wrap: Callable[..., Any], prefix: str, old: bool) -> None:
    torch.manual_seed(3)
    state = small_cnn(10).state_dict()
    path = tmp_path / "weights.pt"
    torch.save(wrap({prefix + name: v for name, v in state.items()}), path, _use_new_zipfile_serialization=not old)
    assert same(loaded(small_cnn(10), path), state)


def test_a_last_layer_of_another_width_starts_fresh(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = weights(tmp_path / "weights.safetensors", classes=100)
    torch.manual_seed(1)
    fresh = small_cnn(10)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with caplog.at_level(logging.INFO):
        after = loaded(fresh, path)
    assert "another last layer (100 outputs, not 10); that one starts fresh: 4.weight, 4.bias" in caplog.text
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert {"4.weight", "4.bias"}.isdisjoint(changed) and "0.0.weight" in changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {n: v for n, v in s.items() if n != "0.0.weight"}, r"it lacks: 0\.0\.weight\. Name the model"),
        (lambda s: {**s, "more": torch.ones(2), "and": torch.ones(1)}, "it has more: more, and|it has more: and, more"),
        (lambda s: {**s, "0.0.weight": torch.ones(2, 2)}, r"it has other shapes: 0\.0\.weight \(2, 2\) for \(32, 3, 3, 3\)"),
        (lambda s: {**s, "4.weight": torch.ones(10, 7)}, r"it has other shapes: 4\.weight \(10, 7\) for \(10, 128\)"),
        (lambda s: {f"x{n}": v for n, v in s.items()}, r"it lacks: .*, .*, .* and \d+ more; it has more: "),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str
) -> None:
    state = {name: value.contiguous() for name, value in small_cnn(10).state_dict().items()}
    save_file(change(state), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=message):
        start_from(small_cnn(10), Recipe(init=str(tmp_path / "w.safetensors")))


def test_plan_names_it(tmp_path: Path, init: Path) -> None:
    asked = config(tmp_path / "run", init)
    values = ur.plan_values(asked)
    (line,) = [line for line in plan_lines(values, asked, chosen=True) if "every training starts from" in line]
    assert str(init) in line and sha256_of(init.read_bytes()) in line and "you assert" in line
    assert values["recipe"]["init_sha256"] == sha256_of(init.read_bytes())


def test_it_is_given_by_flags(tmp_path: Path, init: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unseen_ray.cli import main

    start = ["--recipe.init", str(init), "--recipe.init_saw", "none"]
    main(["plan", "--source", "digits", "--keep", "0.5", *start, "--json"])
    assert json.loads(capsys.readouterr().out)["recipe"]["init"] == str(init)
    with pytest.raises(SystemExit) as left:
        main(["plan", "--source", "digits", "--keep", "0.5", *start[:2]])
    assert left.value.code == 2
    assert "recipe.init_saw: none" in capsys.readouterr().err


def test_a_sweep_wants_a_place_that_its_trials_find(
    tmp_path: Path, init: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unseen_ray.sweeps.plan import plan_sweep

    monkeypatch.chdir(tmp_path)
    run = {"source": BASE["source"], "keep": 0.5, "holdout": 0.2}
    for place, message in (
        (init.name, f"is a relative path.*Give {init}"),
        ("/nowhere/w.safetensors", "cannot be read"),
    ):
        recipe = {**QUICK, "init": place, "init_saw": "none"}
        with pytest.raises(ConfigError, match=message):
            plan_sweep(ur.SweepConfig(run={**run, "recipe": recipe}, space={"folds": [2, 3]}, out="x"))


def test_a_job_must_find_it(tmp_path: Path, init: Path) -> None:
    from unseen_ray.execution.job_checks import shippable

    fields = {"source": "digits", "keep": 0.5, "out": "/shared/runs/x"}
    for place, found in (("nowhere.safetensors", False), (init.name, True), ("/shared/w.safetensors", True)):
        given = {**fields, "recipe": {**QUICK, "init": place, "init_saw": "none"}}
        if found:
            assert shippable(given, str(tmp_path)).recipe.init == place
        else:
            with pytest.raises(
                ConfigError, match=r"recipe\.init='nowhere\.safetensors' is relative, and the working dir"
            ):
                shippable(given, str(tmp_path))
