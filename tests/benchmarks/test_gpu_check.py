"""gpu_check.py runs every check small on a CPU, so that the script itself cannot break unseen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/gpu_check.py"


def lines_of(*options: str, status: int = 0) -> list[dict[str, object]]:
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.drill
def test_every_check_runs_small_and_nothing_of_a_gpu_passes() -> None:
    *checks, verdict = lines_of("--device", "cpu", "--quick")
    statuses = {line["check"]: line["status"] for line in checks}
    assert len(statuses) == 11
    assert statuses.pop("machine") == "skipped: needs CUDA"
    assert set(statuses.values()) == {"pass"}, checks
    assert (verdict["verdict"], verdict["skipped"]) == ("no GPU checked", ["machine"])
