"""The notebook of docs/ runs as it stands, and its cells show results, progress and errors as a notebook should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "digits.ipynb"


@pytest.mark.slow  # a kernel that loads torch
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # of Jupyter's own modules
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.reads(NOTEBOOK.read_text(), as_version=4)
    bad = 'ur.plan(source="digits", keep=7)'
    notebook.cells.append(nbformat.v4.new_code_cell(bad, metadata={"tags": ["raises-exception"]}))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown: list[Any] = [json.dumps(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    plan, run, frame, holdout, report, error = shown
    assert "Plan: keeps 336 of 480" in plan
    assert "PruneResult: 336 of 480" in run and "stage 0 fold 1: done" in run
    assert "digits:" in frame and "120" in holdout and "<iframe" in report
    assert "ConfigError: keep=7 is outside" in error and "File " not in error
