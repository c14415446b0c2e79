"""All ranks receive the same order after the same step, without waiting for each other."""

import json
import subprocess
import sys
from pathlib import Path

from mode_ray.train.runs.agreement import Order

RANKS = 2
DEADLINE_SECONDS = 120.0


def test_every_rank_receives_what_rank_0_wanted_a_step_before(tmp_path: Path) -> None:
    script = Path(__file__).with_name("agreement_ranks.py")
    command = [sys.executable, str(script), str(tmp_path), str(RANKS)]
    assert subprocess.run(command, timeout=DEADLINE_SECONDS, check=False).returncode == 0
    nothing, ask, checkpoint = Order.NOTHING, Order.ASK_FOR_PREEMPTION, Order.CHECKPOINT
    for number in range(RANKS):
        received = json.loads((tmp_path / f"rank{number}.json").read_text())
        assert received == [nothing, checkpoint, nothing, ask, checkpoint, nothing]
