"""Flags made from the fields of the configuration: `--keep 0.7`, `--recipe.epochs 30`, `--source.limit 1000`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import NoneType
from typing import Any, TypeVar, get_args

import click
from pydantic.fields import FieldInfo

from unseen_ray.cli.nested_options import nested_records
from unseen_ray.cli.output import say
from unseen_ray.config.fields.listing import HELP_GROUPS, HelpEntry, help_entry
from unseen_ray.config.fields.yaml_text import parsed_yaml
from unseen_ray.config.recipe import Recipe
from unseen_ray.config.run import PruneConfig, load_yaml
from unseen_ray.config.scoring import Scoring
from unseen_ray.errors import ConfigError

__all__ = [
    "FieldCommand",
    "FieldOption",
    "field_options",
    "given_flags",
    "merged_fields",
    "normalised",
    "with_flags",
    "with_place",
]

# Fields whose value may be a mapping, so that `--score.skip 0.1` sets an option of the score.
_NESTED = (
    "source",
    "test",
    "schedule",
    "score",
    "policy",
    "guard",
    "model",
    "scoring",
    "fit",
    "log_to",
    "group",
    "placement",
)
# Read as text: YAML would turn a folder named 2026 into a number, and one named `on` into a boolean.
_TEXT = ("source", "test", "out", "reuse", "address", "pixel_folder")
_NESTED_VALUES = "unseen_ray.nested"
_ALL = "unseen_ray.help_all"
_WORDS: Mapping[Any, str] = {bool: "true|false", int: "INT", float: "NUMBER", str: "TEXT"}
_MANY = 12  # a command with fewer fields lists them in one go
Command = TypeVar("Command", bound=Callable[..., Any])


class FieldCommand(click.Command):
    """A command whose flags are fields: `-` and `_` are equal, and fields of a mapping are dotted.

    A command with many fields lists them in groups, and those that are rarely used under `--help-all` alone.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take out dotted flags such as `--source.limit`, then parse the rest."""
        fields = {option[2:] for parameter in self.params for option in parameter.opts if option.startswith("--")}
        plain, nested = _split_nested(normalised(args), fields & set(_NESTED))
        ctx.meta[_NESTED_VALUES] = nested
        return super().parse_args(ctx, plain)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The parameters, with `--help-all` if there are many fields."""
        params = super().get_params(ctx)
        return [*params[:-1], _HELP_ALL, params[-1]] if self._has_many_fields() else params

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options group by group."""
        if not self._has_many_fields():
            return super().format_options(ctx, formatter)
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in (*HELP_GROUPS.values(), "Options")}
        for parameter in self.get_params(ctx):
            listing = parameter.listing if isinstance(parameter, FieldOption) else None
            record = parameter.get_help_record(ctx)
            # The usage line names the arguments.
            if isinstance(parameter, click.Argument):
                continue
            if record is not None and (listing is None or not listing.rare or ctx.meta.get(_ALL)):
                section = sections[HELP_GROUPS[listing.group] if listing else "Options"]
                section += [record, *(nested_records(str(parameter.name)) if ctx.meta.get(_ALL) else [])]
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        return None

    def _has_many_fields(self) -> bool:
        return sum(isinstance(parameter, FieldOption) for parameter in self.params) > _MANY


class FieldOption(click.Option):
    """The flag of a field."""

    def __init__(self, *args: Any, listing: HelpEntry, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.listing = listing


class _HelpAllOption(click.Option):
    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        # Parsed with an underscore, as every flag is.
        return "--help-all", str(self.help)


def _show_all(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked:
        ctx.meta[_ALL] = True
        say(ctx.get_help())
        ctx.exit()


_HELP_ALL = _HelpAllOption(
    ["--help_all"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_all,
    help="list every option, also those rarely used",
)


def field_options(
    *, only: Iterable[str] | None = None, inherited: bool = False, text: str | None = None, rare: bool = False
) -> Callable[[Command], Command]:
    """A decorator that adds a flag for each field, with its description and default.

    Args:
        only: names of the fields; None for all, the recipe's included.
        inherited: fields that are not given come from a finished run, not from the defaults.
        text: what the help says of each, where a field has another use than in a run; None for its description.
        rare: whether only `--help-all` lists them, whatever the fields say.
    """
    names = list(PruneConfig.model_fields) if only is None else list(only)
    rows = [(name, PruneConfig.model_fields[name], "") for name in names]
    if "recipe" in names:
        rows += [(name, field, "recipe.") for name, field in Recipe.model_fields.items() if name != "use"]

    def decorate(command: Command) -> Command:
        # Decorators apply from the inside out, so the option that is added last is shown first.
        for name, field, prefix in reversed(rows):
            option = click.option(
                f"--{prefix}{name}",
                # Python names cannot hold a dot.
                f"{prefix}{name}".replace(".", "__"),
                cls=FieldOption,
                listing=replace(help_entry(field), rare=rare or help_entry(field).rare),
                metavar=_metavar(field),
                help=text or _help(field, inherited=inherited),
                default=None,
            )
            command = option(command)
        return command

    return decorate


def normalised(args: Iterable[str]) -> list[str]:
    """The arguments with `_` instead of `-` in the names of flags; values are left alone."""
    changed = []
    for arg in args:
        if arg.startswith("--") and len(arg) > 2:
            name, equals, value = arg[2:].partition("=")
            arg = f"--{name.replace('-', '_')}{equals}{value}"
        changed.append(arg)
    return changed


def merged_fields(yaml_path: str | None, flags: Mapping[str, str | None]) -> dict[str, Any]:
    """Fields of a YAML file overridden by flags; see `with_flags`.

    Raises:
        ConfigError: if the file cannot be read.
    """
    return with_flags(load_yaml(yaml_path) if yaml_path else {}, flags)


def with_flags(fields: Mapping[str, Any], flags: Mapping[str, str | None]) -> dict[str, Any]:
    """Fields overridden by flags, whose values are read as YAML."""
    fields = dict(fields)
    nested = click.get_current_context().meta.get(_NESTED_VALUES, {})
    # Whole fields first: `--score window --score.skip 0.1` changes an option of the score that this line names.
    for name, text in flags.items():
        if text is not None and "__" not in name:
            fields[name] = _value(text, plain=name in _TEXT)
    for name, text in [*((k.replace("__", ".", 1), v) for k, v in flags.items() if "__" in k), *nested.items()]:
        if text is None:
            continue
        _set(fields, name, _value(text))
    return fields


def _set(fields: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted field, such as `scoring.recipe.epochs`; a name in its place becomes `{use: name}`."""
    field, _, option = name.partition(".")
    if not option:
        fields[field] = value
        return
    before = fields.get(field)
    fields[field] = dict(before) if isinstance(before, Mapping) else {} if before is None else {"use": before}
    _set(fields[field], option, value)


