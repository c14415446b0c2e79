"""docs/api.md and the examples: up to date with the code, and run as they are printed.

`python tests/test_api_docs.py` makes the notebook of examples/quickstart.py.
"""

import ast
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from python_process import python_command

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/api.md"
SCRIPT, NOTEBOOK = ROOT / "examples/quickstart.py", ROOT / "examples/quickstart.ipynb"
# No code can show these: the places of a real user's data, and what takes a config of the reader's own.
NOT_RUN = ("clip_benchmark", "ray.data", "mode_ray.load_config")
# Programs in one process, because each would import torch anew. Each gets a namespace and a folder of its own.
RUN_PROGRAMS = """
import contextlib, io, json, os, sys
printed = {}
for name, (folder, parts) in json.load(sys.stdin).items():
    os.chdir(folder)
    namespace = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        for part in parts:
            exec(compile(part, name, "exec"), namespace)
    printed[name] = output.getvalue()
print(json.dumps(printed))
"""


def notebook_of(script: str) -> dict[str, Any]:
    """The notebook of a script in the percent format, without outputs."""
    cells = []
    for number, part in enumerate(re.split(r"^# %%", script, flags=re.MULTILINE)[1:]):
        head, _, body = part.partition("\n")
        text = body.strip("\n")
        cell: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}}
        if "[markdown]" in head:
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
            cell |= {"cell_type": "markdown"}
        else:
            cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.append({**cell, "source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture(scope="module")
def printed(run_of_before: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the quick start of the page, the script and the notebook print."""
    from run_of_before import read_held_out

    folders = {name: str(tmp_path_factory.mktemp(name)) for name in ("page", "script", "notebook")}
    page = Path(folders["page"])
    read_held_out(run_of_before).images[0].convert("RGB").save(page / "cat.jpg")
    (page / "runs").mkdir()
    (page / "runs/my-run").symlink_to(run_of_before / "run")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    parts = {
        "page": [part for part in page_code() if not any(word in part for word in NOT_RUN)],
        "script": [SCRIPT.read_text()],
        "notebook": ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"],
    }
    assert len(parts["page"]) == 1
    done = subprocess.run(
        python_command(RUN_PROGRAMS),
        input=json.dumps({name: (folder, parts[name]) for name, folder in folders.items()}),
        cwd=page,
        env={**os.environ, "MODE_RAY_RUN": str(run_of_before / "run")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def public_names_used(code: str) -> set[str]:
    """Every `mode_ray.NAME` of a piece of code."""
    return {
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mode_ray"
    }


def page_code() -> list[str]:
    guide = PAGE.read_text().split("\n## Reference\n")[0]
    return re.findall(r"```python\n(.*?)```", guide, re.DOTALL)


class TestPage:
    def test_the_reference_is_up_to_date(self) -> None:
        from mode_ray.api_reference import with_reference

        page = PAGE.read_text()
        assert page == with_reference(page), "run: .venv/bin/python -m mode_ray.api_reference docs/api.md"

    def test_every_public_name_is_on_it(self) -> None:
        import mode_ray

        page = PAGE.read_text()
        for name in set(mode_ray.__all__) - {"__version__"}:
            assert f"mode_ray.{name}" in page or f"### {name}\n" in page, name

    def test_the_quick_start_runs(self, printed: dict[str, str]) -> None:
        assert printed["page"].startswith(("['cat']", "['dog']"))


class TestQuickstart:
    def test_the_notebook_is_the_script(self) -> None:
        assert json.loads(NOTEBOOK.read_text()) == notebook_of(SCRIPT.read_text()), (
            "run: .venv/bin/python tests/test_api_docs.py"
        )

    def test_it_uses_public_names_only(self) -> None:
        import mode_ray

        used = public_names_used(SCRIPT.read_text())
        assert "load" in used
        assert used <= set(mode_ray.__all__)
        assert "from mode_ray" not in SCRIPT.read_text()

    @pytest.mark.parametrize("what", ["script", "notebook"])
    def test_it_runs(self, printed: dict[str, str], what: str) -> None:
        assert "Task(3 labels, rule=calibrated, weights=[" in printed[what]
        assert "(2, 32)" in printed[what]


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(notebook_of(SCRIPT.read_text()), indent=1, ensure_ascii=False) + "\n")
