"""Public names exist, are documented, and can be reached as CONTRACT.md writes them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import numpy as np
import pytest

import unseen_ray as ur

FOUND = sorted(pkgutil.walk_packages(ur.__path__, "unseen_ray."), key=lambda info: info.name)
MODULES = [info.name for info in FOUND]
CORE = [info.name for info in FOUND if info.name.startswith("unseen_ray.core.") and not info.ispkg]
PROMISED = ["PruneConfig", "prune", "evaluate", "plan_folds", "torch_subset"]


def imported(name: str) -> ModuleType:
    return importlib.import_module(name)


def public_names(module: ModuleType) -> list[str]:
    return getattr(module, "__all__", [])


def test_modules_were_found() -> None:
    assert len(MODULES) > 40
    assert len(CORE) >= 10


@pytest.mark.parametrize("name", ur.__all__)
def test_a_name_of_the_package_resolves(name: str) -> None:
    assert getattr(ur, name) is not None
    assert name in dir(ur)


def test_the_promised_names_are_public() -> None:
    assert set(PROMISED) <= set(ur.__all__)
    assert sorted(ur.__all__) == sorted(set(ur.__all__))


def test_importing_a_folder_takes_no_public_name_away() -> None:
    for name in MODULES:
        imported(name)
    assert [name for name in ur.__all__ if isinstance(getattr(ur, name), ModuleType)] == ["core"]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'unseen_ray' has no attribute 'prun'"):
        _ = ur.prun


@pytest.mark.parametrize("name", MODULES)
def test_a_module_lists_only_names_that_exist(name: str) -> None:
    module = imported(name)
    listed = public_names(module)
    assert [missing for missing in listed if not hasattr(module, missing)] == []
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_for(name: str) -> None:
    assert imported(name).__doc__ or not inspect.getsource(imported(name)).strip()


@pytest.mark.parametrize("name", CORE)
def test_core_modules_have_public_names_with_docstrings(name: str) -> None:
    module = imported(name)
    listed = public_names(module)
    assert listed
    own = [getattr(module, each) for each in listed if inspect.isroutine(getattr(module, each))]
    own += [getattr(module, each) for each in listed if inspect.isclass(getattr(module, each))]
    for thing in own:
        written = thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__
        assert written and not written.startswith(f"{thing.__name__}("), f"{name}.{thing.__name__} has no docstring"


def test_scores_and_tie_keys_are_reached_through_the_package() -> None:
    scores = ur.core.scores.entropy(np.log(np.array([[0.5, 0.5], [0.9, 0.1]])), np.array([0, 0]))
    assert scores[0] > scores[1]
    assert ur.core.seeds.tie_keys(np.arange(3), 0).dtype == np.uint64
    assert ur.plan_folds(10, 3, 0).num_folds == 3
