"""Exported folders: what open_clip loads, what the cards say, and that nothing half-written is left."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
import yaml
from PIL import Image
from scipy.special import softmax

from mode_ray.atlas.data import AtlasFacts, atlas_data
from mode_ray.atlas.sample import summarise
from mode_ray.atlas.summary import MapData, write_summary
from mode_ray.cli import main
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.evaluate import RoutingConfig
from mode_ray.config.load import dump_config
from mode_ray.config.run import RunConfig
from mode_ray.embed.encoder import encoder_name
from mode_ray.errors import DataError, UsageError
from mode_ray.export import run as export_run
from mode_ray.export.run import ExportRequest, run_export
from mode_ray.models.clip import load_clip
from mode_ray.models.encode import Expert
from mode_ray.routing.weights import routing_weights
from mode_ray.run_directory import SUMMARY_FILE, stage_directories
from mode_ray.storage import Location

MODEL_FILES = {"open_clip_config.json", "open_clip_model.safetensors"}
CLUSTERING_FILES = {"fine.safetensors", "coarse-n2.safetensors", "coarse-n3.safetensors"}
Export = Callable[..., Path]


@pytest.fixture
def export(make_config: Callable[..., RunConfig], tmp_path: Path) -> Export:
    """Exports to a fresh folder, which it returns."""

    def to_folder(**request: object) -> Path:
        target = tmp_path / "out"
        run_export(
            make_config(),
            ExportRequest(target=Location.parse(str(target)), **request),  # type: ignore[arg-type]
        )
        return target

    return to_folder


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def front_matter(card: str) -> dict[str, object]:
    _, head, _ = card.split("---\n", 2)
    values: dict[str, object] = yaml.safe_load(head)
    return values


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """An image file."""
    file = tmp_path / "picture.png"
    Image.effect_noise((40, 24), 200).convert("RGB").save(file)
    return file


def scripts(folder: Path) -> list[str]:
    """The Python scripts of a folder's card."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def run_script(script: str, folder: Path, image: Path) -> dict[str, Any]:
    """Run a script of a card as a user would, with the two names filled in; returns its variables."""
    made: dict[str, Any] = {}
    exec(script.replace("FOLDER", str(folder)).replace("IMAGE.png", str(image)), made)  # noqa: S102 - the card's code
    return made


def save_tiny_encoder(folder: Path) -> None:
    """A random BERT of 8 dimensions, as the centers of the run."""
    torch.manual_seed(0)
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "a", "photo", "of", "cat", "dog", "."])}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 - no secret
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",  # noqa: S106
        unk_token="[UNK]",  # noqa: S106
    ).save_pretrained(folder)


