"""Runs that version 0.1.0 made are read, resumed, chosen from and reported on as by that version: same ids, same bytes.

The runs are in `tests/golden`, with what 0.1.0 made of them in `expected.json`; `golden/make_golden.py` made both.
If a test fails here, runs that users have on storage are lost, or are trained again: mend the code, not the runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import unseen_ray as ur
from tests.golden import plugs
from unseen_ray.config.limits import DEFAULT_LIMITS, Limits

# --- All that is private of the package, to be adapted when it moves. What is below uses what users may use. ---


def small_limits() -> Limits:
    """With these, a run of more than 60 samples takes the path of one of more than 16 million."""
    return Limits(rows_in_memory=60, rows_of_a_part=64, rows_of_a_chunk=64, rows_dealt_at_once=64)


def real_limits() -> dict[str, int]:
    """What decides which runs are long, how their tables are cut into files, and how folds are dealt."""
    limits = Limits()
    return {
        "most_rows": limits.rows_in_memory,
        "part_rows": limits.rows_of_a_part,
        "dealt_rows": limits.rows_dealt_at_once,
    }


def keys_of(
    fields: dict[str, Any], kept: pa.Table | None = None, *, limits: Limits = DEFAULT_LIMITS
) -> list[list[Any]]:
    """Stage, index, name of the model and of the votes of each task of a run; of stage 0 alone if `kept` is None."""
    from unseen_ray.config.resolved import ResolvedRun
    from unseen_ray.core.samples.id_sets import ArrayIds
    from unseen_ray.data.sources.registry import open_source, source_ref
    from unseen_ray.pruning.plan import plan_run, tasks_of
    from unseen_ray.runs.tasks import make_job

    config = ur.PruneConfig(**fields, out="nowhere")
    info = open_source(source_ref(config.source)).info
    job = make_job(ResolvedRun.of(config, info.size_px), info, limits)
    population, keys = job.population(info.labels_N), []
    for stage in plan_run(job.resolved, population).stages[: 1 if kept is None else None]:
        ids = np.empty(0, np.int64) if kept is None else kept["id"].to_numpy()[kept["stage"].to_numpy() < stage.index]
        for task in tasks_of(stage, job.config, ArrayIds(ids), limits=limits):
            names = job.fit_key(task, population), job.task_key(task, population)
            keys.append([stage.index, task.index, *names])
    return keys


def names_of_rules() -> dict[str, str]:
    """What sets of samples are called where there are too many to be named by a digest of the ids."""
    from unseen_ray.core.samples.id_sets import AllIds, ArrayIds, FoldIds, FoldSpec, Outside, digest_of_rule
    from unseen_ray.core.samples.population import make_population

    population = make_population(np.arange(50) % 3, 3, holdout=0.2, seed=5)
    fold = FoldIds(FoldSpec(num_folds=3, seed=5), 1)
    some = ArrayIds(population.ids_N[::4])
    sets = {
        "all": AllIds(),
        "fold": fold,
        "fold of a plan that is not stratified": FoldIds(FoldSpec(num_folds=4, seed=7, stratify=False), 2),
        "outside a fold": Outside(fold),
        "array": some,
        "outside an array": Outside(some),
    }
    return {name: digest_of_rule(ids, population) for name, ids in sets.items()}


def prune_beside(fields: dict[str, Any], out: Path, work: Path) -> None:
    """A run that shares work with others, as the trials of a sweep do."""
    from unseen_ray.execution.local import LocalExecutor
    from unseen_ray.pruning.pipeline import run_pipeline
    from unseen_ray.runs.result_cache import ClaimBook, ResultCache

    config = ur.PruneConfig(**{**fields, "out": str(out)})
    run_pipeline(
        config, executor=LocalExecutor(), on_event=lambda _: None, cache=ResultCache(str(work), "golden", ClaimBook())
    )


# --- What is expected. ---

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parent.parent

FINISHED = ("short", "own_fit", "long")
SELECTIONS = (
    "another score",
    "another keep and guard",
    "another policy",
    "a policy of features",
    "a guard of probabilities",
    "rank_mean",
    "mean_prob",
    "mean of rank_mean",
    "of a selection",
    "of a long run",
    "of a long run in memory",
    "of a long selection",
)
LIMITS = {"most_rows": 16_000_000, "part_rows": 2**22, "dealt_rows": 2**24}
THEN: dict[str, Any] = {"policy": "top", "scoring": {"share": 1}}
"""What was the default of 0.1.0, and is not any more."""
LATER = {
    ".cost.bill",
    ".cost.waiting_seconds",
    ".source.sample",
    ".source.times",
    ".environment.exact_scores",
    ".environment.code",
    ".environment.code.tests.golden.plugs:exact",
    ".generation",
    ".asked.run.policy",
    ".config.run.policy",
    ".asked.run.scoring",
    ".asked.run.scoring.share",
    ".config.run.scoring",
    ".config.run.scoring.share",
    ".suspects",
}
"""Where versions after 0.1.0 store something that it did not, as `shape_of` calls the place."""
LOCK_FIELDS = ["token", "host", "pid", "job", "home", "started", "beat"]
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "fitting": {"mode": "fitting", "folds": None},
    "complement": {"train_on": "complement"},
    "repeats": {"repeats": 2},
    "not stratified": {"stratify": False},
    "another seed": {"seed": 11},
    "two threads": {"threads": 2},
    "no other scores": {"also_score": "none"},
    "some other scores": {"also_score": ["margin", "el2n"]},
    "a score with an option": {"score": {"use": "least_confidence", "space": "logit"}},
    "a score over epochs": {"score": "aum", "score_every": 2},
    "mean_prob": {"combine": "mean_prob"},
    "save_probs": {"save_probs": True},
    "save_features": {"save_features": True},
    "a policy of features": {"policy": "k_center"},
    "a guard of probabilities": {"guard": "confident_learning"},
    "a model with an option": {"model": {"use": "small_cnn", "width": 8}},
    "a model by its place": {"model": "torchvision.models:resnet18"},
    "another recipe": {"recipe": {"epochs": 5, "label_smoothing": 0.1, "precision": "float32"}},
    "a fit of one's own": {"fit": "tests.golden.plugs:exact", "recipe": None},
}
"""Configurations whose tasks must keep their names, as changes of one."""


def variant(name: str) -> dict[str, Any]:
    common = {
        "source": {"use": "digits", "limit": 300},
        "keep": 0.6,
        "holdout": 0.2,
        "folds": 3,
        "recipe": {"epochs": 12, "min_steps": 0, "precision": "float32"},
    }
    fields = {**common, **VARIANTS[name]}
    return {name: value for name, value in fields.items() if value is not None}


@cache
def expected() -> dict[str, Any]:
    values: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())
    return values


def fields_of(name: str) -> dict[str, Any]:
    return {**THEN, **expected()["runs"][name]["fields"]}


def is_long(name: str) -> bool:
    return name.startswith("long")


def limits_of(name: str) -> Limits:
    return small_limits() if is_long(name) else DEFAULT_LIMITS


def copied(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def manifest_of(folder: Path) -> dict[str, Any]:
    """The entries of a manifest; checked against its digest in the way of 0.1.0, and against its copy."""
    assert (folder / "manifest.json").read_bytes() == (folder / "manifest.copy.json").read_bytes()
    return unsealed(folder / "manifest.json")


def unsealed(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_bytes())
    digest = values.pop("sha256")
    assert digest == hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest(), path
    return values


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def is_vote(name: str) -> bool:
    """Votes say in their metadata where and how fast they were made, so that their bytes are not the same again."""
    return "/votes/" in name


def check_tables(folder: Path, wanted: dict[str, str], golden: Path | None = None) -> None:
    """That tables are those of 0.1.0: byte for byte with its pyarrow, else by what is in them."""
    found = files_of(folder)
    assert {name for name in found if name in wanted} == set(wanted)
    if pa.__version__ == expected()["made_by"]["pyarrow"]:
        assert {name: found[name] for name in wanted} == wanted
    for name in wanted if golden is not None else ():
        same_file(folder / name, golden / name)


def same_file(one: Path, other: Path) -> None:
    if one.suffix == ".npy":
        assert np.array_equal(np.load(one), np.load(other)), one
    else:
        table = pq.ParquetFile(one).read()
        assert table.equals(pq.ParquetFile(other).read()) and table.schema.equals(pq.read_schema(other)), one


def check_kept(folder: Path, wanted: dict[str, Any]) -> None:
    kept = ur.load(folder).coreset
    assert kept.ids.tolist() == wanted["ids"]
    assert kept.stages.tolist() == wanted["stages"]


def shape_of(value: Any, place: str = "") -> set[str]:
    """Where in nested values something stands, whatever it is; items of a list look alike."""
    places = {place} - LATER
    if isinstance(value, dict):
        return places.union(*(shape_of(item, f"{place}.{name}") for name, item in value.items()))
    if isinstance(value, list):
        return places.union(*(shape_of(item, f"{place}[]") for item in value))
    return places


def check_shape(folder: Path, golden: Path) -> None:
    """That files, fields and metadata have the same names as in a folder of 0.1.0, evaluation and `reuse` apart."""
    assert files_of(folder).keys() - {"evaluation.json"} == files_of(golden).keys() - {"evaluation.json"}
    assert shape_of(manifest_of(folder)) - {".asked.reuse[]", ".config.reuse[]"} == shape_of(manifest_of(golden))
    for path in folder.rglob("votes/*.parquet"):
        told, before = (pq.read_schema(at).metadata for at in (path, golden / path.relative_to(folder)))
        assert told.keys() == before.keys()
        assert told[b"unseen_ray.task"] == before[b"unseen_ray.task"]
        assert shape_of(json.loads(told[b"unseen_ray.receipt"])) == shape_of(json.loads(before[b"unseen_ray.receipt"]))
        assert pq.read_table(path).schema.equals(pq.read_table(golden / path.relative_to(folder)).schema)


def reused(folder: Path) -> list[tuple[str, bool]]:
    """Of each task of a run whether it was found done."""
    return [(task["task"], task["reused"]) for stage in manifest_of(folder)["stages"] for task in stage["tasks"]]


def command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    line = [sys.executable, "-m", "unseen_ray", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def no_calls() -> None:
    plugs.CALLS.clear()


# --- Read. ---


@pytest.mark.parametrize("name", [*FINISHED, "selection", "selection_of_selection", "selection_long"])
def test_a_finished_run_is_read(name: str) -> None:
    wanted = expected()["runs"][name]
    check_kept(GOLDEN / name, wanted)
    result = ur.load(GOLDEN / name)
    assert [len(result.scores), result.scores.column_names] == wanted["scores"]
    assert result.manifest.files.items() >= wanted["files"].items()
    check_tables(GOLDEN / name, wanted["files"])
    manifest_of(GOLDEN / name)


@pytest.mark.parametrize("name", ["short", "own_fit", "long", "selection", "selection_long"])
def test_a_report_has_the_same_numbers(name: str) -> None:
    check_report(ur.report_values(GOLDEN / name), name)


def test_the_command_reports_the_same_numbers(tmp_path: Path) -> None:
    copied("short", tmp_path)
    answer = command("report", "short", "--json", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    check_report(json.loads(answer.stdout), "short")


def check_report(values: dict[str, Any], name: str) -> None:
    found = {key: value for key, value in values.items() if key != "out"}
    wanted = expected()["runs"][name]["report"]
    assert found.keys() - wanted.keys() == {"guard", "guarded", "headline", "left_out", "policy_reason"}
    assert [key for key in wanted if not alike(found[key], wanted[key])] == []


def alike(one: Any, other: Any) -> bool:
    """Whether nested values are the same; of numbers six digits: sums in another order differ in the last one."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)
    return type(one) is type(other) and bool(one == other)


