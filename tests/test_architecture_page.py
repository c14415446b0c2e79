"""docs/architecture.md and CONTRIBUTING.md name what exists: every path, and every package in its order."""

import re
from pathlib import Path

import pytest
from test_house import ORDER

REPOSITORY = Path(__file__).resolve().parents[1]
ARCHITECTURE = (REPOSITORY / "docs/architecture.md").read_text()
PATH = re.compile(r"`((?:mode_ray|tests|benchmarks|docs|cluster_configs|jobs|examples)/[\w./-]+|[A-Z]+\.md)`")
EXAMPLES = {  # files that a contributor is to add
    "mode_ray/captions/avro.py",
    "tests/captions/test_avro.py",
    "mode_ray/embed/NAME.py",
    "tests/embed/test_NAME.py",
}
FEWEST_ROWS = 20


def rows(heading: str) -> list[list[str]]:
    """Cells of the table in a section, its head left out."""
    section = ARCHITECTURE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_path_exists(page: str) -> None:
    paths = set(PATH.findall((REPOSITORY / page).read_text())) - EXAMPLES
    assert len(paths) > 10
    assert [path for path in sorted(paths) if not (REPOSITORY / path).exists()] == []


def test_every_change_leads_to_a_file() -> None:
    changes = rows("To change X, go to Y")
    assert len(changes) >= FEWEST_ROWS
    assert [change for change, target in changes if not PATH.search(target)] == []


def test_the_packages_are_in_the_order_of_their_imports() -> None:
    named = [name.strip("`") for cell, _ in rows("Packages") for name in cell.split(", ")]
    assert named == list(ORDER[:-1])
