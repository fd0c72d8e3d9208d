"""Names of functions as version 0.1.0 called them: stored in manifests and in users' files, they still mean the same."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

import unseen_ray as ur
from unseen_ray.core import select
from unseen_ray.plugins import _MOVED, _MOVED_FUNCTIONS, current_names, import_target, name_of
from unseen_ray.runs.layout import MANIFEST, MANIFEST_COPY
from unseen_ray.storage.checked_json import from_checked_json, to_checked_json

POLICIES = {
    "class_balanced": "unseen_ray.core.classwise",
    "class_floor": "unseen_ray.core.classwise",
    "class_quota": "unseen_ray.core.classwise",
    "d2": "unseen_ray.core.diversity",
    "k_center": "unseen_ray.core.diversity",
}
FAST: dict[str, Any] = {
    "source": {"use": "digits", "limit": 60},
    "keep": 0.5,
    "folds": 2,
    "recipe": {"epochs": 1, "min_steps": 0},
    "executor": "local",
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_found_by_its_former_name(name: str) -> None:
    assert import_target(f"{POLICIES[name]}:{name}") is getattr(select, name)


@pytest.mark.parametrize("name", select.__all__)
def test_a_policy_is_found_by_the_name_that_is_stored_now(name: str) -> None:
    assert import_target(name_of(getattr(select, name))) is getattr(select, name)


def test_the_table_is_of_modules_that_are_gone_and_of_modules_that_are_there() -> None:
    for before, now in _MOVED.items():
        importlib.import_module(now)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(before)


@pytest.mark.parametrize(("before", "now"), _MOVED_FUNCTIONS.items())
def test_a_function_that_left_its_module_is_found_where_it_is(before: str, now: str) -> None:
    assert import_target(before) is import_target(now)
    assert name_of(import_target(now)) == current_names(before) == now


def test_only_names_of_moved_functions_change() -> None:
    kept = {"score": "entropy", "model": "torchvision.models:resnet18", "keep": 0.5, "log_to": None, "out": "a:b"}
    assert current_names(kept) == kept
    nested = {"policy": {"use": "unseen_ray.core.diversity:d2", "k": 3}, "also_score": ["unseen_ray.core.classwise:x"]}
    assert current_names(nested) == {
        "policy": {"use": "unseen_ray.core.policies.by_features:d2", "k": 3},
        "also_score": ["unseen_ray.core.policies.by_class:x"],
    }


FORMER = {"class_balanced": "unseen_ray.core.classwise:class_balanced", "ccs": "unseen_ray.core.select:ccs"}


@pytest.mark.parametrize("name", FORMER)
@pytest.mark.parametrize("by_former_name", [False, True])
def test_a_run_whose_manifest_has_the_former_name_goes_on(tmp_path: Path, name: str, by_former_name: bool) -> None:
    out, policy = tmp_path / "run", getattr(select, name)
    first = ur.prune(ur.PruneConfig(**FAST, policy=policy, out=out))
    values = from_checked_json((out / MANIFEST).read_bytes())
    now = values["asked"]["policy"]
    assert now == name_of(policy) != FORMER[name]
    before = json.loads(json.dumps(values).replace(now, FORMER[name]))
    for file in (MANIFEST, MANIFEST_COPY):
        (out / file).write_bytes(to_checked_json({**before, "stages": [], "files": {}, "finished": False}))
    asked = FORMER[name] if by_former_name else policy
    again = ur.prune(ur.PruneConfig(**FAST, policy=asked, out=out))
    assert again.coreset.ids.tolist() == first.coreset.ids.tolist()
    with pytest.raises(ur.ConfigError, match="differs in policy"):
        ur.prune(ur.PruneConfig(**FAST, policy=select.class_floor, out=out))
