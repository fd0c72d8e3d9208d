"""A folder is a rank: a module imports its own top folder, or folders of lower ranks, and the libraries of its folder."""

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

# folder, or module at the top: rank, libraries beside the standard one
TABLE: dict[str, tuple[int, str]] = {
    "errors": (0, ""),
    "core": (1, "numpy"),
    "storage": (1, "numpy pyarrow tenacity ~boto3 ~botocore ~huggingface_hub"),
    "plugins": (2, ""),
    "data": (3, "numpy pyarrow torch PIL"),
    "data/listing": (3, "numpy ~pyarrow"),
    "data/sources": (3, "numpy pyarrow ~PIL ~sklearn"),
    "data/related": (3, "numpy pyarrow"),
    "data/images": (3, "numpy PIL simplejpeg"),
    "data/prepare": (3, "numpy pyarrow"),
    "config": (4, "numpy pyarrow pydantic pydantic_core ~yaml"),
    "runs": (5, "numpy pyarrow pydantic"),
    "training": (6, "numpy torch ~torchvision safetensors ~threadpoolctl"),
    "training/loop": (6, "numpy torch ~torchvision safetensors"),
    "pruning": (6, "numpy pyarrow ~scipy"),
    "execution": (7, "numpy torch rich ~ray ~tensorboardX ~mlflow ~wandb"),
    "execution/estimate": (7, "numpy torch"),
    "execution/ray": (7, "numpy ray ~torch"),
    "execution/ray/io": (7, "numpy pyarrow ray"),
    "evaluation": (8, "numpy ~scipy"),
    "reporting": (9, "numpy pyarrow jinja2 markupsafe matplotlib yaml ~PIL"),
    "sweeps": (10, "numpy pyarrow pydantic ray matplotlib yaml ~optuna"),
    "cli": (11, "click rich pydantic ~yaml"),
    "cli/commands": (11, "click ~rich"),
    "cli/summary": (11, "numpy rich"),
    "__init__": (12, ""),
    "__main__": (12, ""),
}
MAY_USE_PUBLIC_NAMES = ("cli",)  # it is a client of `import unseen_ray`


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


def entry_of(module: str) -> str:
    """The table's entry for a module: the nearest folder above it that has one, or its own name at the top."""
    parts = MODULES[module].relative_to(ROOT).with_suffix("").parts
    folders = ["/".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)] or [parts[0]]
    return next(folder for folder in folders if folder in TABLE)


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
    rank, libraries = TABLE[entry_of(module)]
    top = found.target.split(".")[0]
    if not top:
        return "is relative"
    if top == PACKAGE:
        other = own_module(found.target)
        here, there = (entry_of(name).split("/")[0] for name in (module, other))
        if here == there or TABLE[entry_of(other)][0] < rank or (other == "__init__" and here in MAY_USE_PUBLIC_NAMES):
            return None
        return f"is of {there}, which is no lower than {here}"
    if top in sys.stdlib_module_names or top in libraries.split():
        return None
    if IN_FUNCTIONS + top in libraries.split():
        return None if found.in_function else f"({top}) stands outside a function"
    return f"({top}) is no library of {entry_of(module)}"


def refusals(module: str, source: str) -> list[str]:
    checked = ((found, refusal(module, found)) for found in imports_of(ast.parse(source)))
    return [f"{module}:{found.line} imports {found.target}, which {why}" for found, why in checked if why]


def test_every_folder_is_in_the_table_and_every_entry_is_a_folder() -> None:
    assert len(MODULES) > 40
    assert {entry_of(module) for module in MODULES} == set(TABLE)


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
        ("core.scores", "from unseen_ray.config import run", False),
        ("core.scores", "from unseen_ray.storage import filesystem", False),
        ("core.scores", "from unseen_ray import plan_folds", False),
        ("core.scores", "from . import folds", False),
        ("core.samples.coreset", "from unseen_ray.core.policies import distances", True),
        ("errors", "class A:\n    try:\n        import ray\n    except ImportError:\n        pass", False),
        ("config.run", "from unseen_ray.pruning.pipeline import prune", False),
        ("config.run", "def f():\n    from unseen_ray.pruning import pipeline", False),
        ("config.run", "import yaml", False),
        ("config.run", "def f():\n    import yaml", True),
        ("config.run", "if TYPE_CHECKING:\n    import torch", True),
        ("config.run", "if TYPE_CHECKING:\n    import torch\nelse:\n    import ray", False),
        ("pruning.pipeline", "from unseen_ray.training.loop import fit", False),
        ("pruning.pipeline", "def f():\n    import ray", False),
        ("training.loop.fit", "import ray", False),
        ("training.loop.fit", "from unseen_ray.pruning import pipeline", False),
        ("execution.local", "import ray", False),
        ("execution.ray.actor_pool", "import torch", False),
        ("execution.ray.actor_pool", "async def f():\n    import torch", True),
        ("reporting.page", "from unseen_ray import prune", False),
        ("cli.app", "from unseen_ray import prune", True),
        ("cli.app", "import ray", False),
        ("cli.app", "def f():\n    import ray", False),
    ],
)
def test_the_check_tells_good_from_bad(module: str, source: str, allowed: bool) -> None:
    assert (refusals(module, source) == []) is allowed


def test_the_environment_is_read_in_one_module() -> None:
    touched = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.putenv")
    }
    assert touched == {"storage.environment", "training.hardware"}  # the latter only sets what torch's libraries read
