"""The imports of the package's modules, found in their source without importing anything."""

import ast
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Kind = Literal["top", "lazy", "typing"]
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True)
class Import:
    """One import of a module by another.

    Attributes:
        source: The module that imports.
        target: The module that is imported.
        kind: `top`: when the source is imported. `lazy`: inside a function. `typing`: below `if TYPE_CHECKING`, so
            never when the program runs.
    """

    source: str
    target: str
    kind: Kind


def module_files(package: Path) -> dict[str, Path]:
    """The file of every module of a package, by the module's name."""
    files = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


def imports_of(sources: Mapping[str, str]) -> list[Import]:
    """Every import among some modules.

    Args:
        sources: Source text by module name. Imports of other modules are left out.
    """
    return [
        Import(name, target, kind)
        for name, text in sources.items()
        for target, kind in _imports_below(ast.parse(text), "top", sources.keys())
        if target != name
    ]


def _imports_below(node: ast.AST, kind: Kind, modules: Set[str]) -> Iterator[tuple[str, Kind]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            named = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: a relative import"
            named = [_module_of(f"{child.module}.{alias.name}", modules) for alias in child.names]
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from _imports_below(ast.Module(child.body, []), "typing", modules)
            yield from _imports_below(ast.Module(child.orelse, []), kind, modules)
            continue
        else:
            inside: Kind = "lazy" if isinstance(child, _FUNCTIONS) and kind == "top" else kind
            yield from _imports_below(child, inside, modules)
            continue
        yield from ((name, kind) for name in named if name in modules)


def _module_of(name: str, modules: Set[str]) -> str:
    """The module that `from module import name` reads: `module.name` itself where it is a module."""
    return name if name in modules else name.rpartition(".")[0]


def circles(graph: Mapping[str, Set[str]]) -> list[list[str]]:
    """The groups of nodes that reach one another (strongly connected components of two or more), each sorted."""

    @cache
    def reached(start: str) -> frozenset[str]:
        found: set[str] = set()
        left = list(graph.get(start, ()))
        while left:
            if (node := left.pop()) not in found:
                found.add(node)
                left += graph.get(node, ())
        return frozenset(found)

    groups = {
        tuple(sorted(other for other in reached(node) if node in reached(other)))
        for node in graph
        if node in reached(node)
    }
    return sorted(list(group) for group in groups if len(group) > 1)


def longest_chain(graph: Mapping[str, Set[str]]) -> list[str]:
    """The longest path of a graph without circles."""

    @cache
    def below(node: str) -> tuple[str, ...]:
        return max(((node, *below(other)) for other in graph.get(node, ())), key=len, default=(node,))

    chains: list[tuple[str, ...]] = [below(node) for node in graph]
    longest = max(chains, key=len)
    return list(longest)
