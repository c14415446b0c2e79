"""OpenVINO is loaded without its telemetry, once a process, and rounds weights output by output."""

import subprocess
import sys

import numpy as np
import pytest

from mode_ray.errors import UsageError
from mode_ray.util.openvino_module import import_openvino, rounded_weights


def test_a_machine_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"^OpenVINO is not installed: run `pip install 'mode_ray\[openvino\]'`$"):
        import_openvino()


def test_nothing_is_reported_to_its_makers() -> None:
    import_openvino()
    assert sys.modules.get("openvino_telemetry") is None


def test_signals_are_handled_after_models_are_freed() -> None:
    """Each core of OpenVINO replaces the stack of signal handlers, and two of them leave a freed one behind."""
    program = """
import signal
import torch
from mode_ray.util.openvino_module import OpenVinoModule

first, second = (
    OpenVinoModule(torch.nn.ReLU(), "float32", [torch.ones(1, 2)], [(-1, 2)], calls=1, threads=1) for _ in range(2)
)
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""
    ended = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


def test_weights_are_rounded_for_each_output() -> None:
    weights_oi = np.array([[1.0, -0.5, 0.004], [0.0, 0.0, 0.0], [-20.0, 10.0, 5.0]], np.float32)
    rounded_oi, scale_o1 = rounded_weights(weights_oi)
    assert rounded_oi.tolist() == [[127, -64, 1], [0, 0, 0], [-127, 64, 32]]
    np.testing.assert_allclose(rounded_oi * scale_o1, weights_oi, atol=20 / 127 / 2)