def with_place(place: str | None, flags: Mapping[str, str | None]) -> dict[str, str | None]:
    """The flags of a command whose source may also be named without `--source`; ConfigError if both are."""
    if place is not None and flags["source"] is not None:
        raise ConfigError(f"SOURCE {place} and --source {flags['source']} are two sources. Give one.")
    return {**flags, "source": place or flags["source"]}


def given_flags(flags: Mapping[str, str | None]) -> list[str]:
    """The flags of this command line, in a form that another command line takes."""
    nested = click.get_current_context().meta.get(_NESTED_VALUES, {})
    named = {name.replace("__", ".", 1): text for name, text in flags.items() if text is not None}
    return [part for name, text in {**named, **nested}.items() for part in (f"--{name}", text)]


def _split_nested(args: list[str], fields: set[str]) -> tuple[list[str], dict[str, str]]:
    plain: list[str] = []
    nested: dict[str, str] = {}
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg[2:].partition("=") if arg.startswith("--") else ("", "", "")
        if name.partition(".")[0] in fields and "." in name:
            given = value if equals else next(rest, None)
            if given is None:
                raise ConfigError(f"--{name} needs a value, such as --{name} 100.")
            nested[name] = given
        else:
            plain.append(arg)
    return plain, nested


def _value(text: str, *, plain: bool = False) -> Any:
    """A flag's value read as YAML; if `plain` (a path or a name), the text itself, unless it is a mapping or a list."""
    try:
        value = parsed_yaml(text)
    except ValueError:
        return text
    return text if plain and not isinstance(value, (dict, list)) else value


def _metavar(field: FieldInfo) -> str:
    """The word that stands for a field's value: the one that it names, else by its type."""
    if word := help_entry(field).metavar:
        return word
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
    if all(isinstance(kind, type) for kind in kinds):
        return _WORDS[kinds[0]]
    names = [name for kind in kinds for name in get_args(kind) or (kind,)]
    return "|".join(map(str, names))


def _help(field: FieldInfo, *, inherited: bool) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, Recipe):
        default = default.use
    # `out` is required here, whatever its default is: the new folder is never that of the run.
    if inherited and not field.is_required() and field.description != PruneConfig.model_fields["out"].description:
        own = re.sub(r"; default: [^;]*", "", str(field.description))
        return f"{own}  [default: the run's]"
    if field.is_required() or default is None or isinstance(default, Scoring):
        return str(field.description)
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return f"{field.description}  [default: {shown}]"
