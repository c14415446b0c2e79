"""The study file: one axis, its values, and clear messages for wrong ones."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mode_ray.config.study import load_study
from mode_ray.errors import UsageError

FIELDS: dict[str, Any] = {"study": "/studies/n", "base": "demo", "field": "train.experts", "values": [2, 4]}


def write(folder: Path, **changes: Any) -> str:  # noqa: ANN401
    file = folder / "study.yaml"
    file.write_text(
        yaml.safe_dump({name: value for name, value in {**FIELDS, **changes}.items() if value is not None})
    )
    return str(file)


class TestLoading:
    def test_values_of_a_field_are_points_labelled_by_them(self, tmp_path: Path) -> None:
        study = load_study(write(tmp_path))
        assert study.labels == ("2", "4")
        assert study.changes_by_label == {"2": {"train.experts": 2}, "4": {"train.experts": 4}}
        assert study.axis_title == "train.experts"

    def test_points_may_differ_in_several_fields(self, tmp_path: Path) -> None:
        points = {"MiniLM": {"encoder.model": "x"}, "words": {"encoder.kind": "static", "encoder.model": "y"}}
        study = load_study(write(tmp_path, field=None, values=None, points=points, axis="encoder"))
        assert study.labels == ("MiniLM", "words")
        assert study.changes_by_label == points
        assert study.axis_title == "encoder"

    def test_numbers_are_read_as_in_a_runs_config(self, tmp_path: Path) -> None:
        file = write(tmp_path, field="train.optimizer.learning_rate", values="VALUES")
        Path(file).write_text(Path(file).read_text().replace("VALUES", "[5e-4, 1e-3]"))
        assert load_study(file).values == (5e-4, 1e-3)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"values": None}, "(top level): field and values go together"),
            ({"field": None, "values": None}, "(top level): give either field with values, or points"),
            ({"points": {"a": {"train.experts": 1}}}, "(top level): give either field with values, or points"),
            ({"values": [2, 2]}, "(top level): values: one of them is given twice"),
            ({"seeds": [1, 1]}, "(top level): seeds: one of them is given twice"),
            ({"seeds": []}, "(top level): seeds: is empty"),
            ({"changes": {"run": "/x"}}, "(top level): run is set by the study"),
            ({"field": "train.seed"}, "(top level): train.seed is set by the study"),
            (
                {"field": "cluster.seed", "seed_clustering": True},
                "(top level): cluster.seed is set by the study",
            ),
            ({"against": "time"}, "against: input should be 'value' or 'samples'"),
            ({"valeus": [1]}, "valeus: unknown key"),
        ],
    )
    def test_a_mistake_names_file_and_field(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        file = write(tmp_path, **changes)
        with pytest.raises(UsageError) as error:
            load_study(file)
        assert str(error.value).startswith(f"{file}: {message}")

    def test_no_file_and_no_mapping(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no such config file"):
            load_study(str(tmp_path / "absent.yaml"))
        (tmp_path / "list.yaml").write_text("- 1\n")
        with pytest.raises(UsageError, match="expected a mapping"):
            load_study(str(tmp_path / "list.yaml"))