class TestOneExpert:
    def test_it_is_the_experts_own_bytes_with_the_clustering_beside(
        self, export: Export, directories: Mapping[str, Location]
    ) -> None:
        folder = export(expert=1)
        assert names(folder) == MODEL_FILES | {"README.md", "clustering"}
        assert names(folder / "clustering") == CLUSTERING_FILES
        for name in MODEL_FILES:
            assert (folder / name).read_bytes() == (directories["train"] / "n3/01" / name).read_bytes()
        assert Clustering.load(Location.parse(str(folder / "clustering"))).encoder_name == "tiny-encoder"

    def test_the_cards_script_gives_the_probabilities_of_the_model(
        self, export: Export, picture: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = export(expert=1)
        made = run_script(scripts(folder)[0], folder, picture)
        model = Expert(Location.parse(str(folder)), "cpu")
        texts_ld = model.encode_texts(["a photo of a cat.", "a photo of a dog."])
        image_1d = model.encode_images(model.prepare(Image.open(picture))[None])
        expected = softmax(model.logit_scale * (image_1d @ texts_ld.T).astype(np.float64), axis=1)[0]
        np.testing.assert_allclose(made["probabilities"], expected, atol=1e-5)
        assert capsys.readouterr().out == "".join(
            f"{label}: {probability:.1%}\n" for label, probability in zip(("cat", "dog"), expected, strict=True)
        )

    def test_the_cards_routing_is_the_packages_own(self, export: Export, picture: Path) -> None:
        folder = export(expert=0)
        made = run_script(scripts(folder)[1], folder, picture)
        texts_ld = np.random.default_rng(0).normal(size=(5, 8))
        texts_ld /= np.linalg.norm(texts_ld, axis=1, keepdims=True)
        clustering = Clustering.load(Location.parse(str(folder / "clustering")))
        ours = routing_weights(texts_ld, clustering.centers_md, clustering.coarse[3], RoutingConfig(), "soft")
        np.testing.assert_allclose(made["expert_weights"](texts_ld), ours.weights_c, atol=1e-6)

    def test_an_expert_that_does_not_exist_is_refused(self, export: Export) -> None:
        with pytest.raises(UsageError, match="--expert 3: the experts of this run are 0 to 2"):
            export(expert=3)


class TestCards:
    def test_the_front_matter_is_what_the_hub_reads(self, export: Export) -> None:
        matter = front_matter((export(expert=0, license_id="cc-by-4.0") / "README.md").read_text())
        assert matter == {
            "license": "cc-by-4.0",
            "library_name": "open_clip",
            "pipeline_tag": "zero-shot-image-classification",
            "tags": ["clip", "open_clip", "mode"],
        }

    def test_without_a_licence_it_is_left_to_the_user(self, export: Export) -> None:
        card = (export(expert=0) / "README.md").read_text()
        assert front_matter(card)["license"] == "other"
        assert "yours to state" in card

    def test_a_licence_that_is_none_is_refused(self, export: Export) -> None:
        with pytest.raises(UsageError, match="give a licence id"):
            export(license_id="x\ntags: [evil]")

    def test_it_states_data_clusters_samples_and_results(self, export: Export) -> None:
        card = (export(expert=1) / "README.md").read_text()
        assert "1,000 pairs of 1,004 captions found in 7 shards" in card
        assert "6 fine centers" in card
        assert "| 1 | 300 | 30.0% | 2 | 1,200 |" in card
        assert "| seed model, common to all experts | 4,096 |" in card
        assert "| all experts and the seed | 8,192 |" in card
        assert "| dense baseline | 8,192 |" in card
        # This expert alone, the ensemble under the config's own rule, dense.
        assert "| `shapes` | `top1` | 37.5% | 62.5% | 50.0% |" in card

    def test_data_stay_in_code_spans(self, export: Export) -> None:
        card = (export(expert=1) / "README.md").read_text()
        assert "a'b/<c>.tar`" in card
        assert "`empty / <caption>`" in card

    def test_without_an_evaluation_it_says_so(self, export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mode_ray.export.facts.REPORT_JSON", "absent.json")
        assert "Not evaluated." in (export() / "README.md").read_text()

    def test_typical_words_come_from_the_atlas(self, export: Export, directories: Mapping[str, Location]) -> None:
        clusters = directories["cluster"]
        sample = summarise(np.array([0, 2], np.int32), np.ones(2, np.float32), ["a cat", "a dog"], per_end=5)
        facts = AtlasFacts(about={}, slack=0.1, first_map=3, refused={}, versions={})
        summary = atlas_data(Clustering.load(clusters), sample, facts)
        terms = {2: [["no"], ["no"]], 3: [["cat"], ["dog", "it's`x"], []]}
        maps = [MapData({**one, "terms": terms[one["n"]]}) for one in summary["maps"]]
        write_summary(clusters, {**summary, "maps": maps})
        try:
            card = (export(expert=1) / "README.md").read_text()
        finally:
            (clusters / SUMMARY_FILE).delete()
        assert "| `dog` `it's'x` |" in card


class TestAll:
    @pytest.mark.parametrize("pooling", ["pooler", "mean", "cls"])
    def test_the_cards_script_without_mode_ray_gives_what_the_one_with_it_gives(
        self, make_config: Callable[..., RunConfig], tmp_path: Path, picture: Path, pooling: str
    ) -> None:
        save_tiny_encoder(tmp_path / "encoder")
        config = make_config()
        shutil.copytree(config.run, tmp_path / "run")
        encoder = {"model": str(tmp_path / "encoder"), "pooling": pooling}
        values = {**config.model_dump(mode="json"), "run": str(tmp_path / "run"), "encoder": encoder}
        config = RunConfig.model_validate(values)
        clusters = stage_directories(config.directory)["cluster"]
        replace(Clustering.load(clusters), encoder_name=encoder_name(config.encoder)).save(clusters)
        folder = tmp_path / "out"
        run_export(config, ExportRequest(target=Location.parse(str(folder))))
        with_mode_ray, without = (run_script(script, folder, picture) for script in scripts(folder))
        np.testing.assert_allclose(without["weights"], with_mode_ray["found"].weights, atol=1e-5)
        np.testing.assert_allclose(without["probabilities"], with_mode_ray["found"].probabilities[0], atol=1e-5)

    def test_every_expert_is_a_folder_beside_one_clustering_and_one_card(self, export: Export) -> None:
        folder = export()
        files = {"README.md", "mode_ray.json", "clustering"}
        assert names(folder) == files | {"expert-00", "expert-01", "expert-02"}
        for number in range(3):
            assert names(folder / f"expert-{number:02d}") == MODEL_FILES | {"README.md", "clustering"}
            load_clip(Location.parse(str(folder / f"expert-{number:02d}")))
        card = (folder / "README.md").read_text()
        assert "`expert-00` to `expert-02`" in card
        assert card.count("\n| 0 | 600 ") == card.count("\n| 2 | 100 ") == 1
        assert "mixture-of-experts" in str(front_matter(card)["tags"])


class TestAverages:
    @pytest.mark.parametrize(("uniform", "weights"), [(False, (0.6, 0.3, 0.1)), (True, (1 / 3, 1 / 3, 1 / 3))])
    def test_weights_are_those_of_the_pairs_or_alike(
        self, export: Export, directories: Mapping[str, Location], uniform: bool, weights: tuple[float, ...]
    ) -> None:
        folder = export(average=True, uniform=uniform)
        assert names(folder) == MODEL_FILES | {"README.md"}
        mean = load_clip(Location.parse(str(folder))).module.state_dict()
        experts = [load_clip(directories["train"] / f"n3/{c:02d}").module.state_dict() for c in range(3)]
        for name, tensor in mean.items():
            expected = sum(weight * expert[name].double() for weight, expert in zip(weights, experts, strict=True))
            torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=1e-6)
        card = (folder / "README.md").read_text()
        assert ("each alike" if uniform else "weighted by their pairs") in card
        assert "The average itself was not evaluated" in card

    def test_options_that_do_not_go_together_are_refused(self, export: Export) -> None:
        with pytest.raises(UsageError, match="leave out --expert"):
            export(average=True, expert=0)
        with pytest.raises(UsageError, match="give --average too"):
            export(uniform=True)


class TestTargets:
    def test_an_empty_folder_will_do(self, export: Export, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        assert "README.md" in names(export(expert=0))

    @pytest.mark.parametrize("name", ["model.bin", ".git"])
    def test_one_that_holds_anything_is_refused_and_left_alone(
        self, export: Export, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_text("mine")
        with pytest.raises(UsageError, match="not an absent or empty directory"):
            export(expert=0)
        assert names(tmp_path / "out") == {name}

    def test_nothing_is_left_of_an_export_that_fails(
        self, export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise DataError("n3/02: damaged")

        copy_model = export_run._copy_model
        monkeypatch.setattr(
            export_run,
            "_copy_model",
            lambda expert, target: (fail if expert.number == 2 else copy_model)(expert, target),
        )
        with pytest.raises(DataError, match="damaged"):
            export()
        assert names(tmp_path) == set()

    def test_what_a_killed_one_left_does_not_stand_in_the_way(self, export: Export, tmp_path: Path) -> None:
        (tmp_path / ".out.partial" / "expert-09").mkdir(parents=True)
        assert "expert-09" not in names(export())
        assert names(tmp_path) == {"out"}

    def test_object_stores_too(self, make_config: Callable[..., RunConfig], bucket: str) -> None:
        target = Location.parse(f"{bucket}/models/one")
        run_export(make_config(), ExportRequest(target=target, expert=0))
        assert {file.name for file in target.files()} == MODEL_FILES | {"README.md"}
        with pytest.raises(UsageError, match="not an absent or empty directory"):
            run_export(make_config(), ExportRequest(target=target, expert=0))
        load_clip(target)


class TestRunsThatAreNotReady:
    def test_before_training(self, make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
        config = make_config().model_copy(update={"run": str(tmp_path / "run")})
        with pytest.raises(UsageError, match="the train stage is not done: run `mode-ray train` first"):
            run_export(config, ExportRequest(target=Location.parse(str(tmp_path / "out"))))
        assert names(tmp_path) == set()

    def test_another_number_of_experts(self, make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"train\.experts=2, but this run has trained 3 experts"):
            run_export(make_config(experts=2), ExportRequest(target=Location.parse(str(tmp_path / "out"))))


def test_the_command(
    make_config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(dump_config(make_config()))
    arguments = ["export", "--config", str(config), "--to", str(tmp_path / "out"), "--expert", "2", "--license", "mit"]
    assert main(arguments) == 0
    assert f"exported: {tmp_path / 'out'}" in capsys.readouterr().out
    assert front_matter((tmp_path / "out" / "README.md").read_text())["license"] == "mit"
    assert main(arguments) == 2
