"""Results as a script and a notebook see them: what they show, keys beside ids, the holdout, and data that has moved."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import unseen_ray as ur

QUICK: dict[str, Any] = {
    "keep": 0.5,
    "folds": 2,
    "recipe": {"epochs": 1, "min_steps": 0},
    "policy": "top",
    "log_to": "none",
}
DIGITS: dict[str, Any] = {"source": {"use": "digits", "limit": 300}, "executor": "local", **QUICK}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ur.PruneResult:
    out = tmp_path_factory.mktemp("results") / "run"
    return ur.prune(**DIGITS, holdout=0.2, schedule=[0.25, 0.5], out=out)


def test_a_result_says_what_was_kept_and_where_it_is(result: ur.PruneResult) -> None:
    for shown in (repr(result), repr(ur.load(result.path))):
        assert shown.splitlines()[0] == "PruneResult(120 of 240 samples of digits, keep=0.5)"
        for fact in ("entropy, policy top", "2, keep 60, 120 in all", "60 samples, in neither", result.path):
            assert fact in shown
    html = result._repr_html_()
    assert "<table>" in html and "120 of 240" in html and result.path in html


def test_what_html_would_read_as_a_tag_is_shown(result: ur.PruneResult) -> None:
    source = result.manifest.source.model_copy(update={"name": "<b>x</b>"})
    named = replace(result, run=replace(result.run, manifest=result.manifest.changed(source=source)))
    assert "<b>x</b>" not in named._repr_html_()
    assert "&lt;b&gt;x" in named._repr_html_()


def test_a_plan_and_a_coreset_show_themselves(result: ur.PruneResult) -> None:
    plan = ur.plan(source="digits", keep=0.5, holdout=0.2, schedule=[0.3, 0.5])
    assert repr(plan).splitlines()[0] == "Plan(keeps 719 of 1,438 samples of digits, keep=0.5)"
    assert "5, of small_cnn" in repr(plan) and "359 samples" in plan._repr_html_()
    run, source, config = plan
    assert (run.budget, len(source), config.keep) == (719, 1797, 0.5)
    assert repr(result.coreset).splitlines()[0] == "Coreset(120 samples)"
    assert "2, keep 60, 120 in all" in result.coreset._repr_html_()


def test_a_coreset_is_a_data_frame(result: ur.PruneResult) -> None:
    frame = result.coreset.to_frame()
    assert list(frame.columns) == ["id", "key", "label", "stage", "score"]
    assert frame["id"].tolist() == result.coreset.ids.tolist()
    assert result.coreset.to_arrow() == pq.read_table(f"{result.path}/coreset.parquet")


def test_without_pandas_there_is_a_table(result: ur.PruneResult, tmp_path: Path) -> None:
    (tmp_path / "pandas.py").write_text("raise ImportError('not installed')")
    code = f"""import sys; sys.path.insert(0, {str(tmp_path)!r})
import unseen_ray as ur
coreset = ur.load({result.path!r}).coreset
print(coreset.to_arrow().num_rows)
coreset.to_frame()"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "120\n"
    assert "to_frame needs pandas, which is not installed" in done.stderr


def test_keys_come_in_the_order_of_the_ids(result: ur.PruneResult) -> None:
    ids = result.scores.column("id").to_numpy()
    some = ids[[7, 3, 3, 0]]
    assert result.keys(some) == [f"digits:{number}" for number in some]
    with pytest.raises(ur.ConfigError, match=rf"id {result.holdout_ids[0]} is not among the 240 ids"):
        result.keys(result.holdout_ids)
    keyed = result.scores_with_keys()
    assert keyed.column("key").to_pylist() == [f"digits:{number}" for number in ids]
    assert keyed.drop_columns(["key"]) == result.scores


def test_the_holdout_is_what_was_neither_scored_nor_kept(result: ur.PruneResult, tmp_path: Path) -> None:
    ids = result.holdout_ids
    assert len(ids) == result.manifest.source.holdout == 60
    assert sorted([*ids, *result.scores.column("id").to_pylist()]) == list(range(300))
    assert ur.export(result.path, tmp_path / "holdout.npy", form="holdout") == 60
    assert np.array_equal(np.load(tmp_path / "holdout.npy"), ids)


def test_a_run_without_a_holdout_has_none_to_export(tmp_path: Path) -> None:
    done = ur.prune(**DIGITS, out=tmp_path / "run")
    assert len(done.holdout_ids) == 0
    with pytest.raises(ur.ConfigError, match="has no holdout to export"):
        ur.export(done, tmp_path / "holdout.npy", form="holdout")


def test_copies_that_take_no_part_are_no_holdout(tmp_path: Path) -> None:
    groups = np.arange(300)
    groups[[11, 22, 33]] = groups[[10, 20, 30]]
    np.save(tmp_path / "groups.npy", groups)
    group = {"use": str(tmp_path / "groups.npy"), "drop": True}
    done = ur.prune(**DIGITS, holdout=0.2, group=group, out=tmp_path / "run")
    assert len(done.holdout_ids) == done.manifest.source.holdout
    assert done.manifest.source.copies == 3
    assert not set(done.holdout_ids) & set(done.scores.column("id").to_pylist())


def test_a_pruned_data_set_is_made_from_where_the_data_is_now(result: ur.PruneResult, tmp_path: Path) -> None:
    ur.export(result, tmp_path / "first")
    moved = ur.prune(source=str(tmp_path / "first"), executor="local", **QUICK, out=tmp_path / "run")
    (tmp_path / "first").rename(tmp_path / "second")
    with pytest.raises(ur.DataError):
        ur.export(moved, tmp_path / "pruned")
    assert ur.export(moved, tmp_path / "pruned", source=tmp_path / "second") == 60
    with pytest.raises(ur.DataError, match="is another one"):
        ur.export(moved, tmp_path / "other", source="digits")
    with pytest.raises(ur.ConfigError, match="lies in the source"):
        ur.export(moved, tmp_path / "second" / "pruned", source=tmp_path / "second")
    with pytest.raises(ur.ConfigError, match="--source has an effect only where --to is a folder"):
        ur.export(moved, tmp_path / "kept.npy", source=tmp_path / "second")


def test_a_report_is_its_path_and_shows_its_page(result: ur.PruneResult) -> None:
    path = ur.report(result)
    assert path == f"{result.path}/report.html"
    html = path._repr_html_()
    assert html.startswith("<iframe srcdoc=") and "&lt;html" in html


def test_errors_are_one_line_in_a_notebook() -> None:
    with pytest.raises(ur.ConfigError) as caught:
        ur.plan(source="digits", keep=7)
    (line,) = caught.value._render_traceback_()
    assert line == f"ConfigError: {caught.value}"
