"""The conditions of the alarms, tested by Prometheus' promtool on series with one scrape per minute.

tests/e2e/test_live_alarms.py has them with a Prometheus, an Alertmanager and a Ray that run.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from live_monitoring import AMTOOL, PROMTOOL

from mode_ray.deploy.render import read_values, render_all

ALARMS = Path(__file__).resolve().parents[2] / "cluster_configs/monitoring/alarms.yml"
LEFT = 'ray_mode_stage_units_left{stage="embed"}'
STATUS = "ray_mode_expert_status"
CHECKPOINT = "ray_mode_expert_checkpoint_timestamp_seconds"
WAIT_SHARE = "ray_mode_expert_data_wait_share"
STOPPED, PENDING = "autoscaler_stopped_nodes_total", "autoscaler_pending_nodes"


class Case(NamedTuple):
    """Scraped values (`value+step x times`, as in promtool), and whether an alarm is on in a given minute."""

    said: str
    alarm: str
    series: dict[str, str]
    minute: int
    is_on: bool


CASES = (
    Case("a stage whose machines boot", "StageStands", {LEFT: "10x60"}, 25, False),
    Case("a stage without a shard since it began", "StageStands", {LEFT: "10x60"}, 40, True),
    Case("a shard every twenty minutes", "StageStands", {LEFT: "10x19 9x19 8x19 7x19"}, 59, False),
    Case("a stage that stopped in its middle", "StageStands", {LEFT: "10-1x5 4x60"}, 50, True),
    Case("a stage that is done", "StageStands", {LEFT: "10-1x9 0x60"}, 60, False),
    Case(
        "the fit, which has no shards",
        "StageStands",
        {'ray_mode_stage_units_left{stage="cluster"}': "1x60"},
        60,
        False,
    ),
    Case("a run that has saved nothing yet", "CheckpointOld", {STATUS: "1x60"}, 20, False),
    Case("a run that never saved anything", "CheckpointOld", {STATUS: "1x60"}, 40, True),
    Case("a run that saves every ten minutes", "CheckpointOld", {STATUS: "1x60", CHECKPOINT: "0+60x60"}, 50, False),
    Case("a run that saved long ago", "CheckpointOld", {STATUS: "1x60", CHECKPOINT: "60x60"}, 50, True),
    Case("an old run that goes on", "CheckpointOld", {STATUS: "0x40 1x20", CHECKPOINT: "60x60"}, 50, False),
    Case("a run that waits for its turn", "CheckpointOld", {STATUS: "0x60"}, 50, False),
    Case("a finished run", "CheckpointOld", {STATUS: "2x60", CHECKPOINT: "60x60"}, 50, False),
    Case("a run that waits for data", "ExpertWaitsForData", {STATUS: "1x60", WAIT_SHARE: "0.9x60"}, 30, True),
    Case("one that did, and is finished", "ExpertWaitsForData", {STATUS: "2x60", WAIT_SHARE: "0.9x60"}, 30, False),
    Case("nodes that end while others come", "RayNodesFail", {STOPPED: "0+1x60", PENDING: "2x60"}, 30, True),
    Case("a pool that is given back", "RayNodesFail", {STOPPED: "0+1x60", PENDING: "0x60"}, 30, False),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alarm}: {case.said}")
def test_an_alarm_is_on_when_it_should_be(case: Case, promtool: str, tmp_path: Path) -> None:
    asked = f'count(ALERTS{{alertname="{case.alarm}", alertstate="firing"}})'
    expected = [{"labels": "{}", "value": 1}] if case.is_on else []
    file = tmp_path / "test.json"  # JSON is YAML
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "promql_expr_test": [{"expr": asked, "eval_time": f"{case.minute}m", "exp_samples": expected}],
    }
    file.write_text(json.dumps({"rule_files": [str(ALARMS)], "evaluation_interval": "1m", "tests": [test]}))
    ended = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_prometheus_can_read_all_of_them(promtool: str) -> None:
    ended = subprocess.run([promtool, "check", "rules", str(ALARMS)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("overrides", [(), ("alarms.webhook=https://pager.example.com/hook",)])
def test_alertmanager_can_read_its_config(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    file = tmp_path / "alertmanager.yml"
    file.write_text(render_all(read_values(None, overrides))["monitoring/alertmanager.yml"])
    command = [AMTOOL.path(), "check-config", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def promtool() -> str:
    """Prometheus' checker; the test is skipped without it."""
    return os.environ.get("MODE_RAY_PROMTOOL") or PROMTOOL.path()
