"""How the golden runs of this folder were made: by version 0.1.0 of unseen_ray, at commit 78a2aac. Not to be run again.

The runs and `expected.json` are what the code of that commit wrote; later code is tested against them by
`tests/test_golden_runs.py`. To add a run, add it here, make that run alone with the released code that users have,
in a checkout of its own, and never replace what is here. All of it was made by

    PYTHONPATH=ROOT_OF_THE_TESTS:ROOT_OF_THE_OLD_CODE python -m tests.golden.make_golden

Lock files, checkpoints, TensorBoard files, pages and Ray Tune's own files were removed afterwards. The host's name is
`golden` everywhere, because `platform.node` is replaced before anything runs, in Ray's workers too. The trials of the
sweep had absolute folders; the old code wrote their manifests again, with a new digest, with relative ones.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

platform.node = lambda: "golden"

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

import unseen_ray as ur  # noqa: E402
from tests import test_golden_runs as tests  # noqa: E402
from tests.golden import plugs  # noqa: E402
from unseen_ray.config.limits import DEFAULT_LIMITS, Limits  # noqa: E402

COMMON: dict[str, Any] = {
    "source": {"use": "digits", "limit": 300},
    "keep": 0.6,
    "schedule": [0.3, 0.45, 0.6],
    "holdout": 0.2,
    "folds": 3,
    "seed": 3,
    "threads": 1,
    "executor": "local",
    "log_to": "none",
}
TRAINED = {**COMMON, "recipe": {"epochs": 12, "min_steps": 0, "batch_size": 32, "precision": "float32"}}
OWN = {**COMMON, "fit": "tests.golden.plugs:exact"}
SHORT = {
    **TRAINED,
    "policy": "class_balanced",
    "guard": "label_margin",
    "also_score": "all",
    "save_probs": True,
    "save_features": True,
}
OWN_FIT = {**OWN, "combine": "rank_mean", "guard": "confident_learning", "save_probs": True, "policy": "class_balanced"}
LONG = {**OWN, "repeats": 2, "score": "margin", "policy": {"use": "ccs", "cut": 0.1}}

RUNS = {"short": SHORT, "own_fit": OWN_FIT, "long": LONG}
KILLED = {  # of which run, with which fields, after how many finished tasks
    "interrupted": ("own_fit", OWN_FIT, 2),
    "long_begun": ("long", LONG, 4),
    "long_interrupted": ("long", LONG, 7),
    "trained_interrupted": (None, TRAINED, 2),
}
SELECTIONS: dict[str, dict[str, Any]] = {
    "another score": {"of": "short", "asked": {"keep": 0.4, "score": "margin", "policy": "top"}},
    "another keep and guard": {"of": "short", "asked": {"keep": 0.3, "guard": "none"}},
    "another policy": {"of": "short", "asked": {"keep": 0.5, "policy": {"use": "ccs", "cut": 0.1}}},
    "a policy of features": {"of": "short", "asked": {"keep": 0.3, "policy": "k_center"}, "any_cpu": False},
    "a guard of probabilities": {"of": "short", "asked": {"keep": 0.5, "guard": "confident_learning"}},
    "rank_mean": {"of": "short", "asked": {"keep": 0.5, "combine": "rank_mean", "score": "el2n"}},
    "mean_prob": {"of": "short", "asked": {"keep": 0.5, "combine": "mean_prob"}, "any_cpu": False},
    "mean of rank_mean": {"of": "own_fit", "asked": {"keep": 0.5, "combine": "mean", "guard": "none"}},
    "of a selection": {"of": "selection", "asked": {"keep": 0.2, "score": "loss", "policy": "beta"}, "any_cpu": False},
    "of a long run": {
        "of": "long",
        "asked": {"keep": 0.5, "score": "entropy", "policy": "class_balanced"},
        "long": True,
    },
    "of a long run in memory": {"of": "long", "asked": {"keep": 0.5, "score": "entropy", "policy": "class_balanced"}},
    "of a long selection": {"of": "selection_long", "asked": {"keep": 0.2, "policy": "top"}, "long": True},
}
STORED = {  # selections that are kept as folders
    "selection": ("short", {"keep": 0.4, "score": "margin", "policy": "class_quota"}, False),
    "selection_of_selection": ("selection", {"keep": 0.2, "policy": "top"}, False),
    "selection_long": ("long", {"keep": 0.4, "score": "loss", "policy": "top"}, True),
}
EVALUATION = {"seeds": 2, "against": ["random", "full"], "executor": "local", "log_to": "none"}
SWEEP = {
    "run": {
        "source": {"use": "digits", "limit": 200},
        "keep": 0.6,
        "holdout": 0.2,
        "folds": 3,
        "model": {"use": "small_cnn", "width": 8},
        "recipe": {"epochs": 8, "min_steps": 0, "precision": "float32"},
    },
    "space": {"score": ["entropy", "margin"]},
    "against": ["full"],
}
SCORED = {"keep": 0.5, "score": "margin", "policy": "class_balanced"}

KEPT_OUT = ("lease.json", "checkpoints", "tensorboard", "report.html", "tune", "sweep.html", "pixels")


def clear(folder: Path) -> None:
    """Remove what no later start needs."""
    for name in KEPT_OUT:
        for path in [*folder.rglob(name)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def prune(fields: dict[str, Any], out: str, *, long: bool, die_after: int = 0) -> None:
    """Do a run, or have this process die once so many tasks have finished."""
    finished = 0

    def on_event(event: Any) -> None:
        nonlocal finished
        finished += hasattr(event, "reused")
        if die_after and finished == die_after:
            os._exit(9)

    limits = tests.small_limits() if long else DEFAULT_LIMITS
    ur.prune(ur.PruneConfig(**fields, out=out), on_event=on_event, limits=limits)


def make_killed(fields: dict[str, Any], out: str, *, long: bool, die_after: int) -> None:
    """Do a run in a process that dies on the way."""
    process = multiprocessing.get_context("spawn").Process(
        target=prune, args=(fields, out), kwargs={"long": long, "die_after": die_after}
    )
    process.start()
    process.join()
    assert process.exitcode == 9, process.exitcode


def make_runs() -> None:
    """All but the sweep."""
    for name, fields in RUNS.items():
        prune(fields, name, long=tests.is_long(name))
        clear(Path(name))
    for name, (_, fields, count) in KILLED.items():
        make_killed(fields, name, long=tests.is_long(name), die_after=count)
        clear(Path(name))
    for name, (of, asked, long) in STORED.items():
        ur.select(of, **asked, out=name, limits=tests.small_limits() if long else DEFAULT_LIMITS)
        clear(Path(name))
    ur.evaluate("short", **{**EVALUATION, "against": tuple(EVALUATION["against"])})
    clear(Path("short"))
    given = Path("given")  # by a relative path, which the manifest holds
    given.mkdir()
    probs = np.array([np.roll(row, number % 10) for number, row in enumerate(plugs.ROWS * 4)])
    np.save(given / "probs.npy", probs / probs.sum(axis=1, keepdims=True))
    np.save(given / "labels.npy", np.arange(len(probs)) % 10)
    ur.score([given / "probs.npy"], given / "labels.npy", out="scored")
    shutil.rmtree(given)


def make_sweep() -> None:
    """Two trials on Ray Tune, with absolute folders taken out of their manifests."""
    from unseen_ray.manifest import read_manifest, write_manifest

    from unseen_ray.storage import Folder

    ur.sweep(ur.SweepConfig(**SWEEP, out="sweep"))
    clear(Path("sweep"))
    for path in Path("sweep").glob("trials/*/seed-0"):
        manifest = read_manifest(Folder(str(path)))
        assert manifest is not None
        neutral = {"out": path.as_posix()}
        write_manifest(
            Folder(str(path)),
            replace(manifest, config={**manifest.config, **neutral}, asked={**manifest.asked, **neutral}),
        )


def tables_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each table and array but votes."""
    names = {name: digest for name, digest in tests.files_of(folder).items() if name.endswith((".parquet", ".npy"))}
    return {name: digest for name, digest in names.items() if not tests.is_vote(name)}


