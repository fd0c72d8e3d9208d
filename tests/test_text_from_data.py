"""Names from data and storage: where they become a terminal's line, a page, a cell or a path, and that there is no other way."""

from __future__ import annotations

import ast
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from rich.table import Table
from rich.text import Text

import unseen_ray as ur
from tests.conftest import png_bytes
from tests.test_layers import MODULES
from tests.test_structure import trees
from unseen_ray.cli.output import LogFormatter
from unseen_ray.execution.console import PlainTextConsole
from unseen_ray.storage.filesystem import Folder, filesystem_of
from unseen_ray.storage.plain_text import as_cells, holds_secret, shown

EVIL = "\x1b]0;title\x07\x1b[2J\x1b[31m\u202e\x9b\udcff"
SECRETS = (
    "s3://AKIA:TOPSECRET@bucket/x",
    "https://user:TOPSECRET@host/x",
    "s3://bucket/x?secret_key=TOPSECRET&region=a",
    "abfs://container@account.dfs.core.windows.net/x?sig=TOPSECRET",
    "s3://bucket/x?SESSION_TOKEN=TOPSECRET",
)

# What turns text from data into something else, and the only modules that may do it.
ONLY_IN = {
    "click.echo": ["cli.output"],
    "click.secho": [],
    "print": [],
    "Console": [],
    "PlainTextConsole": ["cli.output", "execution.progress"],
    "logging.Formatter": [],
    "sys.stdout.write": [],
    "sys.stderr.write": [],
    "Markup": ["reporting.html"],
    "Environment": ["reporting.html"],
    "csv.writer": [],
    "pyarrow.csv.CSVWriter": ["reporting.export"],
    "Image.open": ["data.images.opening"],
    "pickle.load": [],
    "pickle.loads": ["execution.ray.io.datasets"],  # between our own processes
    "pickle.Unpickler": [],
    "torch.load": ["training.initial_weights"],  # weights_only
    "np.load": [],
    "yaml.load": [],
    "eval": [],
    "exec": [],
}


def test_there_is_one_way_from_data_to_a_terminal_a_page_a_cell_and_an_image() -> None:
    found: dict[str, set[str]] = {name: set() for name in ONLY_IN}
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in ONLY_IN:
                found[name].add(module)
    assert {name: sorted(modules) for name, modules in found.items()} == ONLY_IN
    assert len(MODULES) > 200


def test_no_array_or_table_is_read_with_pickles() -> None:
    allowed = [
        module
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False"
    ]
    assert allowed == []


def test_control_characters_are_shown_and_plain_text_stays() -> None:
    assert shown("é ü 犬 \t a\nb") == "é ü 犬 \t a\nb"
    assert shown(EVIL) == r"\x1b]0;title\x07\x1b[2J\x1b[31m\u202e\x9b\udcff"
    assert shown("a\rb") == r"a\x0db"


@pytest.mark.parametrize("address", SECRETS)
def test_a_secret_in_an_address_is_neither_shown_nor_used(address: str, tmp_path: Path) -> None:
    assert holds_secret(address)
    assert "TOPSECRET" not in shown(f"{address} cannot be read") and "cannot be read" in shown(
        f"{address} cannot be read"
    )
    with pytest.raises(ur.ConfigError, match="holds a key or a password in its address") as caught:
        filesystem_of(address)
    assert "TOPSECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["abfs://container@account.dfs.core.windows.net/x", "gs://anonymous@bucket/x", "a@b/c", "s3://bucket/a@b.png"]
)  # fmt: skip
def test_an_at_sign_alone_is_no_secret(address: str) -> None:
    assert not holds_secret(address) and shown(address) == address


