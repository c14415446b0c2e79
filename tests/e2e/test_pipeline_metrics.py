"""What a scrape of Ray's metrics port shows of a real run, and that the dashboard asks for nothing else."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from expert_runs import BATCH, write_small_run

from mode_ray.observe.metrics import EXPORTED, STATE_NUMBERS
from mode_ray.run_directory import OPTIONAL_STAGES, STAGE_NAMES

DASHBOARD = Path(__file__).resolve().parents[2] / "cluster_configs" / "chart" / "dashboards" / "mode_ray_pipeline.json"
DRIVER = Path(__file__).with_name("pipeline_metrics_driver.py")
DEADLINE_SECONDS = 60.0
PAIRS, EMPTY = 96, 3
FINISHED = STATE_NUMBERS["finished"]


def dashboard_metrics() -> set[str]:
    """Every metric that a panel or a variable of the dashboard asks for."""
    return set(re.findall(r"ray_mode_\w+", DASHBOARD.read_text()))


def sample(scrape: str, metric: str, **tags: str) -> float:
    """The value of one series."""
    for line in scrape.splitlines():
        if line.startswith(metric + "{") and all(f'{name}="{value}"' in line for name, value in tags.items()):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no {metric} with {tags}")


def test_the_dashboard_asks_for_all_metrics_and_no_others() -> None:
    assert dashboard_metrics() == set(EXPORTED)


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)


@pytest.mark.drill
def test_a_scrape_of_a_real_run_shows_every_metric(tmp_path: Path) -> None:
    # Ray takes labels of ASCII only; the run directory may have any name.
    folder = tmp_path / "josé 数据"
    folder.mkdir()
    config = write_small_run(folder, PAIRS)
    empty = pa.table({"caption": [""] * EMPTY, "image": pa.array([b"no matter"] * EMPTY, pa.binary())})
    pq.write_table(empty, folder / "empty.parquet")
    (folder / "bad.parquet").write_bytes(b"garbage")
    values = yaml.safe_load(config.read_text())
    values["captions"]["paths"] += [str(folder / "empty.parquet"), str(folder / "bad.parquet")]
    values["limits"] = {"max_quarantined_units": 1, "max_refused_share": 0.5}
    for stage in ("embed", "assign"):
        values[stage] = {"pool": {"max_actors": 1, "retries_per_unit": 0}}
    values["train"]["dense_samples"] = 160 * BATCH
    values["train"]["placement"] |= {"workers_per_run": 0, "log_interval_steps": 5}
    config.write_text(yaml.safe_dump(values, allow_unicode=True))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(DRIVER), str(config), str(port)]
    driver = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        assert driver.stdout is not None
        assert "ready" in driver.stdout.read(5), "the driver ended early"
        deadline, scrape, missing = time.monotonic() + DEADLINE_SECONDS, "", set(EXPORTED)
        while missing and time.monotonic() < deadline:
            time.sleep(1.0)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                scrape = answer.read().decode()
            missing = {name for name in EXPORTED if f"\n{name}{{" not in scrape}
        assert not missing
        run = f"{tmp_path}/jos%C3%A9 %E6%95%B0%E6%8D%AE/run"
        assert sample(scrape, "ray_mode_stage_rows_total", run=run, stage="embed") == PAIRS
        assert sample(scrape, "ray_mode_stage_rows_refused_total", run=run, stage="embed") == EMPTY
        assert sample(scrape, "ray_mode_stage_units_quarantined", run=run, stage="embed") == 1
        assert sample(scrape, "ray_mode_kmeans_inertia", run=run, stage="cluster") > 0
        for stage in (name for name in STAGE_NAMES if name not in OPTIONAL_STAGES):
            assert sample(scrape, "ray_mode_stage_done", run=run, stage=stage) == 1
        for expert in ("seed", "n2/00", "n2/01"):
            assert sample(scrape, "ray_mode_expert_status", run=run, stage="train", expert=expert) == FINISHED
        report = json.loads((folder / "run/evaluation/report.json").read_text())
        (row,) = [row for row in report["routing"] if row["rule"] == report["rule"]]
        entropy = sample(scrape, "ray_mode_routing_entropy", run=run, stage="evaluate", task="pairs")
        assert entropy == pytest.approx(row["normalised_entropy"])
    finally:
        driver.communicate("", timeout=60)