def kept_of(folder: Path) -> dict[str, Any]:
    """What is expected of what a folder keeps."""
    kept = ur.load(folder).coreset
    return {"ids": kept.ids.tolist(), "stages": kept.stages.tolist(), "files": tables_of(folder)}


def expect_finished(name: str) -> dict[str, Any]:
    """What is expected of a finished run or a selection."""
    values, scores = kept_of(Path(name)), ur.load(name).scores
    values["scores"] = [len(scores), scores.column_names]
    values["report"] = {key: value for key, value in ur.report_values(name).items() if key != "out"}
    return values


def tasks_of(name: str, fields: dict[str, Any], folder: Path) -> list[list[Any]]:
    """Names of the tasks, as the votes have them too."""
    keys = tests.keys_of(fields, pq.read_table(folder / "coreset.parquet"), limits=tests.limits_of(name))
    for stage, index, _, key in keys:
        votes = pq.read_schema(folder / f"stage-{stage:02d}" / "votes" / f"{index:02d}.parquet")
        assert votes.metadata[b"unseen_ray.task"].decode() == key, (name, stage, index)
    return keys


def expect_resumed(name: str, scratch: Path) -> dict[str, Any]:
    """What the old code makes of an interrupted run."""
    uninterrupted, fields, _ = KILLED[name]
    folder = Path(shutil.copytree(name, scratch / name))
    plugs.CALLS.clear()
    prune(fields, str(folder), long=tests.is_long(name))
    values = {"fields": fields, "left": list(plugs.CALLS), "reused": tests.reused(folder), **kept_of(folder)}
    if uninterrupted is not None:
        values["uninterrupted"] = uninterrupted
        assert values["files"] == tables_of(Path(uninterrupted))
    else:  # what a run without an interruption makes
        prune(fields, str(scratch / "whole"), long=False)
        assert values["files"] == tables_of(scratch / "whole")
        values["tasks"] = [each for each in tasks_of(name, fields, folder) if not each[0]]
    return values


