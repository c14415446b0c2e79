"""Fields under the names of version 0.1.0: accepted with one warning, and a run of that version stays done."""

import json
import logging
import tarfile
from pathlib import Path

import pytest

from mode_ray.cluster.reuse import CONTENT_FIELD
from mode_ray.config.base import config_hash, fingerprint_fields
from mode_ray.config.load import dump_config, load_config, with_values
from mode_ray.config.study import load_study
from mode_ray.errors import UsageError
from mode_ray.run_directory import MANIFEST, STARTED
from mode_ray.stages.manifest import Stage, read_manifest
from mode_ray.storage import Location

RUN_OF_BEFORE = Path(__file__).parents[1] / "fixtures/run_0_1_0.tar.xz"
REQUIRED = "run: /runs/b\ncaptions: {paths: [captions.parquet]}\n"
TRAIN = "train: {dense_samples: 100, standing: /runs/a, standing_models: [seed]}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A config that names both fields as in version 0.1.0."""
    path = tmp_path / "my.yaml"
    path.write_text(f"{REQUIRED}cluster: {{standing: /runs/a/clusters}}\n{TRAIN}")
    return path


class TestConfig:
    def test_a_former_name_means_the_same(self, file: Path) -> None:
        config = load_config(str(file))
        assert config.cluster.reuse == "/runs/a/clusters"
        assert (config.train.reuse, config.train.reuse_models) == ("/runs/a", ("seed",))

    def test_all_of_a_file_are_reported_in_one_line(self, file: Path, caplog: pytest.LogCaptureFixture) -> None:
        load_config(str(file))
        load_config(str(file))
        assert [record.getMessage() for record in caplog.records] == [
            f"{file}: cluster.standing is now cluster.reuse, train.standing is now train.reuse, "
            "train.standing_models is now train.reuse_models; the former name is accepted until version 0.3.0"
        ]
        assert caplog.records[0].levelno == logging.WARNING

    def test_an_override_replaces_the_value_of_the_file_under_either_name(self, file: Path) -> None:
        assert load_config(str(file), ["train.reuse=/runs/c"]).train.reuse == "/runs/c"
        assert load_config(str(file), ["train.standing=/runs/d"]).train.reuse == "/runs/d"
        assert load_config(str(file), ["train={dense_samples: 1, standing: /runs/e}"]).train.reuse == "/runs/e"
        assert with_values(load_config(str(file)), {"cluster.standing": "/other"}).cluster.reuse == "/other"

    def test_a_wrong_value_names_the_override_and_the_field(self, file: Path) -> None:
        with pytest.raises(UsageError, match=r"^override 'train\.standing=3': train\.reuse: input should be"):
            load_config(str(file), ["train.standing=3"])

    def test_both_names_at_once_are_refused(self, file: Path) -> None:
        file.write_text(f"{REQUIRED}cluster: {{standing: /a, reuse: /b}}\n{TRAIN}")
        with pytest.raises(
            UsageError, match=r"standing is the former name of cluster\.reuse: give cluster\.reuse only"
        ):
            load_config(str(file))

    def test_the_whole_config_that_a_run_stores_is_not_reported(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        stored = tmp_path / "config.yaml"
        text = dump_config(load_config("demo", [f"run={tmp_path}", "captions.paths=[captions.parquet]"]))
        stored.write_text(text.replace("reuse: null", "standing: null").replace("reuse_models:", "standing_models:"))
        assert stored.read_text().count("standing") == 3
        load_config(str(stored))
        assert caplog.records == []

    def test_a_study_sets_them_itself_under_either_name(self, tmp_path: Path) -> None:
        study = tmp_path / "study.yaml"
        study.write_text(
            "{study: /s, base: demo, field: train.experts, values: [2, 4], changes: {train.standing: /a}}"
        )
        with pytest.raises(UsageError, match=r"train\.reuse is set by the study"):
            load_study(str(study))


class TestFingerprint:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        """A run that version 0.1.0 made: its config and what it stored of its stages."""
        with tarfile.open(RUN_OF_BEFORE) as archive:
            names = ("config.yaml", STARTED, MANIFEST)
            archive.extractall(tmp_path, [one for one in archive if Path(one.name).name in names], filter="data")
        [training] = tmp_path.rglob("experts/manifest.json")
        return training.parents[1]

    def test_the_training_of_before_has_the_same_hash(self, run: Path) -> None:
        stored = json.loads((run / "experts" / MANIFEST).read_text())
        assert "train.standing" in stored["fields"]
        inputs = {name: value for name, value in stored["fields"].items() if name.startswith("inputs.")}
        fields = fingerprint_fields(load_config(str(run / "config.yaml")).train, "train")
        assert "train.reuse" in fields
        assert config_hash({**fields, **inputs}) == stored["config_hash"]
        assert Stage("train", Location(str(run / "experts")), {**fields, **inputs}).state() == "done"

    def test_its_fields_are_read_under_their_names_of_today(self, run: Path) -> None:
        manifest = read_manifest(Location(str(run / "experts")))
        assert manifest is not None
        assert manifest.fields["train.reuse"] is None
        assert not any("standing" in name for name in manifest.fields)

    def test_a_reused_clustering_of_before_is_done_unless_its_content_changed(self, tmp_path: Path) -> None:
        (tmp_path / STARTED).write_text(json.dumps({"fields": {"cluster.standing (content)": "abc"}}))
        (tmp_path / MANIFEST).write_text("{}")
        assert Stage("cluster", Location(str(tmp_path)), {CONTENT_FIELD: "abc"}).state() == "done"
        with pytest.raises(UsageError, match=r"cluster\.reuse \(content\) was 'abc', is 'def'"):
            Stage("cluster", Location(str(tmp_path)), {CONTENT_FIELD: "def"}).state()
