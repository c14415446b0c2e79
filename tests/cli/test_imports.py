"""Help, usage errors, status and plan import nothing slow, and a driver imports nothing that only its workers need."""

import subprocess
import sys
from pathlib import Path

import pytest

from mode_ray.stages.manifest import Stage, UnitRecord
from mode_ray.storage import Location

HEAVY = ("ray", "torch", "scipy", "matplotlib", "pandas", "numba")
FOR_WORKERS = ("torch", "numba", "faiss", "transformers", "open_clip")
DRIVER = "mode_ray.cli, mode_ray.cli.pipeline, mode_ray.pipeline, mode_ray.plan.from_run, mode_ray.plan.report"
# Processor time of a whole command: several times what it takes (status: 0.6), because machines differ and are busy.
MOST_PROCESSOR_SECONDS = 3.0
COMMAND = """
import sys, time
from mode_ray.cli import main
code = main(sys.argv[1:])
names = [name for name in {names} if name in sys.modules]
print(code, time.process_time(), *names, file=sys.stderr)
"""


def run_apart(*arguments: str) -> tuple[int, float, list[str]]:
    """Run a command in a new process; returns exit code, processor seconds and the heavy modules it imported."""
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND.format(names=HEAVY), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    code, seconds, *heavy = ended.stderr.splitlines()[-1].split()
    return int(code), float(seconds), heavy


@pytest.mark.parametrize("watch", [[], ["--watch", "--until", "embed"]])
def test_status_imports_nothing_heavy(tmp_path: Path, watch: list[str]) -> None:
    (tmp_path / "config.yaml").write_text("run: here")
    stage = Stage("embed", Location(str(tmp_path / "embeddings")), {})
    stage.begin(1)
    stage.finish([UnitRecord(unit="a", source="a.tar")], {})
    trial = tmp_path / "experts/n4/00"
    trial.mkdir(parents=True)
    (trial / "status.json").write_text('{"trial": "n4/00", "state": "waiting", "samples": 8}')
    code, seconds, heavy = run_apart("status", str(tmp_path), *watch)
    assert (code, heavy) == (0, [])
    assert seconds < MOST_PROCESSOR_SECONDS


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], 0),
        (["train", "retry", "--help"], 0),
        (["trian"], 2),
        (["run", "--config", "absent.yaml"], 2),
        (["cluster", "extend", "--config", "demo", "--centers", "4", "--to", "x", "cluster.fine.center=1"], 2),
        (["plan", "--config", "demo", "train.experts=3"], 2),
        (["plan", "--config", "demo", "--from", "absent"], 2),
        (["serve", "add", "3"], 2),
    ],
)
def test_help_and_wrong_usage_import_nothing_heavy(
    arguments: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_DASHBOARD_ADDRESS", raising=False)
    code, seconds, heavy = run_apart(*arguments)
    assert (code, heavy) == (expected, [])
    assert seconds < MOST_PROCESSOR_SECONDS


def test_a_driver_loads_nothing_that_only_its_workers_need() -> None:
    script = f"import sys, {DRIVER}; print(*[name for name in {FOR_WORKERS} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, ""), ended.stderr[-2000:]
