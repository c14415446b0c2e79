"""The config: what is accepted, what is refused and in which words, what a stage's fingerprint notices."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from mode_ray.config.base import Settings, config_hash, fingerprint_fields
from mode_ray.config.captions import CaptionsConfig, EmbedConfig, EncoderConfig
from mode_ray.config.cluster import ClusterConfig
from mode_ray.config.images import ImagesConfig
from mode_ray.config.load import dump_config, load_config
from mode_ray.config.run import RunConfig
from mode_ray.config.train import ModelConfig, TowersConfig, TrainConfig
from mode_ray.errors import UsageError
from mode_ray.storage import Location

MINIMAL = """
run: {run}
captions: {{paths: [captions.parquet]}}
"""
TRAINED = "train: {dense_samples: 1000000}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A config file with only what is required."""
    path = tmp_path / "my.yaml"
    path.write_text(MINIMAL.format(run=tmp_path / "run"))
    return path


def refusal(path: Path | str, *overrides: str) -> str:
    """The message with which a config is refused."""
    with pytest.raises(UsageError) as caught:
        load_config(str(path), overrides)
    return str(caught.value)


class TestDefaults:
    def test_only_run_and_captions_are_required(self, file: Path, tmp_path: Path) -> None:
        config = load_config(str(file))
        assert config.directory.uri == str(tmp_path / "run")
        assert config.captions.paths == ("captions.parquet",)

    def test_they_are_the_papers_but_for_a_model_and_a_batch_that_a_laptop_trains(self, file: Path) -> None:
        config = load_config(str(file))
        assert config.encoder.model == "princeton-nlp/sup-simcse-bert-base-uncased"
        assert config.cluster.fine.centers == 1024
        assert config.train.seed_share == 27 / 32
        assert config.routing.paper_lambda == 0.2
        assert (config.train.model.architecture, config.train.batch_size) == ("ViT-S-32", 64)

    def test_the_preset_paper_has_the_papers(self, tmp_path: Path) -> None:
        train = load_config("paper", [f"run={tmp_path}", "captions.paths=[captions.parquet]"]).train
        assert (train.model.architecture, train.model.precision) == ("ViT-B-16", "bfloat16")
        assert (train.batch_size, train.warmup_samples, train.dense_samples) == (32768, 2000 * 32768, 12_800_000_000)

    def test_the_warmup_is_a_twentieth_of_the_budget(self, file: Path) -> None:
        assert load_config(str(file), ["train.dense_samples=8192"]).train.warmup_samples == 409
        given = ["train.dense_samples=8192", "train.optimizer.warmup_samples=0"]
        assert load_config(str(file), given).train.warmup_samples == 0

    def test_a_config_for_captions_alone_may_have_any_maps(self, file: Path) -> None:
        config = load_config(str(file), ["cluster.coarse.experts=[2, 8]"])
        assert not config.trains
        with pytest.raises(UsageError, match=r"^train\.dense_samples is not set: set it to .*--until assign"):
            _ = config.train.budget_samples
        assert "train.experts=4 has no coarse map" in refusal(
            file, "cluster.coarse.experts=[2, 8]", "train.dense_samples=5"
        )

    @pytest.mark.parametrize("name", ["demo", "small", "paper"])
    def test_presets_are_found_by_name_and_valid(self, name: str, tmp_path: Path) -> None:
        required = [f"run={tmp_path}", "captions.paths=[captions.parquet]"]
        assert isinstance(load_config(name, required), RunConfig)

    def test_the_dumped_config_loads_as_the_same(self, file: Path, tmp_path: Path) -> None:
        config = load_config(str(file), ["cluster.coarse.experts=[2,4]", "train.seed=7"])
        dumped = tmp_path / "dumped.yaml"
        dumped.write_text(dump_config(config))
        assert load_config(str(dumped)) == config