def test_the_page_is_made(tmp_path: Path) -> None:
    page = Path(ur.report(copied("short", tmp_path)))
    assert page.name == "report.html" and "<svg" in page.read_text()


@pytest.mark.parametrize("name", ["short", "long"])
def test_a_coreset_is_exported(name: str, tmp_path: Path) -> None:
    assert ur.export(GOLDEN / name, tmp_path / "ids.npy") == len(expected()["runs"][name]["ids"])
    assert np.load(tmp_path / "ids.npy").tolist() == expected()["runs"][name]["ids"]
    ur.export(GOLDEN / name, tmp_path / "keys.txt")
    keys = [f"digits:{number}" for number in expected()["runs"][name]["ids"]]
    assert (tmp_path / "keys.txt").read_text().split() == keys


def test_an_interrupted_run_is_watched(tmp_path: Path) -> None:
    copied("interrupted", tmp_path)
    answer = command("watch", "interrupted", "--once", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "2 of 3" in answer.stdout


# --- Resumed. ---


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_run_has_nothing_left_to_do(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    result = ur.prune(ur.PruneConfig(**fields_of(name), out=str(folder)), limits=limits_of(name))
    assert result.coreset.ids.tolist() == expected()["runs"][name]["ids"]
    assert plugs.CALLS == []
    assert files_of(folder) == files_of(GOLDEN / name)


@pytest.mark.parametrize("name", ["interrupted", "long_begun", "long_interrupted"])
def test_an_interrupted_run_goes_on(name: str, tmp_path: Path) -> None:
    wanted, folder = expected()["runs"][name], copied(name, tmp_path)
    ur.prune(ur.PruneConfig(**fields_of(name), out=str(folder)), limits=limits_of(name))
    assert [list(call) for call in plugs.CALLS] == wanted["left"]
    check_kept(folder, wanted)
    uninterrupted = GOLDEN / wanted["uninterrupted"]
    check_tables(folder, wanted["files"], uninterrupted)
    check_shape(folder, uninterrupted)
    assert [list(each) for each in reused(folder)] == wanted["reused"]


def test_the_command_goes_on_with_an_interrupted_run(tmp_path: Path) -> None:
    folder = copied("interrupted", tmp_path)
    (tmp_path / "run.yaml").write_text(json.dumps(fields_of("interrupted")))
    answer = command("prune", "run.yaml", "--out", "interrupted", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    check_kept(folder, expected()["runs"]["interrupted"])
    assert [list(each) for each in reused(folder)] == expected()["runs"]["interrupted"]["reused"]


def test_another_default_is_told_from_what_was_asked_for(tmp_path: Path) -> None:
    folder = copied("trained_interrupted", tmp_path)
    fields = {name: value for name, value in fields_of("trained_interrupted").items() if name not in THEN}
    said = r"policy: 'top' there, 'auto' here; scoring.share: 1.0 there, 0.25 here. Name .* the fields as they were"
    with pytest.raises(ur.ConfigError, match=said):
        ur.prune(ur.PruneConfig(**fields, out=str(folder)))


def test_finished_folds_of_a_trained_run_are_not_trained_again(tmp_path: Path) -> None:
    wanted, folder = expected()["runs"]["trained_interrupted"], copied("trained_interrupted", tmp_path)
    before = {name: digest for name, digest in files_of(folder).items() if is_vote(name)}
    ur.prune(ur.PruneConfig(**fields_of("trained_interrupted"), out=str(folder)))
    assert [list(each) for each in reused(folder)] == wanted["reused"]
    assert before.items() <= files_of(folder).items()
    manifest_of(folder)
    assert len(ur.load(folder).coreset) == len(wanted["ids"])
    if plugs.cpu_kind() == expected()["cpu_kind"]:
        check_kept(folder, wanted)
        check_tables(folder, wanted["files"])


@pytest.mark.parametrize("name", FINISHED)
def test_stages_are_made_again_of_the_votes_that_are_stored(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    lost = folder / ("stage-00/scores.parquet/part-00001.parquet" if is_long(name) else "stage-00/scores.parquet")
    lost.unlink()
    ur.prune(ur.PruneConfig(**fields_of(name), out=str(folder)), limits=limits_of(name))
    check_made_of_votes(folder, name)


@pytest.mark.parametrize("name", FINISHED)
def test_another_run_uses_the_votes_that_are_stored(name: str, tmp_path: Path) -> None:
    config = ur.PruneConfig(**fields_of(name), reuse=[str(GOLDEN / name)], out=str(tmp_path / "new"))
    ur.prune(config, limits=limits_of(name))
    check_made_of_votes(tmp_path / "new", name)


def test_a_run_that_stores_less_uses_the_votes_of_one_that_stores_more(tmp_path: Path) -> None:
    fields = {name: value for name, value in fields_of("short").items() if name not in ("save_probs", "save_features")}
    ur.prune(ur.PruneConfig(**fields, reuse=[str(GOLDEN / "short")], out=str(tmp_path / "new")))
    assert all(was_found for _, was_found in reused(tmp_path / "new"))
    check_kept(tmp_path / "new", expected()["runs"]["short"])


def check_made_of_votes(folder: Path, name: str) -> None:
    """That nothing was trained, and that everything is as it was, to the byte."""
    assert plugs.CALLS == []
    assert all(was_found for _, was_found in reused(folder))
    check_kept(folder, expected()["runs"][name])
    check_tables(folder, expected()["runs"][name]["files"], GOLDEN / name)
    check_shape(folder, GOLDEN / name)
    votes = {file: digest for file, digest in files_of(GOLDEN / name).items() if is_vote(file)}
    assert votes.items() <= files_of(folder).items()


def test_a_lock_has_the_same_fields_and_is_respected(tmp_path: Path) -> None:
    folder = copied("interrupted", tmp_path)
    held = {"token": "0" * 32, "host": "golden", "pid": 1, "job": "", "home": "", "started": "", "beat": time.time()}
    (folder / "lease.json").write_text(json.dumps(held))
    config = ur.PruneConfig(**fields_of("interrupted"), out=str(folder))
    with pytest.raises(ur.UnseenError, match="is held by process 1 on golden"):
        ur.prune(config)
    (folder / "lease.json").unlink()
    seen: list[dict[str, Any]] = []
    ur.prune(config, on_event=lambda _: seen.append(json.loads((folder / "lease.json").read_bytes())))
    assert list(seen[0]) == list(held) == LOCK_FIELDS
    assert not (folder / "lease.json").exists()


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    folder = copied("short", tmp_path)
    with pytest.raises(
        ur.ConfigError, match="holds a run with another configuration; it differs in seed: 3 there, 4 here"
    ):
        ur.prune(ur.PruneConfig(**{**fields_of("short"), "seed": 4}, out=str(folder)))


# --- Chosen from. ---


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_selection_is_the_same(name: str, tmp_path: Path) -> None:
    wanted = expected()["selections"][name]
    limits = small_limits() if wanted["long"] else DEFAULT_LIMITS
    ur.select(GOLDEN / wanted["of"], **wanted["asked"], out=tmp_path / "new", limits=limits)
    check_kept(tmp_path / "new", wanted)
    if wanted["any_cpu"] or plugs.cpu_kind() == expected()["cpu_kind"]:
        check_tables(tmp_path / "new", wanted["files"])
    assert wanted["shape"] == sorted(shape_of(manifest_of(tmp_path / "new")))


def test_the_command_selects_the_same(tmp_path: Path) -> None:
    copied("short", tmp_path)
    wanted = expected()["selections"]["another score"]
    flags = [text for name, value in wanted["asked"].items() for text in (f"--{name}", json.dumps(value).strip('"'))]
    answer = command("select", "short", *flags, "--out", "new", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    check_kept(tmp_path / "new", wanted)
    check_tables(tmp_path / "new", wanted["files"])


# --- Measured and swept. ---


def test_an_evaluation_is_not_measured_again(tmp_path: Path) -> None:
    folder, events = copied("short", tmp_path), []  # type: ignore[var-annotated]
    before = unsealed(folder / "evaluation.json")
    asked = expected()["evaluation"]["asked"]
    table = ur.evaluate(folder, **{**asked, "against": tuple(asked["against"])}, on_event=events.append)
    assert events == []
    assert {arm.name: list(arm.accuracies) for arm in table.arms} == expected()["evaluation"]["accuracies"]
    after = unsealed(folder / "evaluation.json")
    assert after["results"] == before["results"]
    assert shape_of(after) == shape_of(before)


def test_a_finished_sweep_has_nothing_left_to_do(tmp_path: Path) -> None:
    wanted, folder = expected()["sweep"], copied("sweep", tmp_path)
    before = files_of(folder)
    fields = {**wanted["fields"], "run": {**THEN, **wanted["fields"]["run"]}}
    result = ur.sweep(ur.SweepConfig(**fields, out=str(folder)))
    assert result.reused == len(result.records) == 2
    assert [record.name for record in result.records] == wanted["trials"]
    assert result.table.equals(pq.read_table(GOLDEN / "sweep" / "sweep.parquet"))
    assert result.best is not None and result.best.knobs == wanted["best"]
    counts = [[trainings.kind, trainings.asked, trainings.needed] for trainings in result.trainings]
    assert counts == wanted["trainings"]
    same = [name for name in before if name.startswith(("trials/", "work/"))]
    assert {name: before[name] for name in same} == {name: files_of(folder)[name] for name in same}
    best, then = ((each / "best.yaml").read_text() for each in (folder, GOLDEN / "sweep"))
    assert yaml.safe_load(best) == {**yaml.safe_load(then), **THEN}
    assert shape_of(unsealed(folder / "manifest.json")) == shape_of(unsealed(GOLDEN / "sweep" / "manifest.json"))


def test_the_trials_of_a_sweep_are_runs(tmp_path: Path) -> None:
    for name, ids in expected()["sweep"]["ids"].items():
        assert ur.load(GOLDEN / "sweep" / "trials" / name / "seed-0").coreset.ids.tolist() == ids
        unsealed(GOLDEN / "sweep" / "trials" / name / "trial.json")


def test_work_that_a_sweep_has_put_aside_is_found(tmp_path: Path) -> None:
    work = Path(shutil.copytree(GOLDEN / "sweep" / "work", tmp_path / "work"))
    before, (name, ids) = files_of(work), next(iter(expected()["sweep"]["ids"].items()))
    trial = GOLDEN / "sweep" / "trials" / name / "seed-0"
    asked = unsealed(trial / "manifest.json")["asked"]
    defaults = ur.PruneConfig(source="digits", keep=0.5).to_json()
    changed = {key: value for key, value in asked.items() if value != defaults[key] and key != "out"}
    prune_beside({**THEN, **changed, "executor": "local"}, tmp_path / "new", work)
    assert all(was_found for _, was_found in reused(tmp_path / "new"))
    assert ur.load(tmp_path / "new").coreset.ids.tolist() == ids
    assert files_of(work) == before


@pytest.mark.ray
@pytest.mark.slow
def test_a_larger_sweep_uses_what_a_smaller_one_has_left(tmp_path: Path) -> None:
    wanted, folder = expected()["sweep"], copied("sweep", tmp_path)
    votes = len(list((folder / "work").rglob("*.parquet")))
    space = {**wanted["fields"]["space"], "score": ["entropy", "margin", "loss"]}
    fields = {**wanted["fields"], "run": {**THEN, **wanted["fields"]["run"]}, "space": space}
    result = ur.sweep(ur.SweepConfig(**fields, out=str(folder)))
    assert (result.reused, len(result.records)) == (2, 3)
    assert {record.status for record in result.records} == {"finished"}
    assert len(list((folder / "work").rglob("*.parquet"))) == votes


# --- Scores of the user's own. ---


def test_scores_of_given_probabilities_are_read_and_chosen_from(tmp_path: Path) -> None:
    wanted = expected()["scored"]
    ur.select(GOLDEN / "scored", **wanted["asked"], out=tmp_path / "new")
    check_kept(tmp_path / "new", wanted)
    check_tables(tmp_path / "new", wanted["files"])


# --- Named. ---


@pytest.mark.parametrize("name", [*FINISHED, "trained_interrupted"])
def test_tasks_have_the_same_names(name: str) -> None:
    wanted = expected()["runs"][name]["tasks"]
    kept = pq.read_table(GOLDEN / name / "coreset.parquet") if name in FINISHED else None
    assert keys_of(fields_of(name), kept, limits=limits_of(name)) == wanted
    for stage, index, _, key in wanted:
        votes = GOLDEN / name / f"stage-{stage:02d}" / "votes" / f"{index:02d}.parquet"
        assert not votes.exists() or pq.read_schema(votes).metadata[b"unseen_ray.task"].decode() == key


@pytest.mark.parametrize("name", VARIANTS)
def test_tasks_of_other_configurations_have_the_same_names(name: str) -> None:
    for limits, wanted in zip((DEFAULT_LIMITS, Limits(rows_in_memory=0)), expected()["variants"][name], strict=True):
        assert keys_of(variant(name), limits=limits) == wanted


def test_sets_of_samples_have_the_same_names() -> None:
    assert names_of_rules() == expected()["rules"]


def test_the_limits_of_long_runs_are_the_same() -> None:
    assert real_limits() == LIMITS


def test_a_model_is_found_where_stored_runs_say_that_it_is(tmp_path: Path) -> None:
    fields = {**fields_of("trained_interrupted"), "recipe": {"epochs": 1, "min_steps": 0}, "schedule": None}
    by_place = {**fields, "model": "unseen_ray.training.models:small_cnn"}
    kept = [
        ur.prune(ur.PruneConfig(**each, out=str(tmp_path / name))) for name, each in (("a", fields), ("b", by_place))
    ]
    assert kept[0].coreset.ids.tolist() == kept[1].coreset.ids.tolist()


def test_folds_are_dealt_alike() -> None:
    labels = np.arange(300) % 7
    assert ur.plan_folds(300, 4, 5, labels=labels).fold_of_N.tolist() == expected()["dealt"]["at once"]
    by_blocks = ur.plan_folds(300, 4, 5, labels=labels, block_rows=small_limits().rows_dealt_at_once)
    assert by_blocks.fold_of_N.tolist() == expected()["dealt"]["by blocks"]
