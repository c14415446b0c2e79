"""The rules of the house: how the code is laid out and how fast it starts; docs/architecture.md has the reasons."""

import ast
import inspect
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from import_graph import Import, circles, imports_of, longest_chain, module_files

import mode_ray

PACKAGE = Path(inspect.getfile(mode_ray)).parent
REPOSITORY = PACKAGE.parent
RUN_OF_BEFORE = REPOSITORY / "tests/fixtures/run_0_1_0.tar.xz"

# A package (or a module beside the packages) imports only from those before it.
ORDER = (
    "errors",
    "util",
    "storage",
    "config",
    "run_directory",
    "stages",
    "captions",
    "embed",
    "cluster",
    "assign",
    "pairs",
    "models",
    "features",
    "train",
    "routing",
    "atlas",
    "new_data",
    "evaluate",
    "index",
    "export",
    "sweep",
    "plan",
    "deploy",
    "demo",
    "starter",
    "observe",
    "preflight",
    "pipeline",
    "study",
    "ensemble",
    "pipeline_run",
    "api_reference",
    "serve",
    "cli",
    "__main__",
)
MOST_FLOORS = 17
MOST_LINES = 400  # of a file; below
MOST_DOCSTRING_LINES = 3
MOST_PARAMETERS = 6
HEAVY = ("ray", "torch", "scipy", "matplotlib")
# User and system time of a process that does nothing else; the least of some attempts, as other processes disturb.
MOST_IMPORT_SECONDS = 0.3
MOST_STATUS_SECONDS = 1.0
ATTEMPTS = 4

FILES = module_files(PACKAGE)
SOURCES = {name: file.read_text() for name, file in FILES.items()}


@cache
def imports() -> list[Import]:
    """Every import of the package by itself; computed only in the process that runs these tests."""
    return imports_of(SOURCES)


def package_of(module: str) -> str:
    """The package in `mode_ray`, or the module beside the packages, that a module belongs to; empty for `mode_ray`."""
    return f"{module}.".split(".")[1]


def package_imports() -> Iterator[Import]:
    """Imports from one package by another; `mode_ray` itself, which shows the public names of all others, left out."""
    for found in imports():
        source, target = package_of(found.source), package_of(found.target)
        if source and target and source != target:
            yield found


class TestImports:
    def test_every_package_has_its_place_in_the_order(self) -> None:
        assert {package_of(name) for name in FILES} - {""} == set(ORDER)

    def test_packages_import_only_downwards(self) -> None:
        upwards = [
            f"{found.source} imports {found.target} ({found.kind})"
            for found in package_imports()
            if ORDER.index(package_of(found.target)) > ORDER.index(package_of(found.source))
        ]
        assert upwards == []

    def test_there_are_at_most_17_floors_between_packages(self) -> None:
        packages: dict[str, set[str]] = {name: set() for name in ORDER}
        for found in package_imports():
            packages[package_of(found.source)].add(package_of(found.target))
        assert circles(packages) == []
        assert len(longest_chain(packages)) <= MOST_FLOORS, longest_chain(packages)

    def test_no_modules_import_each_other_in_a_circle(self) -> None:
        graph: dict[str, set[str]] = {name: set() for name in FILES}
        for found in imports():
            if found.kind != "typing":
                graph[found.source].add(found.target)
        assert circles(graph) == []

    def test_importing_mode_ray_imports_no_module_of_it(self) -> None:
        assert [found for found in imports() if found.source == "mode_ray" and found.kind != "typing"] == []