class TestOverrides:
    def test_values_are_read_as_yaml(self, file: Path) -> None:
        config = load_config(
            str(file),
            [
                "cluster.fine.centers=256",
                "cluster.coarse.experts=[2, 4, 8]",
                "train.controls=[full]",
                "captions.key_field=null",
                "routing.rule=paper",
            ],
        )
        assert config.cluster.fine.centers == 256
        assert config.cluster.coarse.experts == (2, 4, 8)
        assert config.train.controls == ("full",)
        assert config.captions.key_field is None
        assert config.routing.rule == "paper"

    @pytest.mark.parametrize(
        ("before", "now"),
        [
            (["train.random_control=true"], "controls: [dense, random]"),
            (["train.dense=false"], "controls: []"),
            (["train.dense=true", "train.random_control=false"], "controls: [dense]"),
        ],
    )
    def test_the_controls_of_before_are_told_what_to_write(self, file: Path, before: list[str], now: str) -> None:
        with pytest.raises(UsageError, match=re.escape(f"write {now} instead")):
            load_config(str(file), before)

    def test_no_control_is_named_twice(self, file: Path) -> None:
        with pytest.raises(UsageError, match="names one of them twice: dense, dense"):
            load_config(str(file), ["train.controls=[dense, dense]"])

    @pytest.mark.parametrize("text", ["5e-4", "5E-4", "0.0005", "5.0e-4", "0.5e-3"])
    def test_a_number_may_be_written_with_an_exponent(self, file: Path, text: str) -> None:
        assert load_config(str(file), [f"train.optimizer.learning_rate={text}"]).train.optimizer.learning_rate == 5e-4

    def test_text_that_begins_like_such_a_number_stays_text(self, file: Path) -> None:
        assert load_config(str(file), ["encoder.model=5e-4-model"]).encoder.model == "5e-4-model"

    def test_the_last_of_two_wins_and_the_file_loses(self, file: Path) -> None:
        config = load_config(str(file), ["train.dense_samples=5", "train.dense_samples=6"])
        assert config.train.dense_samples == 6

    def test_an_equals_sign_may_be_in_the_value(self, file: Path) -> None:
        assert load_config(str(file), ["captions.paths=['/a=b/c']"]).captions.paths == ("/a=b/c",)

    @pytest.mark.parametrize("override", ["cluster.fine.centers", "=3", ""])
    def test_without_key_or_equals_sign_it_is_refused(self, file: Path, override: str) -> None:
        assert f"override {override!r}: expected KEY=VALUE" in refusal(file, override)

    def test_broken_yaml_in_a_value_is_refused(self, file: Path) -> None:
        assert "override 'cluster.seed=[1': the value is not valid YAML" in refusal(file, "cluster.seed=[1")

    def test_a_section_below_a_value_is_refused(self, file: Path) -> None:
        assert "override 'run.x=1': 'run' is a value, not a section" in refusal(file, "run.x=1")

    @pytest.mark.parametrize(
        ("override", "field"),
        [
            ("cluster.fine.centers=many", "cluster.fine.centers: "),
            ("cluster.coarse.experts=[4, x]", "cluster.coarse.experts.1: "),
            ("captions={paths: 3}", "captions.paths: "),
        ],
    )
    def test_a_wrong_value_names_the_override_and_the_field(self, file: Path, override: str, field: str) -> None:
        message = refusal(file, override)
        assert message.startswith(f"override {override!r}: {field}")
        assert str(file) not in message


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("cluster: {fine: {centres: 5}}", "cluster.fine.centres: unknown key"),
            ("clutser: {}", "clutser: unknown key"),
            ("cluster: {fine: {centers: '256'}}", "cluster.fine.centers: input should be a valid integer"),
            ("cluster: {fine: {centers: 1.5}}", "cluster.fine.centers: input should be a valid integer"),
            ("cluster: {fine: {balanced: 1}}", "cluster.fine.balanced: input should be a valid boolean"),
            (
                "cluster: {fine: {centers: 0}}",
                "cluster.fine.centers: input should be greater than 0 (given: 0)",
            ),
            ("routing: {temperature: .nan}", "routing.temperature: input should be a finite number"),
            ("routing: {temperature: .inf}", "routing.temperature: input should be a finite number"),
            (
                "routing: {rule: best}",
                "routing.rule: input should be 'calibrated', 'soft', 'paper', 'released' or 'uniform'",
            ),
            (
                "embed: {pool: {min_actors: 3, max_actors: 2}}",
                "embed.pool: min_actors=3 is above max_actors=2",
            ),
            ("cluster: {sample_rows: 100}", "sample_rows=100 is below fine.centers=1024"),
            ("cluster: {coarse: {experts: [4, 0]}}", "coarse.experts has n=0"),
            (
                "cluster: {fine: {centers: 8}, coarse: {experts: [4, 16]}}",
                "coarse.experts has n=16 but fine.centers is m=8",
            ),
            ("cluster: {coarse: {experts: [8]}}", "train.experts=4 has no coarse map"),
        ],
    )
    def test_the_file_and_the_field_are_named(self, file: Path, text: str, problem: str) -> None:
        file.write_text(file.read_text() + TRAINED + text)
        message = refusal(file)
        assert message.startswith(f"{file}: ")
        assert problem in message

    def test_every_problem_gets_its_own_sentence(self, file: Path) -> None:
        file.write_text("encoder: {modl: x}\ncaptions: {paths: []}\n")
        sentences = refusal(file).splitlines()
        assert [sentence.removeprefix(f"{file}: ") for sentence in sorted(sentences)] == [
            "captions: paths is empty: name at least one file, directory or glob",
            "encoder.modl: unknown key",
            "run: is required",
        ]

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("evaluate.tasks=cars.yaml", "evaluate.tasks: is one string where a list is meant: write [cars.yaml]"),
            ("train.controls=full", "train.controls: is one string where a list is meant: write [full]"),
            ("cluster.coarse.experts=4", "cluster.coarse.experts: is one value where a list is meant: write [4]"),
        ],
    )
    def test_one_value_where_a_list_is_meant_is_explained(self, file: Path, override: str, said: str) -> None:
        assert said in refusal(file, override)

    def test_a_seed_that_takes_all_samples_is_refused(self, file: Path) -> None:
        assert "seed_share must be below 1" in refusal(file, "train.seed_share=1.0")

    def test_one_path_without_brackets_is_refused_rather_than_split_into_letters(self, file: Path) -> None:
        assert "captions.paths: is one string where a list is meant: write [a.parquet]" in refusal(
            file, "captions.paths=a.parquet"
        )


