"""Who may import whom, as one table; every import of every module is checked against it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "unseen_ray"
ROOT = Path(__file__).parent.parent / PACKAGE
IN_FUNCTIONS = "~"  # before a library: only inside the function that needs it

ONE = (
    "resolve catalog crops recipe recipes checks config storage storage_speed sealed manifest lease run job parts votes vote_ranges "
    "stored_ids merging guarding scoring features patience sources sources.* weights"
)
SIX = (
    "api cli commands estimating flags interruption listing measuring preparing progress reporting reporting.* running summary summary.* "
    "sweeps "
    "tracking __init__ __main__"
)
# layer: modules, layers that they may import, libraries beside the standard one
TABLE: dict[int, tuple[str, set[int], str]] = {
    0: ("errors core core.*", {0}, "numpy"),
    1: (ONE, {0, 1}, "numpy pyarrow pydantic pydantic_core ~yaml ~sklearn ~PIL"),
    2: (
        "accounts choosing costing growing growing_long needs results judging offline planning preflight shipping watching executor "
        "pipeline reselect reselect_long streamed "
        "exporting packing comparison evaluation sharing stage_work sweeping sweeping.*",
        {0, 1, 2},
        "numpy pyarrow pydantic ~PIL ~scipy ~yaml",
    ),
    3: (
        "data data.* training training.*",
        {0, 1, 3},
        "numpy pyarrow torch torchvision PIL simplejpeg threadpoolctl safetensors",
    ),
    4: ("local", {0, 1, 2, 3, 4}, "numpy pyarrow torch"),
    5: ("distributed distributed.*", {0, 1, 2, 3, 5}, "numpy pyarrow ray ~torch ~optuna"),
    6: (
        SIX,
        {0, 1, 2, 3, 4, 5, 6},
        "numpy pyarrow pydantic click rich yaml jinja2 markupsafe matplotlib ~torch ~ray ~tensorboardX ~mlflow ~wandb",
    ),
}


@dataclass(frozen=True)
class Import:
    """One import statement: the module as it is written, and where it stands."""

    target: str
    in_function: bool
    line: int


def module_files() -> dict[str, Path]:
    """Modules by their name within the package; a folder's `__init__` bears the folder's name."""
    files = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        files[name] = path
    return files


MODULES = module_files()


def layers_of(module: str) -> list[int]:
    def fits(pattern: str) -> bool:
        return module.startswith(pattern[:-1]) if pattern.endswith(".*") else module == pattern

    return [layer for layer, (patterns, _, _) in TABLE.items() if any(fits(pattern) for pattern in patterns.split())]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports_of(node: ast.AST, in_function: bool = False) -> Iterator[Import]:
    """Every import below `node`, but those for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, in_function, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            home = "." * child.level + (child.module or "")
            yield from (Import(f"{home}.{alias.name}", in_function, child.lineno) for alias in child.names)
        elif is_type_checking(child):
            for other in child.orelse:
                yield from imports_of(ast.Module([other], []), in_function)
        else:
            inside = in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports_of(child, inside)


def own_module(target: str) -> str:
    """The module of the package that holds `target`: the longest prefix that is one, else the package itself."""
    parts = target.split(".")[1:]
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in MODULES), "__init__")


def refusal(module: str, found: Import) -> str | None:
    """Why the table forbids this import; None if it does not."""
    (layer,) = layers_of(module)
    _, layers, libraries = TABLE[layer]
    top = found.target.split(".")[0]
    if not top:
        return "is relative"
    if top == PACKAGE:
        (other,) = layers_of(own_module(found.target))
        return None if other in layers else f"is of layer {other}"
    if top in sys.stdlib_module_names or top in libraries.split():
        return None
    if IN_FUNCTIONS + top in libraries.split():
        return None if found.in_function else f"({top}) stands outside a function"
    return f"({top}) is no library of layer {layer}"


def refusals(module: str, source: str) -> list[str]:
    checked = ((found, refusal(module, found)) for found in imports_of(ast.parse(source)))
    return [f"{module}:{found.line} imports {found.target}, which {why}" for found, why in checked if why]


def test_every_module_is_in_the_table_once() -> None:
    assert len(MODULES) > 40
    assert {module: layers_of(module) for module in MODULES if len(layers_of(module)) != 1} == {}


def test_every_entry_of_the_table_stands_for_modules() -> None:
    patterns = [pattern for names, _, _ in TABLE.values() for pattern in names.split()]
    idle = [p for p in patterns if not any(m == p or (p.endswith(".*") and m.startswith(p[:-1])) for m in MODULES)]
    assert idle == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    assert refusals(module, MODULES[module].read_text()) == []


def test_imports_were_found() -> None:
    found = [item for path in MODULES.values() for item in imports_of(ast.parse(path.read_text()))]
    assert len(found) > 300
    assert sum(item.in_function for item in found) > 20
    assert {"torch", "ray", "numpy", PACKAGE} <= {item.target.split(".")[0] for item in found}


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("core.scores", "import numpy.linalg", True),
        ("core.scores", "from unseen_ray.errors import ConfigError", True),
        ("core.scores", "import pyarrow", False),
        ("core.scores", "def f():\n    import torch", False),
        ("core.scores", "from unseen_ray import errors", True),
        ("core.scores", "from unseen_ray import config", False),
        ("core.scores", "from unseen_ray import plan_folds", False),
        ("core.scores", "from . import folds", False),
        ("errors", "class A:\n    try:\n        import ray\n    except ImportError:\n        pass", False),
        ("config", "from unseen_ray.pruning.pipeline import prune", False),
        ("config", "def f():\n    from unseen_ray import pipeline", False),
        ("config", "import yaml", False),
        ("config", "def f():\n    import yaml", True),
        ("config", "if TYPE_CHECKING:\n    import torch", True),
        ("config", "if TYPE_CHECKING:\n    import torch\nelse:\n    import ray", False),
        ("pipeline", "from unseen_ray.data.images.planes import Plane", False),
        ("pipeline", "def f():\n    import ray", False),
        ("training.fit", "import ray", False),
        ("training.fit", "from unseen_ray import pipeline", False),
        ("local", "from unseen_ray.execution.ray.actor_pool import FoldPool", False),
        ("distributed.pool", "from unseen_ray.execution.local import LocalExecutor", False),
        ("distributed.pool", "import torch", False),
        ("distributed.pool", "async def f():\n    import torch", True),
        ("cli", "import ray", False),
        ("cli", "def f():\n    import ray", True),
    ],
)
def test_the_check_tells_good_from_bad(module: str, source: str, allowed: bool) -> None:
    assert (refusals(module, source) == []) is allowed