def expect_selection(name: str, scratch: Path) -> dict[str, Any]:
    """What the old code chooses."""
    values = {"long": False, "any_cpu": True, **SELECTIONS[name]}
    out = scratch / f"selection {name}"
    limits = tests.small_limits() if values["long"] else DEFAULT_LIMITS
    ur.select(values["of"], **values["asked"], out=out, limits=limits)
    return {**values, **kept_of(out), "shape": sorted(tests.shape_of(tests.manifest_of(out)))}


def expect_sweep() -> dict[str, Any]:
    """What is expected of the sweep."""
    result = ur.sweep(ur.SweepConfig(**SWEEP, out="sweep"))
    (Path("sweep") / "sweep.html").unlink()
    assert result.reused == 2 and result.best is not None
    trials = [record.name for record in result.records]
    return {
        "fields": SWEEP,
        "trials": trials,
        "best": result.best.knobs,
        "trainings": [[each.kind, each.asked, each.needed] for each in result.trainings],
        "ids": {name: ur.load(f"sweep/trials/{name}/seed-0").coreset.ids.tolist() for name in trials},
    }


def expect_all(scratch: Path) -> dict[str, Any]:
    """All that the test compares with."""
    runs: dict[str, Any] = {name: {"fields": RUNS[name], **expect_finished(name)} for name in RUNS}
    for name in RUNS:
        runs[name]["tasks"] = tasks_of(name, RUNS[name], Path(name))
    runs |= {name: expect_finished(name) for name in STORED}
    runs |= {name: expect_resumed(name, scratch) for name in KILLED}
    ur.select("scored", **SCORED, out=scratch / "scored")
    tables = json.loads(Path("short/evaluation.json").read_text())["tables"]
    labels = np.arange(300) % 7
    dealt = {"at once": ur.plan_folds(300, 4, 5, labels=labels).fold_of_N.tolist()}
    by_blocks = ur.plan_folds(300, 4, 5, labels=labels, block_rows=tests.small_limits().rows_dealt_at_once)
    dealt["by blocks"] = by_blocks.fold_of_N.tolist()
    return {
        "made_by": {"unseen_ray": "0.1.0", "commit": "78a2aac", "pyarrow": pa.__version__, "numpy": np.__version__},
        "cpu_kind": plugs.cpu_kind(),
        "runs": runs,
        "selections": {name: expect_selection(name, scratch) for name in tests.SELECTIONS},
        "evaluation": {
            "asked": EVALUATION,
            "accuracies": {arm["name"]: arm["accuracies"] for arm in tables[0]["arms"]},
        },
        "sweep": expect_sweep(),
        "scored": {"asked": SCORED, **kept_of(scratch / "scored")},
        "variants": {
            name: [
                tests.keys_of(tests.variant(name), limits=limits)
                for limits in (DEFAULT_LIMITS, Limits(rows_in_memory=0))
            ]
            for name in tests.VARIANTS
        },
        "rules": tests.names_of_rules(),
        "dealt": dealt,
    }


def main() -> None:
    """Make everything; the sweep in a process whose Ray workers have the neutral host name too."""
    os.chdir(Path(__file__).parent)
    if sys.argv[1:] == ["sweep"]:
        return make_sweep()
    make_runs()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text("import platform\nplatform.node = lambda: 'golden'\n")
        path = os.pathsep.join([folder, os.environ["PYTHONPATH"]])
        line = [sys.executable, "-m", "tests.golden.make_golden", "sweep"]
        subprocess.run(line, check=True, cwd=tests.ROOT, env={**os.environ, "PYTHONPATH": path})
    with tempfile.TemporaryDirectory() as scratch:
        values = expect_all(Path(scratch))
    Path("expected.json").write_text(json.dumps(values, separators=(",", ":")) + "\n")
    return None


if __name__ == "__main__":
    main()