class TestFiles:
    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        message = refusal(tmp_path / "absent.yaml")
        assert message == f"{tmp_path}/absent.yaml: no such config file (and no preset of that name)"

    def test_a_run_directory_is_refused_with_the_file_that_was_meant(self, file: Path, tmp_path: Path) -> None:
        assert refusal(tmp_path) == f"{tmp_path}: a directory, not a config file, and it has no config.yaml"
        file.rename(tmp_path / "config.yaml")
        assert (
            refusal(f"{tmp_path}/")
            == f"{tmp_path}/: a run directory, not a config file: write {file.parent}/config.yaml"
        )

    def test_broken_yaml_is_refused_in_one_line_with_its_place(self, file: Path) -> None:
        file.write_text("run: [a\ncaptions: {")
        message = refusal(file)
        assert f"{file}: not valid YAML" in message
        assert "line 2" in message
        assert "\n" not in message

    def test_python_objects_are_not_built(self, file: Path, tmp_path: Path) -> None:
        file.write_text(f"run: !!python/object/apply:os.mkdir ['{tmp_path}/made']")
        assert "not valid YAML" in refusal(file)
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("text", ["", "- run", "run"])
    def test_anything_but_a_mapping_is_refused(self, file: Path, text: str) -> None:
        file.write_text(text)
        assert "expected a mapping of config sections" in refusal(file)

    def test_bytes_that_are_no_text_are_refused(self, file: Path) -> None:
        file.write_bytes(b"run: \xff")
        assert f"{file}: not UTF-8 text (byte 5)" in refusal(file)

    def test_it_may_lie_on_s3(self, bucket: str, file: Path) -> None:
        Location.parse(f"{bucket}/my.yaml").write_text(file.read_text())
        assert load_config(f"{bucket}/my.yaml") == load_config(str(file))
        assert f"{bucket}/absent.yaml: no such config file" in refusal(f"{bucket}/absent.yaml")


class TestFrozen:
    def test_no_field_can_be_set(self, file: Path) -> None:
        config = load_config(str(file))
        with pytest.raises(ValidationError, match="frozen"):
            config.run = "elsewhere"  # type: ignore[misc]
        with pytest.raises(ValidationError, match="frozen"):
            config.cluster.fine.centers = 5  # type: ignore[misc]


