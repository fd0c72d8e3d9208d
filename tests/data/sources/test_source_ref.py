"""What a configuration may write for a source, and what is opened for it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unseen_ray.data.sources.registry import SOURCES, SourceRef, default_test, open_source, source_ref
from unseen_ray.errors import ConfigError

MakeData = Callable[..., Path]


def a_source() -> None:
    """Stands for a user's function."""


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "imagenet"])
def test_a_name_is_itself(name: str) -> None:
    assert name in SOURCES
    assert source_ref(name) == SourceRef(name, {})
    assert source_ref({"use": name, "limit": 3}) == SourceRef(name, {"limit": 3})


def test_a_path_says_by_itself_what_it_holds(parquet_file: MakeData, image_folder: MakeData) -> None:
    parquet, folder = parquet_file(name="set/train.parquet"), image_folder()
    assert source_ref(str(parquet)) == SourceRef("parquet", {"path": str(parquet)})
    assert source_ref(str(parquet.parent)) == SourceRef("parquet", {"path": str(parquet.parent)})
    assert source_ref(f"{parquet.parent}/*.parquet").use == "parquet"
    assert source_ref(f"file://{parquet}").use == "parquet"
    assert source_ref(str(folder)) == SourceRef("folder", {"path": str(folder)})
    assert source_ref(f"file://{folder}").use == "folder"
    assert source_ref({"path": str(folder), "limit": 4}) == SourceRef("folder", {"path": str(folder), "limit": 4})
    assert source_ref({"use": str(folder), "limit": 4}) == SourceRef("folder", {"path": str(folder), "limit": 4})


def test_parquet_one_folder_down_is_parquet(parquet_file: MakeData) -> None:
    path = parquet_file(name="set/data/train.parquet")
    assert source_ref(str(path.parent.parent)).use == "parquet"


def test_a_bare_word_is_a_path_where_there_is_one(image_folder: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_folder(name="pets")
    monkeypatch.chdir(root.parent)
    assert source_ref("pets") == SourceRef("folder", {"path": "pets"})
    assert len(open_source(source_ref("pets")).info) == 10


def test_a_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert source_ref("digits") == SourceRef("digits", {})


def test_a_target_and_a_function_are_not_called_to_be_named() -> None:
    assert source_ref("lab.data:pets") == SourceRef("lab.data:pets", {})
    assert source_ref({"use": "lab.data:pets", "root": "x"}) == SourceRef("lab.data:pets", {"root": "x"})
    assert source_ref(a_source) == SourceRef(a_source, {})
    assert source_ref({"use": a_source, "root": "x"}) == SourceRef(a_source, {"root": "x"})


def test_a_mapping_is_not_changed() -> None:
    value = {"use": "digits", "limit": 3}
    source_ref(value)
    assert value == {"use": "digits", "limit": 3}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "digit",
            r"^source='digit' is not a source, and no file or .* is here\. Allowed: digits, .*, a path or URI, .*Did you mean 'digits'\?",
        ),
        ({"limit": 3}, r"^source: a mapping needs `use` .* or `path`, and has \['limit'\]"),
        ({"use": "parquet"}, r"^source: parquet needs 'path'; write \{use: parquet, path: \.\.\.\}"),
        ({"use": "parquet", "image": "img"}, r"^source: parquet needs 'path'"),
        ({"use": "digits", "root": "x"}, r"^source: digits takes no option 'root'; it takes limit"),
        ({"use": "cifar10", "splt": "x"}, r"^source: cifar10 takes no option 'splt'.*Did you mean 'split'\?"),
        ({"use": "digits", "limit": 0}, r"^source\.limit=0 must be a whole number, 1 or more"),
        ({"use": "digits", "limit": True}, r"^source\.limit=True must be a whole number"),
        ({"use": "digits", 1: 2}, r"^source: option names must be text, not 1"),
        ({}, r"^source: a mapping needs `use`"),
        ({"use": "folder", "path": "x", "size": "big"}, r"^source\.size='big' must be a whole number"),
        ({"use": "folder", "path": 3}, r"^source\.path=3 is not allowed: it must be a path .*Write '\./3'"),
        ({"path": ""}, r"^source\.path='' is not allowed: .* non-empty"),
        ({"use": "cifar10", "root": " "}, r"^source\.root=' ' is not allowed"),
        ({"use": "parquet", "path": "x", "label": ""}, r"^source\.label='' must be text"),
        ({"use": "parquet", "path": "x", "label": 3}, r"^source\.label=3 must be text"),
        ("", r"^source='' is not allowed: it must be a name, a path or URI, or package\.module:function"),
        (2024, r"^source=2024 is not allowed: .*Write '\./2024'"),
        (["a/b"], r"^source=\['a/b'\] is not allowed"),
        ({"use": True}, r"^source=True is not allowed"),
        ("a/\0", r"^source='a/\\x00' is not allowed"),
        ("foo://bucket/set", r"foo://bucket/set cannot be opened"),
    ],
    ids=str,
)
def test_what_names_no_source_is_refused_with_what_does(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source_ref(value)


def test_the_field_is_named_in_the_message() -> None:
    with pytest.raises(ConfigError, match=r"^test='digit' is not a source"):
        source_ref("digit", field="test")
    with pytest.raises(ConfigError, match=r"^test\.limit=0"):
        source_ref({"use": "digits", "limit": 0}, field="test")


def test_several_faults_of_a_source_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        source_ref({"use": "folder", "limit": 0, "size": -1})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(("name", "split"), [("cifar10", "test"), ("cifar100", "test"), ("imagenet", "val")])
def test_the_default_test_is_the_source_s_own_whole_test_split(name: str, split: str) -> None:
    ref = source_ref({"use": name, "root": "data", "limit": 9})
    assert default_test(ref) == SourceRef(name, {"root": "data", "split": split})
    assert default_test(source_ref({"use": name, "split": "train"})) == SourceRef(name, {"split": split})
    assert default_test(source_ref({"use": name, "split": split})) is None


@pytest.mark.parametrize(
    "value",
    ["digits", "x.parquet", "lab:pets", a_source, {"use": "folder", "path": "x"}],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_other_sources_have_no_default_test(value: Any) -> None:
    assert default_test(source_ref(value)) is None


def test_a_reference_pickles() -> None:
    for value in ("digits", {"use": "digits", "limit": 3}, a_source, "lab:pets"):
        ref = source_ref(value)
        assert pickle.loads(pickle.dumps(ref)) == ref


def test_every_source_says_what_it_is() -> None:
    assert len(SOURCES) >= 6
    assert all(function.__doc__ for function in SOURCES.values())
