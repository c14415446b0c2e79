"""The batch script for Slurm, with programs of the test in place of those of Slurm, Ray and mode_ray."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "cluster_configs/slurm.sh"
DEADLINE_SECONDS = 20.0
# Each notes its arguments; `srun` runs its command here, without its own options.
PROGRAMS = {
    "srun": """
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do shift; done
exec "$@"
""",
    "scontrol": """
echo "scontrol $*" >> "$CALLS"
if [[ $1 == show ]]; then printf '%s\\n' ${3//,/ }; fi
""",
    "ray": """
if [[ $1 == health-check ]]; then exit "${HEALTH:-0}"; fi
if [[ $HEALTH ]]; then exit 1; fi
echo "token ${#RAY_AUTH_TOKEN} $RAY_AUTH_MODE" >> "$CALLS"
exec sleep 60
""",
    "mode-ray": """
echo "mode-ray $* at $RAY_ADDRESS" >> "$CALLS"
trap 'echo "last checkpoints" >> "$CALLS"; exit 143' TERM
until [[ $(grep -c ^token "$CALLS") -ge $STEPS ]]; do sleep 0.02; done
touch "$CALLS.started"
if [[ $CODE ]]; then exit "$CODE"; fi
while :; do sleep 0.05; done
""",
}


class Job:
    """One start of the script in a job of Slurm with these nodes."""

    def __init__(self, folder: Path, nodes: str, environment: Mapping[str, str]) -> None:
        self._calls = folder / "calls"
        for name, text in PROGRAMS.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}")
            (folder / name).chmod(0o755)
        kept = {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(self._calls), **environment}
        given = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": nodes, "SLURM_CPUS_PER_TASK": "8"}
        given["STEPS"] = "2" if "," in nodes else "1"
        arguments = ["/bin/bash", str(SCRIPT), "my.yaml", "train.batch_size=64"]
        self.process = subprocess.Popen(arguments, env=kept | given, stderr=subprocess.PIPE, text=True)

    def wait_for_driver(self) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self._calls.with_suffix(".started").exists():
            assert time.monotonic() < deadline, self.process.poll()
            time.sleep(0.02)

    def ended(self) -> tuple[int, str]:
        """Exit code and messages."""
        _, said = self.process.communicate(timeout=DEADLINE_SECONDS)
        return self.process.returncode, said

    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()


def test_it_is_valid_bash() -> None:
    subprocess.run(["/bin/bash", "-n", str(SCRIPT)], check=True)


def test_a_head_on_the_first_node_nodes_on_the_others_and_the_run(tmp_path: Path) -> None:
    job = Job(tmp_path, "a,b,c", {"CODE": "3"})
    assert job.ended() == (3, ""), "the exit code of the run"
    called = "\n".join(job.calls())
    assert "--nodes=1 --ntasks=1 --nodelist=a ray start --head --block --port=22345 --num-cpus=8" in called
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1 --exclude=a ray start --block --address=a:22345" in called
    assert "mode-ray run --config my.yaml train.batch_size=64 at a:22345" in called
    assert "scontrol requeue" not in called


def test_every_node_gets_one_token_that_is_in_no_command_line(tmp_path: Path) -> None:
    job = Job(tmp_path, "a,b", {})
    job.wait_for_driver()
    job.process.send_signal(signal.SIGTERM)
    job.ended()
    assert job.calls().count("token 64 token") == 2
    assert not any("AUTH" in call for call in job.calls())


def test_before_the_time_limit_the_run_stops_and_the_job_is_requeued(tmp_path: Path) -> None:
    job = Job(tmp_path, "a", {})
    job.wait_for_driver()
    job.process.send_signal(signal.SIGTERM)
    _, said = job.ended()
    assert job.calls()[-2:] == ["last checkpoints", "scontrol requeue 12345"]
    assert "the job is requeued and resumes" in said


def test_without_a_head_it_ends_with_one_sentence(tmp_path: Path) -> None:
    job = Job(tmp_path, "a,b", {"HEALTH": "1"})
    code, said = job.ended()
    assert code == 1
    assert "Ray's head did not start on a: see the messages above" in said
    assert not any("mode-ray" in call for call in job.calls())


@pytest.mark.parametrize("nodes", ["a", "a,b,c"])
def test_nothing_of_it_is_left(tmp_path: Path, nodes: str) -> None:
    job = Job(tmp_path, nodes, {"CODE": "0"})
    assert job.ended()[0] == 0
    marked = f"CALLS={tmp_path / 'calls'}".encode()
    left = [entry for entry in Path("/proc").glob("[0-9]*/environ") if marked in environment_of(entry)]
    assert left == []


def environment_of(entry: Path) -> bytes:
    try:
        return entry.read_bytes()
    except OSError:  # it ended meanwhile
        return b""