class TestFingerprint:
    def test_it_lists_every_field_by_its_dotted_name(self) -> None:
        fields = fingerprint_fields(EncoderConfig(), "encoder")
        assert fields == {
            "encoder.kind": "huggingface",
            "encoder.model": "princeton-nlp/sup-simcse-bert-base-uncased",
            "encoder.pooling": "auto",
            "encoder.max_tokens": 64,
            "encoder.dtype": "auto",
        }

    @pytest.mark.parametrize(
        ("section", "changed"),
        [
            (EmbedConfig(), {"pool": {"max_actors": 64}, "encoder": {"batch_size": 8}}),
            (ClusterConfig(), {"placement": {"threads": 32}}),
            (TrainConfig(dense_samples=10), {"dense_samples": 10, "placement": {"workers_per_run": 8}}),
        ],
    )
    def test_placements_do_not_count(self, section: Settings, changed: dict[str, object]) -> None:
        other = type(section).model_validate(changed)
        assert other != section
        assert fingerprint_fields(other, "x") == fingerprint_fields(section, "x")

    @pytest.mark.parametrize(
        ("section", "changed", "name"),
        [
            (EmbedConfig(), {"keep": "sample"}, "x.keep"),
            (ClusterConfig(), {"seed": 1}, "x.seed"),
            (ClusterConfig(), {"fine": {"price_rate": 0.05}}, "x.fine.price_rate"),
            (ClusterConfig(), {"coarse": {"experts": [4, 8]}}, "x.coarse.experts"),
            (TrainConfig(dense_samples=10), {"dense_samples": 11}, "x.dense_samples"),
        ],
    )
    def test_everything_else_does(self, section: Settings, changed: dict[str, object], name: str) -> None:
        before = fingerprint_fields(section, "x")
        after = fingerprint_fields(type(section).model_validate(changed), "x")
        assert {field for field in before if before[field] != after[field]} == {name}
        assert config_hash(before) != config_hash(after)

    @pytest.mark.parametrize(
        ("section", "changed"),
        [
            (CaptionsConfig(paths=("a",)), {"quoting": "none"}),
            (CaptionsConfig(paths=("a",)), {"header": False}),
            (ImagesConfig(), {"background": "#000000"}),
        ],
    )
    def test_fields_that_were_added_count_where_they_are_set(
        self, section: Settings, changed: dict[str, object]
    ) -> None:
        before = fingerprint_fields(section, "x")
        after = fingerprint_fields(section.model_copy(update=changed), "x")
        assert {name: after[name] for name in set(after) - set(before)} == {f"x.{n}": v for n, v in changed.items()}

    def test_the_place_of_image_files_is_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert CaptionsConfig(paths=("a",), image_root="pictures").image_root == str(tmp_path / "pictures")
        with pytest.raises(ValidationError, match=r"image_root\n.*unknown scheme 'http'"):
            CaptionsConfig(paths=("a",), image_root="http://x/y")

    def test_local_models_are_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/user")
        (tmp_path / "folder").mkdir()
        (tmp_path / "weights.pt").touch()
        folder, file = str(tmp_path / "folder"), str(tmp_path / "weights.pt")
        assert EncoderConfig(model="folder").model == folder
        assert EncoderConfig(model="~/encoder").model == "/home/user/encoder"
        assert EncoderConfig(model="organisation/name").model == "organisation/name"
        assert ModelConfig(architecture="./folder").architecture == folder
        assert ModelConfig(pretrained="weights.pt").pretrained == file
        assert ModelConfig(pretrained="folder").pretrained == "folder"
        towers = TowersConfig(image="weights.pt", text="folder")
        assert (towers.image, towers.text) == (file, folder)

    def test_the_place_of_image_files_does_not_count(self) -> None:
        here = CaptionsConfig(paths=("a",))
        there = here.model_copy(update={"image_root": "s3://bucket/images"})
        assert fingerprint_fields(there, "x") == fingerprint_fields(here, "x")

    def test_its_values_survive_json_and_yaml(self) -> None:
        fields = fingerprint_fields(ClusterConfig(), "cluster")
        assert yaml.safe_load(yaml.safe_dump(fields)) == fields

    def test_the_hash_does_not_depend_on_the_order_of_the_fields(self) -> None:
        assert config_hash({"a": 1, "b": [2, 3]}) == config_hash({"b": [2, 3], "a": 1})
        assert config_hash({"a": 1, "b": [2, 3]}) != config_hash({"a": 1, "b": [3, 2]})
