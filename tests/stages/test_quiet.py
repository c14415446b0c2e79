"""Chosen lines are left out of the process's error output, and only those."""

import os
import re
import sys

import pytest

from mode_ray.stages.quiet import error_output_without


def test_lines_with_the_pattern_are_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    with error_output_without(re.compile(rb"of no use")):
        os.write(2, b"of use\nlines of no use\n")  # as compiled code does
        sys.stderr.write("from Python\n")
    sys.stderr.write("afterwards\n")
    assert capfd.readouterr().err == "of use\nfrom Python\nafterwards\n"


def test_nothing_is_lost_where_the_block_raises(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        os.write(2, b"the reason\n")
        raise ValueError

    with pytest.raises(ValueError), error_output_without(re.compile(rb"of no use")):  # noqa: PT011
        fail()
    assert capfd.readouterr().err == "the reason\n"
