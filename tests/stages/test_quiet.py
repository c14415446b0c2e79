"""Chosen lines are left out of the process's error output, and only those."""

import os
import re

import pytest
from ray._private.worker import print_to_stdstream

from mode_ray.stages.quiet import error_output_without, quiet_ray

MANY_PROCESSES = "WARNING: 9 PYTHON worker processes have been started on node: 0a1b with address: 127.0.0.1"
OUT_OF_MEMORY = "2 Workers were killed due to memory pressure (OOM)"


def test_lines_with_the_pattern_are_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    with error_output_without(re.compile(rb"of no use")):
        os.write(2, b"of use\nlines of no use\n")  # as compiled code does
    os.write(2, b"afterwards, of no use\n")
    assert capfd.readouterr().err == "of use\nafterwards, of no use\n"


def test_nothing_is_lost_where_the_block_raises(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        os.write(2, b"the reason\n")
        raise ValueError

    with pytest.raises(ValueError), error_output_without(re.compile(rb"of no use")):  # noqa: PT011
        fail()
    assert capfd.readouterr().err == "the reason\n"


@pytest.mark.usefixtures("ray_session")
def test_of_a_nodes_messages_only_the_number_of_processes_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_ray():
        for message in (MANY_PROCESSES, OUT_OF_MEMORY):
            print_to_stdstream({"lines": [message], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    printed = capsys.readouterr().out
    assert "worker processes" not in printed
    assert OUT_OF_MEMORY in printed
