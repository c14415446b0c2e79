"""The benchmarks' frame: fair turns, and a last line that a machine can read."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def frame() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_frame", BENCHMARKS / "frame.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_everyone_is_warmed_up_and_then_measured_in_turn(frame: ModuleType) -> None:
    turns: list[str] = []
    timings = frame.alternate(
        lambda: turns.append("ours"),
        {"a": lambda: turns.append("a"), "b": lambda: turns.append("b")},
        repeats=3,
    )
    assert turns[:3] == ["ours", "a", "b"], "warm-up"
    assert turns[3:] == ["ours", "a", "b", "a", "b", "ours", "b", "ours", "a"]
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {
        "mode_ray": 3,
        "a": 3,
        "b": 3,
    }


def test_speed_up_is_the_median_of_the_rounds_ratios(frame: ModuleType) -> None:
    timings = frame.Timings({"mode_ray": (1.0, 2.0, 1.0), "peer": (3.0, 4.0, 50.0)})
    assert timings.median_seconds == {"mode_ray": 1.0, "peer": 4.0}
    assert timings.speed_up("peer") == 3.0
    assert timings.speed_up("mode_ray", of="peer") == 1 / 3


def test_the_fastest_has_the_lowest_median(frame: ModuleType) -> None:
    timings = frame.Timings({"mode_ray": (1.0, 2.0, 1.0), "a": (3.0, 0.1, 3.0), "b": (4.0, 2.0, 2.0)})
    assert timings.fastest("mode_ray", "a", "b") == "mode_ray"
    assert timings.fastest("a", "b") == "b"


def test_no_rounds_and_a_peer_of_our_name_are_refused(frame: ModuleType) -> None:
    with pytest.raises(ValueError, match="at least one round"):
        frame.alternate(lambda: None, {}, repeats=0)
    with pytest.raises(ValueError, match="cannot be called"):
        frame.alternate(lambda: None, {"mode_ray": lambda: None}, repeats=1)


def test_a_result_that_is_no_number_is_refused(frame: ModuleType) -> None:
    with pytest.raises(ValueError, match="benchmark x: result ratio is nan"):
        frame.finish("x", {"ratio": float("nan")})


def test_make_runs_every_benchmark_and_none_of_what_they_import() -> None:
    make = shutil.which("make")
    assert make is not None
    ended = subprocess.run(
        [make, "--dry-run", "bench"], cwd=BENCHMARKS.parent, capture_output=True, text=True, check=True
    )
    run = set(re.findall(r"benchmarks/(\w+)\.py", ended.stdout))
    scripts = {file.stem for file in BENCHMARKS.glob("*.py") if "__main__" in file.read_text()}
    # serve.py starts serve_peers.py, and head.py starts slow_storage.py and head_process.py. gpu_check.py is for one
    # GPU; a drill runs it on the CPU. It starts gpu_check_training.py as the processes of one training run.
    assert run == scripts - {
        "serve_peers",
        "embed_peers",
        "slow_storage",
        "head_process",
        "gpu_check",
        "gpu_check_training",
    }


def test_the_last_line_is_one_json_object_with_results_machine_and_versions() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "routing.py", "--quick", "--repeats", "2"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["benchmark"] == "routing"
    assert line["results"].keys() == {"soft_vs_plain_torch", "max_abs_difference"}
    assert all(isinstance(value, float) for value in line["results"].values())
    assert line["results"]["max_abs_difference"] < 1e-5
    assert line["machine"]["cpu"]
    assert line["machine"]["cores"] >= 1
    assert line["machine"]["memory_bytes"] > 1e8
    assert {"python", "mode_ray", "torch"} <= line["versions"].keys()
    assert line["details"]["rounds"] == 2
