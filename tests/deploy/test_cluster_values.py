"""The values file: a mistake is one sentence that names file and field, and nothing is written."""

from pathlib import Path

import pytest
import yaml

from mode_ray.cli import main
from mode_ray.deploy.render import read_values
from mode_ray.errors import UsageError

VALUES = str(Path(__file__).resolve().parents[2] / "cluster_configs/values.yaml")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("bucket=my-bucket", "bucket: string should match pattern"),
        ("pools.cpu={fewest: 3, most: 2}", "pools.cpu: fewest=3 is above most=2"),
        ("aws.gpu.gpus=0", "aws.gpu.gpus is 0: the pool of the experts needs machines with GPUs"),
        (
            "pools.gpu_spot={most: 40}",
            "aws.head.memory_gb=32 is below the 40 GB for 40 concurrent runs: choose a larger head, or fewer GPU",
        ),
        ("aws.regio=x", "aws.regio: unknown key"),
        ("name=Mode_Ray", "name: string should match pattern"),
        ("aws.cpu_image_id=ubuntu", "aws.cpu_image_id: string should match pattern"),
    ],
)
def test_a_wrong_value_is_named(override: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_values(VALUES, [override])
    assert said in str(raised.value)


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    values = yaml.safe_load(Path(VALUES).read_text())
    del values["pools"]
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError, match=r"values\.yaml: pools: is required"):
        read_values(str(file))


class TestTheCommand:
    def test_it_writes_all_files_then_only_what_changed(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["cluster-config", "--values", VALUES, "--to", str(tmp_path)]
        assert main(command) == 0
        written = sorted(file for file in tmp_path.rglob("*") if file.is_file())
        capsys.readouterr()
        assert main([*command, "idle_minutes=9"]) == 0
        said = capsys.readouterr().out
        assert f"written: {tmp_path}/aws.yaml" in said
        assert "run.yaml" not in said
        starters = (
            4  # serve.yaml, slurm.sh, skypilot.yaml and karpenter.yaml are the user's own from the first time on
        )
        assert f"of {len(written) - starters} files changed" in said

    def test_an_empty_folder_gets_example_values_which_later_calls_read(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["cluster-config", "--to", str(tmp_path)]
        assert main(command) == 0
        assert (tmp_path / "values.yaml").read_text() == Path(VALUES).read_text()
        edited = Path(VALUES).read_text().replace("idle_minutes: 5 ", "idle_minutes: 9 ")
        (tmp_path / "values.yaml").write_text(edited)
        assert main([*command, "--check"]) == 1
        assert f"not up to date: {tmp_path}/aws.yaml" in capsys.readouterr().out
        assert main(command) == 0
        assert (tmp_path / "values.yaml").read_text() == edited
        assert "idle_timeout_minutes: 9" in (tmp_path / "aws.yaml").read_text()

    def test_with_values_from_elsewhere_no_example_values_are_written(self, tmp_path: Path) -> None:
        assert main(["cluster-config", "--values", VALUES, "--to", str(tmp_path)]) == 0
        assert not (tmp_path / "values.yaml").exists()

    def test_check_writes_nothing_and_fails_where_a_file_is_stale(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["cluster-config", "--values", VALUES, "--to", str(tmp_path)]
        assert main([*command, "--check"]) == 1
        assert f"not up to date: {tmp_path}/aws.yaml" in capsys.readouterr().out
        assert not list(tmp_path.iterdir())
        assert main(command) == 0
        assert main([*command, "--check"]) == 0

    def test_a_wrong_value_leaves_no_file(self, tmp_path: Path) -> None:
        assert main(["cluster-config", "--values", VALUES, "--to", str(tmp_path), "bucket=x"]) == 2
        assert not list(tmp_path.iterdir())
