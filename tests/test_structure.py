"""How large the rooms are: modules in a folder, imports in a row, lines of a function. `python -m tests.test_structure` prints them."""

from __future__ import annotations

import ast
import functools
from collections import Counter, defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

from tests.test_layers import MODULES, PACKAGE, ROOT, imports_of, own_module

MOST_MODULES = 14  # in one folder
MOST_ENTRIES = 16  # modules and folders at the package's top
LONGEST_CHAIN = 16  # modules that import one another in a row, imports inside functions included
LONG_FUNCTION = 40  # lines, docstring included
MOST_LONG_FUNCTIONS = 10

# The same word on purpose: a command bears the name of the function that it calls, a guard that of the score it reads.
NAMED_ALIKE = {"aum", "label_margin"}


@functools.cache
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imported_by(module: str) -> set[str]:
    """Modules of the package that a module imports, at its top or inside a function; the package's own lazy names are no chain."""
    targets = (found.target for found in imports_of(trees()[module]) if found.target.split(".")[0] == PACKAGE)
    return {own_module(target) for target in targets} - {module, "__init__"}


@functools.cache
def graph() -> dict[str, set[str]]:
    return {module: imported_by(module) for module in MODULES}


def longest_chain() -> list[str]:
    """The longest row of modules of which each imports the next; CycleError, a ValueError, if they go round."""
    longest: dict[str, list[str]] = {}
    for module in TopologicalSorter(graph()).static_order():
        longest[module] = [module, *max((longest[other] for other in graph()[module]), key=len, default=[])]
    return max(longest.values(), key=len)


def modules_by_folder() -> Counter[Path]:
    return Counter(path.parent.relative_to(ROOT) for path in MODULES.values())


def entries() -> list[str]:
    return sorted(
        path.name for path in ROOT.iterdir() if path.suffix == ".py" or (path.is_dir() and path.name[0] != "_")
    )


def long_functions() -> list[tuple[int, str]]:
    """(lines, where) of the functions that are too long, the longest first."""
    found = [
        (node.end_lineno - node.lineno + 1, f"{module}.{node.name}")
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None
    ]
    return sorted((row for row in found if row[0] > LONG_FUNCTION), reverse=True)


def names_of_two_things() -> dict[str, list[str]]:
    """Public functions, classes and constants that more than one module defines, beside the commands."""
    homes: dict[str, list[str]] = defaultdict(list)
    for module, tree in trees().items():
        for node in tree.body if not module.startswith("cli.commands") else []:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names = [node.name]
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            else:
                names = []
            for name in names:
                if not name.startswith("_") and name != "logger":
                    homes[name].append(module)
    return {name: found for name, found in homes.items() if len(found) > 1 and name not in NAMED_ALIKE}


def test_no_folder_is_crowded() -> None:
    sizes = modules_by_folder()
    assert len(sizes) > 10
    assert {folder: size for folder, size in sizes.items() if size > MOST_MODULES} == {}


def test_the_top_of_the_package_is_seen_at_a_glance() -> None:
    assert {"core", "errors.py", "pruning"} <= set(entries())
    assert len(entries()) <= MOST_ENTRIES, entries()


def test_imports_neither_go_round_nor_far() -> None:
    chain = longest_chain()
    assert 5 < len(chain) <= LONGEST_CHAIN, " -> ".join(chain)


def test_few_functions_are_long() -> None:
    assert sum(len(list(ast.walk(tree))) for tree in trees().values()) > 10_000
    assert len(long_functions()) <= MOST_LONG_FUNCTIONS, long_functions()


def test_a_name_means_one_thing() -> None:
    assert names_of_two_things() == {}


def main() -> None:
    """Print the figures and the names behind them."""
    (folder, size), *_ = modules_by_folder().most_common(1)
    chain = longest_chain()
    edges = sum(len(others) for others in graph().values())
    print(f"modules {len(MODULES)}; in the fullest folder, {folder}: {size}; entries at the top: {len(entries())}")
    print(f"longest chain of imports: {len(chain)}: {' -> '.join(chain)}")
    print(f"imports of our own modules a module: {edges / len(MODULES):.1f}")
    print(f"functions over {LONG_FUNCTION} lines: {len(long_functions())}")
    for lines, name in long_functions():
        print(f"  {lines} {name}")
    print(f"names of two things: {names_of_two_things() or 'none'}")


if __name__ == "__main__":
    main()
