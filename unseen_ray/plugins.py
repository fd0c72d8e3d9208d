"""From the names that people write to the functions they mean: "margin", "my_lab.scores:gini", or the function itself."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from unseen_ray.errors import ConfigError

__all__ = [
    "bind_options",
    "check_function",
    "check_plug",
    "current_names",
    "did_you_mean",
    "function_of",
    "import_target",
    "is_target",
    "name_of",
    "named",
    "offered",
    "plug_of",
    "refuse_unnamed",
]

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

_MOVED = {
    "unseen_ray.core.baselines": "unseen_ray.evaluation.baselines",
    "unseen_ray.core.classwise": "unseen_ray.core.policies.by_class",
    "unseen_ray.core.diversity": "unseen_ray.core.policies.by_features",
}
"""Modules whose functions manifests and users' files may name as they were called in version 0.1.0, and where these are now."""

# `core.select` still holds these names, but a function says of itself where its code is, and a resumed run compares the two.
_MOVED_FUNCTIONS = {
    f"unseen_ray.core.select:{name}": f"unseen_ray.core.policies.{module}:{name}"
    for module, names in {"beta": ["beta"], "by_rank": ["moderate", "random", "top", "window"], "ccs": ["ccs"]}.items()
    for name in names
}


def is_target(value: object) -> bool:
    """Whether a string has the form `package.module:function`."""
    return isinstance(value, str) and _TARGET.fullmatch(value) is not None


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """' Did you mean ...?' for the nearest of the allowed names, or nothing."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def import_target(target: str) -> Any:
    """Import what `package.module:name` names.

    Raises:
        ConfigError: saying which half failed.
    """
    module_name, _, attribute = current_names(target).partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigError(
                f"{target}: importing {module_name} failed, because {error}. Install what it needs."
            ) from error
        raise ConfigError(
            f"{target}: there is no module {module_name!r} on the Python path. "
            "Write package.module:function, and run from the folder that holds it (with ray job submit: --working-dir .)."
        ) from None
    except Exception as error:
        raise ConfigError(f"{target}: importing {module_name} raised {type(error).__name__}: {error}.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(
                f"{target}: module {module_name} has no {attribute!r}.{did_you_mean(attribute, dir(found))}"
            )
        found = getattr(found, part)
    return found


def current_names(value: Any) -> Any:
    """What a configuration says as JSON, with functions of ours that have moved by their present names."""
    if isinstance(value, dict):
        return {key: current_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [current_names(item) for item in value]
    if not is_target(value):
        return value
    module_name, _, attribute = value.partition(":")
    return _MOVED_FUNCTIONS.get(value, f"{_MOVED.get(module_name, module_name)}:{attribute}")


def name_of(function: Callable[..., Any] | str) -> str:
    """`package.module:function` of a function, or the name itself."""
    if isinstance(function, str):
        return function
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', repr(function))}"


_GIVEN: dict[str, tuple[int, tuple[str, ...]]] = {
    "score": (2, ()),
    "score over epochs": (0, ()),
    "policy": (4, ("kept_C", "seed")),
    "fit": (1, ("source",)),
    "model": (0, ("num_classes",)),
    "guard": (0, ()),
}
_OFFERED = {
    "policy": ("pred_M", "p_label_M", "consistency_M", "features_MD", "kept_features_KD", "kept_labels_K"),
    "guard": ("ids_M", "labels_M", "pred_M", "p_label_M", "probs_MC", "seed"),
    "score": ("head_norm_N", "max_logit_N", "epoch_view"),
}
"""What a function is given where its signature asks for it."""


def bind_options(
    function: Callable[..., Any], options: dict[str, Any], *, field: str, name: str, more: Iterable[str] = ()
) -> None:
    """Check keyword options against a function's signature, before anything starts.

    Args:
        function: what will be called.
        options: by name.
        field: of the configuration; what this kind of function is given anyway is no option.
        name: how messages call the function.
        more: what else the function is given if its signature asks for it, such as the scores that a guard reads.

    Raises:
        ConfigError: naming each option that the function does not take.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    parameters = signature.parameters.values()
    positional, always = _GIVEN.get(field, (0, ()))
    keywords = (*always, *(name for name in (*_OFFERED.get(field, ()), *more) if name in signature.parameters))
    given = [
        *[p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:positional],
        *keywords,
    ]
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    takes = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in given]
    problems = [
        f"{field}: {name} takes no option {option!r}; it takes {', '.join(takes) or 'none'}.{did_you_mean(option, takes)}"
        for option in options
        if option in given or (option not in takes and not free)
    ]
    if problems:
        raise ConfigError(problems)
    if field not in _GIVEN:
        return
    try:
        signature.bind(*[None] * positional, **dict.fromkeys(keywords), **options)
    except TypeError as error:
        raise ConfigError(
            f"{field}: {name}{signature} cannot be called as a {field} is: {error}. docs/extend.md shows what a {field} takes."
        ) from None


