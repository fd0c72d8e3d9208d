"""Every table of the commands: whole words at any width of a terminal, tab-separated values in a pipe."""

from __future__ import annotations

import fcntl
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.terminal import screen, terminal
from unseen_ray.cli import main
from unseen_ray.cli.output import folded
from unseen_ray.cli.summary.evaluation import evaluation_table
from unseen_ray.cli.summary.sweep import trials_table
from unseen_ray.cli.tables import Column, Table
from unseen_ray.evaluation.table import Arm, Difference, Evaluation
from unseen_ray.sweeps.config import SweepConfig
from unseen_ray.sweeps.records import FINISHED, Record
from unseen_ray.sweeps.sweep import SweepResult

WIDTHS = (80, 100, 140)
SOURCE = ["--source", "digits", "--source.limit", "300"]
QUICK = ["--recipe.epochs", "2", "--recipe.min_steps", "0", "--executor", "local"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with an evaluation, beside the YAML of a sweep."""
    folder = tmp_path_factory.mktemp("tables")
    run = {"source": "digits", "keep": 0.5, "holdout": 0.2}
    space = {"policy": ["top", "class_balanced"], "folds": [2, 4]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"run": run, "space": space}))
    line = ["prune", *SOURCE, "--keep", "0.6", "--schedule", "[0.4,0.6]", "--holdout", "0.2", "--folds", "2", *QUICK]
    main([*line, "--out", str(folder / "run")])
    return folder


def lines_of(folder: Path, name: str) -> list[str]:
    """The command line whose tables are shown; each may be given again."""
    run = str(folder / "run")
    return {
        "plan": ["plan", *SOURCE, "--keep", "0.6", "--schedule", "[0.4,0.6]", "--workers", "8", "--images_per_s", "900"],
        "plan sweep": ["plan", str(folder / "sweep.yaml")],
        "prune": ["prune", *SOURCE, "--keep", "0.6", "--schedule", "[0.4,0.6]", "--holdout", "0.2", "--folds", "2", *QUICK, "--out", run],
        "select": ["select", run, "--keep", "0.5", "--policy", "top", "--out", str(folder / "half")],
        "evaluate": ["evaluate", run, "--seeds", "2", "--against", "random,full,fitting", "--executor", "local"],
        "watch": ["watch", run, "--once"],
        "list": ["list", "scores"],
        "copies": ["copies", "digits", "--near", "0.98"],
    }[name]  # fmt: skip


NAMES = ["plan", "plan sweep", "prune", "select", "evaluate", "watch", "list", "copies"]


def again(line: list[str]) -> None:
    if line[0] == "select":
        shutil.rmtree(line[-1], ignore_errors=True)
    main(line)


def tables(line: list[str], columns: int, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The lines of each table that a terminal of so many columns shows; their headers are bold."""
    with monkeypatch.context() as patch, terminal(columns) as (_, stream, read):
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stdout", stream)
        again(line)
        stream.flush()
    return [screen(block, 10_000) for block in "".join(read).split("\r\n\r\n") if "\x1b[1m" in block]


def piped(line: list[str], capsys: pytest.CaptureFixture[str]) -> list[list[list[str]]]:
    """The rows of each table that a command prints into a pipe."""
    capsys.readouterr()
    again(line)
    blocks = [block.splitlines() for block in capsys.readouterr().out.split("\n\n")]
    return [[line.split("\t") for line in block] for block in blocks if "\t" in block[0]]


def words(lines: list[str]) -> set[str]:
    return {word.replace(",", "") for line in lines for word in line.split()}


@pytest.mark.parametrize("name", NAMES)
def test_no_word_of_a_table_is_broken(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = lines_of(folder, name)
    expected = piped(line, capsys)
    assert expected and all(len({len(row) for row in rows}) == 1 for rows in expected)
    for columns in WIDTHS:
        found = tables(line, columns, monkeypatch)
        assert len(found) == len(expected)
        for text, rows in zip(found, expected, strict=True):
            assert max(map(len, text)) <= columns, (columns, text)
            table = "\n".join(text).partition("\n(a wider terminal")[0].splitlines()
            plain = [line for line in table if not line.startswith("... ")]
            assert words(plain) <= words([cell for row in rows for cell in row]), (columns, plain)
            assert all(any(line.startswith(row[0]) for line in plain) for row in [*rows[1:10], rows[-1]]), (
                columns,
                text,
            )


def arm(name: str) -> Arm:
    return Arm(
        name=name, samples=1_281_167, selections=1, accuracies=(0.7613, 0.7584), class_accuracy=(0.1, 0.9),
        class_samples=(1.0, 2.0), seconds=90_000.0, seconds_each=45_000.0, seconds_std=1.0, choosing_s=123_456.7,
        devices=("NVIDIA H200",), choosing_devices=(), drawn=False,
    )  # fmt: skip


def wide_tables(tmp_path: Path) -> list[Table]:
    """Tables as wide as they get: an evaluation under both budgets, and a sweep over mappings."""
    arms = tuple(map(arm, ("coreset", "random_matched", "resampled:fixed=0.5")))
    differences = tuple(
        Difference(baseline=each.name, mean=0.00091, low=-0.01012, high=0.01194, choices=1) for each in arms[1:]
    )
    epochs = Evaluation(
        test="imagenet", test_samples=50_000, model="resnet50", recipe={}, budget="epochs", environment={}, class_names=(),
        arms=arms, differences=differences, break_even=None,
    )  # fmt: skip
    policies = [{"use": "ccs", "strata": 50, "mislabel": share} for share in (0.1, 0.2)]
    run = {"source": "digits", "keep": 0.5, "holdout": 0.2}
    space = {"policy": policies, "score": ["entropy", "least_confidence"], "recipe.batch_size": [32, 64]}
    config = SweepConfig(run=run, space=space, out=str(tmp_path))
    records = tuple(
        Record(
            name=f"trial-{number:04d}",
            knobs={"policy": policies[number % 2], "score": "least_confidence", "recipe.batch_size": 32},
            status=FINISHED,
            accuracies=(0.91, 0.93),
            baselines={"random": (0.9, 0.92)},
            choosing_seconds=12_345.6,
        )
        for number in range(4)
    )
    sweep = SweepResult(str(tmp_path), config, records, records[0], 0)
    return [evaluation_table(replace(epochs, others=(replace(epochs, budget="iterations"),))), trials_table(sweep)]


@pytest.mark.parametrize("columns", WIDTHS)
def test_what_does_not_fit_is_left_out_by_rank_or_turned(columns: int, tmp_path: Path) -> None:
    for table in wide_tables(tmp_path):
        lines = table.lines(columns)
        assert max(map(len, lines)) <= columns, lines
        text = "\n".join(lines)
        known = words([cell for line in table.tsv() for cell in line.split("\t")])
        assert words(text.partition("(a wider terminal")[0].splitlines()) <= known
        for row in table.rows:
            for column, cell in zip(table.columns, row, strict=True):
                if column.rank == 0:
                    assert words([column.text(cell)]) <= words(lines), (column.title, cell)
    assert "class std" not in "\n".join(wide_tables(tmp_path)[0].lines(80)).partition("(a wider")[0]


def test_a_row_that_fits_nowhere_stands_on_its_side() -> None:
    table = Table([Column("class", left=True), Column("kept", form=","), Column("share", 1, ".1%")], ends=2)
    table.add("a name of a class with many words", 12_345, 0.5)
    table.add("\tb\nc\x1b[2J", 1, math.nan)
    table.add("dd", None, 1.0)
    assert table.lines(51)[-1] == "dd" + 43 * " " + "100.0%"
    assert table.lines(50)[-1].endswith("also shows: share)")
    assert table.lines(24) == [
        "class   a name of a",
        "        class with many",
        "        words",
        "kept    12,345",
        "share   50.0%",
        "",
        "class   ... 1 more",
        "kept",
        "share",
        "",
        "class   dd",
        "kept",
        "share   100.0%",
    ]
    assert table.tsv()[1:] == [
        "a name of a class with many words\t12345\t50.0%",
        r" b c\x1b[2J" + "\t1\t",
        "dd\t\t100.0%",
    ]


def test_names_of_many_columns_take_their_width_from_the_terminal() -> None:
    table = Table([Column("class", left=True), Column("kept")])
    table.add("漢字漢字", 1)
    table.add("ab", 10)
    assert table.lines(80) == ["class      kept", "漢字漢字      1", "ab           10"]


@pytest.mark.slow
def test_a_live_table_neither_folds_nor_stays_twice(tmp_path: Path) -> None:
    line = shlex.split("prune --source digits --keep 0.5 --folds 2 --recipe.epochs 2000 --scoring.share 1")
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    with terminal(80) as (ours, stream, read):
        run = subprocess.Popen(
            [sys.executable, "-m", "unseen_ray", *line, "--executor", "local", "--out", str(tmp_path / "run")],
            stdin=stream, stdout=stream, stderr=stream, env=environment, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(stream.fileno(), termios.TIOCSCTTY, 0),
        )  # fmt: skip
        end = time.monotonic() + 60
        while "images/s" not in "".join(read) or not re.search(r"\d/2000", "".join(read)):
            assert run.poll() is None and time.monotonic() < end, "".join(read)
            time.sleep(0.05)
        os.write(ours, b"\x03")  # as the key does: the terminal echoes ^C, and signals
        assert run.wait(90) == 130
    lines = screen("".join(read), 80)
    assert sum(line.startswith("task") for line in lines) == 1, lines
    assert sum(line.startswith("stage 0 fold 0 ") for line in lines) == 1, lines
    assert "interrupted; run the same line again to resume" in lines


def test_prose_is_folded_between_words_on_a_terminal_alone(tmp_path: Path) -> None:
    prose = "the first " + "word " * 30 + "end\n  - " + "item " * 30 + "end\n  unseen-ray " + "--flag " * 30
    with terminal(80) as (_, stream, _):
        lines = folded(prose, stream).split("\n")
    command = lines.pop()
    assert command == prose.split("\n")[2]
    assert all(len(line) <= 80 for line in lines) and len(lines) > 4
    assert " ".join(" ".join(lines).split()) == " ".join(" ".join(prose.split("\n")[:2]).split())
    with (tmp_path / "log").open("w") as file:
        assert folded(prose, file) == prose