def test_every_command_refuses_an_address_with_a_secret(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from unseen_ray.cli.app import cli

    secret = SECRETS[0]
    np.save(tmp_path / "p.npy", np.full((4, 2), 0.5, np.float32))
    for line in (
        ["plan", "--source", secret, "--keep", "0.5"],
        ["prune", "--source", secret, "--keep", "0.5", "--out", "x"],
        ["prune", "--source", "digits", "--keep", "0.5", "--out", "x", "--pixel_folder", secret],
        ["prune", "--source", "digits", "--keep", "0.5", "--out", "x", "--address", "ray://u:TOPSECRET@h:1"],
        ["prune", "--source", "digits", "--keep", "0.5", "--out", "x", "--recipe.init", secret],
        ["select", secret, "--keep", "0.5", "--out", "x"],
        ["score", "--probs", secret, "--labels", secret, "--out", "x"],
        ["evaluate", secret],
        ["report", secret],
        ["export", secret, "--to", "x.csv"],
        ["copies", secret],
        ["prepare", secret, "--out", str(tmp_path / "o")],
        ["watch", secret, "--once"],
    ):
        result = CliRunner().invoke(cli, line)
        problem = f"{result.output}{result.exception}"
        assert isinstance(result.exception, ur.ConfigError), (line, result.exception)
        assert "key or a password" in problem and "TOPSECRET" not in problem, line


def test_a_table_and_a_log_line_show_what_a_name_would_send() -> None:
    file = io.StringIO()
    console = PlainTextConsole(file=file, force_terminal=True, width=200)
    table = Table("name")
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    console.print(table)
    console.print(EVIL, highlight=False)
    assert "\x1b]0;" not in file.getvalue() and "\x1b[2J" not in file.getvalue()
    assert file.getvalue().count(r"\x1b]0;title") == 3
    record = logging.LogRecord("x", 20, "x", 1, "skipped %s", (EVIL,), None)
    assert "\x1b" not in LogFormatter("%(message)s").format(record)


def test_a_name_with_escapes_in_a_data_set_is_shown_in_the_error(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "t" / label).mkdir(parents=True)
        for row in range(4):
            (tmp_path / "t" / label / f"{row}.png").write_bytes(png_bytes(np.full((8, 8, 3), row, np.uint8)))
    (tmp_path / "t" / "a" / "\x1b]0;title\x07.png").write_bytes(b"broken")
    line = ["prune", "--source", "t", "--keep", "0.5", "--folds", "2", "--executor", "local", "--out", "r"]
    done = subprocess.run(
        [sys.executable, "-m", "unseen_ray", *line], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert r"a/\x1b]0;title\x07.png cannot be decoded" in done.stderr and "\x1b" not in done.stderr


def test_a_cell_never_begins_as_a_formula() -> None:
    formulas, plain = ["=1+1", "+1", "-1", "@a", "\t=1", "\r=1"], ["a=1", "", "a\n=1", None]
    assert as_cells(pa.array(formulas + plain)).to_pylist() == [f"'{text}" for text in formulas] + plain


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "a\\b", "\\a", "x" * 243 + ".png"])
def test_an_odd_name_is_written_and_read(tmp_path: Path, name: str) -> None:
    folder = Folder(str(tmp_path))
    folder.write(f"a/{name}", b"x")
    assert folder.read(f"a/{name}") == b"x" and os.listdir(tmp_path / "a") == [name]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../b", "a\\..\\b", "/a", "a//b", "a/", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = Folder(str(tmp_path))
    for reach in (folder.read, folder.delete, folder.delete_folder, lambda name: folder.write(name, b"x")):
        with pytest.raises(ur.UnseenError, match="it leads elsewhere"):
            reach(name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["a\0b", "a\udcffb", "s3://a/\udcff"])
def test_a_path_that_no_storage_takes_is_refused(path: str) -> None:
    with pytest.raises(ur.ConfigError, match="paths are UTF-8, without NUL"):
        filesystem_of(path)


def test_pyarrow_writes_the_keys_of_a_csv_as_cells(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    for label in ("=a", "b"):
        (tmp_path / "t" / label).mkdir(parents=True)
        for row in range(8):
            (tmp_path / "t" / label / f"{row}.png").write_bytes(png_bytes(pixels + row))
    result = ur.prune(
        ur.PruneConfig(
            source=str(tmp_path / "t"), keep=0.5, folds=2, executor="local", recipe={"epochs": 1, "min_steps": 0}, out=tmp_path / "r"
        )
    )  # fmt: skip
    ur.export(result, tmp_path / "kept.csv")
    keys = pa.csv.read_csv(tmp_path / "kept.csv").column("key").to_pylist()
    stored = result.run.table("coreset.parquet").column("key").to_pylist()
    assert keys == [f"'{key}" if key.startswith("=") else key for key in stored] and any(
        key.startswith("'=") for key in keys
    )