def offered(function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that a function's signature asks for by name."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in parameters}


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it; functions by `package.module:name`."""
    if callable(value):
        return name_of(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value


def plug_of(value: Any) -> tuple[str | Callable[..., Any], dict[str, Any]]:
    """Split what a configuration says of a plug into what to use and its options.

    >>> plug_of({"use": "window", "skip_hardest": 0.1})
    ('window', {'skip_hardest': 0.1})
    """
    if isinstance(value, dict):
        options = dict(value)
        return options.pop("use"), options
    return value, {}


def named(value: Any) -> Any:
    """A stored value that is None, a name, or a mapping with the name as `use`; ValueError for another."""
    if value is None or isinstance(value, str) or (isinstance(value, Mapping) and isinstance(value.get("use"), str)):
        return value
    raise ValueError(f"{value!r} is neither a name nor a mapping with `use`")


def check_plug(value: Any, *, field: str, names: Iterable[str], kind: str) -> list[str]:
    """Problems of a plug's form: no function, no `package.module:function`, and no known name."""
    names = list(names)
    if isinstance(value, dict):
        if "use" not in value:
            return [f"{field}: a mapping needs `use`; write {{use: <{kind}>, <option>: ...}}."]
        if bad := [key for key in value if not isinstance(key, str)]:
            return [f"{field}: option names are text, not {bad[0]!r}."]
        value = value["use"]
    if callable(value):
        return check_function(value, field=field)
    if is_target(value):
        return []
    if not isinstance(value, str):
        return [f"{field}={value!r} is not a {kind}: give a name, package.module:function, or a function."]
    if value in names:
        return []
    allowed = ", ".join([*names, "package.module:function"])
    return [f"{field}={value!r} is not a {kind}. Allowed: {allowed}.{did_you_mean(value, names)}"]


def check_function(function: Callable[..., Any], *, field: str) -> list[str]:
    """Whether a function has a name by which a resumed run can know it again: a lambda, a closure or a partial has none."""
    bound = inspect.ismethod(function) and not inspect.isclass(function.__self__)
    if is_target(name_of(function)) and not bound:
        return []
    what = "a method of an object" if bound else name_of(function).rpartition(":")[2]
    return [
        f"{field}={what} has no name of its own, by which the run could be resumed. Write it with def at the top level of a module, "
        f"and give its options as {{use: function, option: value}}."
    ]


def function_of(value: Any, module: Any, *, field: str, more: Iterable[str] = ()) -> Callable[..., Any]:
    """The function of a plug with its options bound, from `module` where it is a bare name.

    Raises:
        ConfigError: if it cannot be imported, is no function, or does not take the options.
    """
    import functools

    use, options = plug_of(value)
    function = use
    if isinstance(use, str):
        function = import_target(use) if is_target(use) else getattr(module, use)
    if not callable(function):
        raise ConfigError(f"{field}: {name_of(use)} is of type {type(function).__name__}, not a function.")
    bind_options(function, options, field=field, name=name_of(use), more=more)
    return functools.partial(function, **options) if options else function


def refuse_unnamed(functions: Iterable[tuple[str, str]]) -> None:
    """Refuse functions that only a run's folder names, all at once.

    Args:
        functions: (field, `package.module:function`) of each.

    Raises:
        ConfigError: with the flags that name them.
    """
    found: dict[str, list[str]] = {}
    for field, target in dict.fromkeys(functions):
        found.setdefault(field, []).append(target)
    if not found:
        return
    named = {field: " and ".join(targets) for field, targets in found.items()}
    is_one = sum(map(len, found.values())) == 1
    raise ConfigError(
        f"the run's {', '.join(f'{field} is {targets}' for field, targets in named.items())}: "
        f"{'a user-defined function' if is_one else 'user-defined functions'}, which unseen_ray does not import just because a run "
        f"folder names {'it' if is_one else 'them'}. Name {'it' if is_one else 'them'} yourself: "
        + " ".join(f"--{field} {targets}" for field, targets in named.items())
        + "."
    )
