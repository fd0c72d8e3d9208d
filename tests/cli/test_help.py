"""`--help`: fields in groups, the rarely used ones under `--help-all` alone, and a word for every value."""

from __future__ import annotations

import inspect
import re

import click
import pytest
from pydantic.fields import FieldInfo

from unseen_ray.cli import main
from unseen_ray.cli.app import cli
from unseen_ray.cli.flags import FieldOption
from unseen_ray.config.fields.listing import HELP_GROUPS, help_entry
from unseen_ray.config.recipe import Recipe
from unseen_ray.config.run import PruneConfig
from unseen_ray.config.scoring import Scoring
from unseen_ray.data.sources.registry import SOURCES

FIELDS = {**PruneConfig.model_fields, **{f"recipe.{name}": field for name, field in Recipe.model_fields.items()}}


def answer(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    main(list(args))
    return capsys.readouterr().out


def flags_by_section(text: str) -> dict[str, set[str]]:
    sections: dict[str, set[str]] = {}
    for line in text.splitlines():
        if found := re.fullmatch(r"(\w[\w ]*):", line):
            sections[found[1]] = set()
        elif found := re.match(r"  (?:-h, )?--([\w.-]+)", line):
            list(sections.values())[-1].add(found[1])
    return sections


def test_every_field_names_its_group() -> None:
    assert len(FIELDS) > 50
    assert {help_entry(field).group for field in FIELDS.values()} == set(HELP_GROUPS)
    with pytest.raises(TypeError, match="'new' names no group"):
        help_entry(FieldInfo(description="new"))


@pytest.mark.parametrize("command", ["plan", "prune"])
def test_fields_are_listed_in_groups_and_rare_ones_by_help_all(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    short, whole = (flags_by_section(answer(capsys, command, flag)) for flag in ("--help", "--help-all"))
    assert list(whole) == [*HELP_GROUPS.values(), "Options"]
    for group, title in HELP_GROUPS.items():
        fields = {name: help_entry(field) for name, field in FIELDS.items() if name != "recipe.use"}
        nested = {name for name in whole[title] if name.startswith(("source.", "scoring."))}
        assert whole[title] - nested == {name for name, listing in fields.items() if listing.group == group}
        assert short[title] == {name for name in whole[title] - nested if not fields[name].rare}
    assert sum(map(len, short.values())) < 45 < sum(map(len, whole.values()))


def test_help_all_lists_the_options_of_sources_and_of_scoring(capsys: pytest.CaptureFixture[str]) -> None:
    listed = flags_by_section(answer(capsys, "prune", "--help-all"))
    options = {name for function in SOURCES.values() for name in inspect.signature(function).parameters}
    assert {name for name in listed["Data"] if "." in name} == {f"source.{name}" for name in options}
    assert {f"scoring.{name}" for name in Scoring.model_fields} < listed["Training"]


def test_values_are_words() -> None:
    words = {
        f"{name} {option.name}": option.metavar
        for name, command in cli.commands.items()
        for option in command.params
        if isinstance(option, click.Option) and option.metavar is not None
    }
    assert len(words) > 100
    assert all(re.fullmatch(r"[A-Za-z0-9_|]+", word) for word in words.values()), words
    assert words["prune recipe__init_saw"] == "none"


def test_few_fields_are_listed_in_one_go(capsys: pytest.CaptureFixture[str]) -> None:
    sections = flags_by_section(answer(capsys, "select", "--help"))
    assert list(sections) == ["Options"] and "combine" in sections["Options"]
    with pytest.raises(SystemExit):
        main(["select", "--help-all"])
    assert all(isinstance(option, FieldOption) for option in cli.commands["select"].params[1:-1])