class TestSizes:
    def test_every_file_is_under_400_lines(self) -> None:
        files = (file for file in REPOSITORY.glob("[!.]*/**/*.py"))
        lines = {str(file.relative_to(REPOSITORY)): len(file.read_text().splitlines()) for file in files}
        assert lines.keys() >= {"mode_ray/storage.py", "tests/test_house.py", "benchmarks/frame.py"}
        assert {name: count for name, count in lines.items() if count >= MOST_LINES} == {}

    def test_the_docstring_of_a_package_has_at_most_three_lines(self) -> None:
        packages = {name: ast.get_docstring(ast.parse(SOURCES[name])) or "" for name in FILES if is_package(name)}
        assert {name: text for name, text in packages.items() if not text} == {}
        long = [name for name, text in packages.items() if len(text.splitlines()) > MOST_DOCSTRING_LINES]
        assert long == ["mode_ray"] * ("mode_ray" in long)  # the public API says more

    def test_functions_take_at_most_six_parameters(self) -> None:
        more = {f"{module}.{name}" for module in FILES for name, count in functions(module) if count > MOST_PARAMETERS}
        assert more == set(), "make the parameters one named thing"


def is_package(module: str) -> bool:
    return FILES[module].name == "__init__.py"


def functions(module: str) -> Iterator[tuple[str, int]]:
    """Qualified name and number of parameters of a module's functions and methods.

    The commands of the command line are left out: their parameters are the options.
    """
    commands = module.startswith("mode_ray.cli.")
    for name, node in definitions(ast.parse(SOURCES[module]), ""):
        if not commands or name.startswith("_"):
            given = node.args
            names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            rest = [one for one in (given.vararg, given.kwarg) if one is not None]
            yield name, len(names) + len(rest) - (names[:1] in (["self"], ["cls"]))


def definitions(node: ast.AST, outer: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{outer}{child.name}", child
        name = getattr(child, "name", None) if isinstance(child, ast.FunctionDef | ast.ClassDef) else None
        yield from definitions(child, f"{outer}{name}." if name else outer)


class TestStart:
    def test_mode_ray_is_imported_in_a_moment_without_heavy_libraries(self) -> None:
        assert least_seconds("import mode_ray") < MOST_IMPORT_SECONDS

    def test_status_takes_less_than_a_second_without_heavy_libraries(self, tmp_path: Path) -> None:
        with tarfile.open(RUN_OF_BEFORE) as archive:
            archive.extractall(tmp_path, filter="data")
        run = tmp_path / "mode-ray-0.1.0-run/run"
        code = f"from mode_ray.cli import main\nassert main(['status', {str(run)!r}]) == 0"
        assert least_seconds(code) < MOST_STATUS_SECONDS


def least_seconds(code: str) -> float:
    """User and system seconds that Python takes for some code, which must not import anything heavy."""
    checked = f"{code}\nimport sys\nfound = {{*{HEAVY}}} & sys.modules.keys()\nassert not found, found"
    seconds = []
    for _ in range(ATTEMPTS):
        process = subprocess.Popen([sys.executable, "-c", checked], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, errors
        seconds.append(usage.ru_utime + usage.ru_stime)
    return min(seconds)


class TestTheAnalysis:
    @pytest.mark.parametrize(
        ("code", "expected"),
        [
            ("from p.b import f", {("p.b", "top")}),
            ("from p import b", {("p.b", "top")}),
            ("import p.b", {("p.b", "top")}),
            ("import os, q.b", set()),
            ("def f():\n  import p.b", {("p.b", "lazy")}),
            ("class A:\n  import p.b\n  def f(self):\n    from p.b import g", {("p.b", "top"), ("p.b", "lazy")}),
            ("if TYPE_CHECKING:\n  import p.b\nelse:\n  from p import g", {("p.b", "typing"), ("p", "top")}),
            ("if typing.TYPE_CHECKING:\n  from p.b import f", {("p.b", "typing")}),
            ("if True:\n  import p.b", {("p.b", "top")}),
        ],
    )
    def test_imports_are_found_and_classified(self, code: str, expected: set[tuple[str, str]]) -> None:
        found = imports_of({"p": "", "p.a": code, "p.b": "x = 1"})
        assert {(one.target, one.kind) for one in found if one.source == "p.a"} == expected

    def test_circles_are_found(self) -> None:
        graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"f"}, "f": {"e"}}
        assert circles(graph) == [["b", "c"], ["e", "f"]]

    def test_the_longest_chain_is_found(self) -> None:
        assert longest_chain({"a": {"b", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}) == ["a", "b", "c", "d"]
