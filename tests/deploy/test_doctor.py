"""`mode-ray doctor`: the table, the exit code, and every node of a cluster."""

import json
from pathlib import Path

import pytest

from mode_ray.cli import main
from mode_ray.deploy.doctor import Checkup, examine
from mode_ray.storage import Location


def test_a_laptop_without_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--bucket", str(tmp_path)])
    printed = " ".join(capsys.readouterr().out.split())
    for line in ("here GPUs ok none", "here bucket ok", "all python version ok", "all ray version ok"):
        assert line in printed
    assert not list(tmp_path.iterdir())


def test_a_failure_is_an_exit_code_and_one_sentence_with_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["doctor", "--bucket", f"{tmp_path}/file/run"]) == 1
    printed = capsys.readouterr().out
    table, fixes = printed.split("\n\n")
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 80
    assert "here: bucket: give this machine's identity the right to write, read, delete below" in " ".join(
        fixes.split()
    )


def test_the_disk_is_compared_with_the_captions_of_the_run(
    run_of_before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["doctor", "--config", str(run_of_before / "run/config.yaml"), "--bucket", str(tmp_path)])
    assert "pairs:" in " ".join(capsys.readouterr().out.split())


def test_every_node_of_a_cluster_is_checked(ray_session: None, tmp_path: Path) -> None:
    findings = examine(Checkup(bucket=Location(str(tmp_path)), cluster=True))
    nodes = {where for where, finding in findings if finding.check == "clock"}
    assert len(nodes) == 1
    (node,) = nodes
    states = {finding.check: finding.state for where, finding in findings if where == node}
    assert states["clock"] == states["bucket"] == "ok"
    versions = [finding for where, finding in findings if where == "all"]
    assert [finding.state for finding in versions] == ["ok"] * 3


def test_pods_come_from_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, dict[str, list[object]]] = {
        "get pods --namespace mode-ray --output json": {"items": []},
        "get nodes --output json": {"items": []},
    }
    script = '#!/bin/sh\ncase "$*" in\n'
    script += "".join(f"'{words}') echo '{json.dumps(answer)}';;\n" for words, answer in answers.items())
    (tmp_path / "kubectl").write_text(script + "*) exit 1;; esac\n")
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    findings = examine(Checkup(namespace="mode-ray"))
    assert [finding.found for where, finding in findings if where == "pods"] == ["no pod is pending"]


def test_overrides_need_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "train.experts=2"]) == 2
    assert "train.experts=2 overrides a field of a config: give it by --config" in capsys.readouterr().err
