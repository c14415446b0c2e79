"""`mode-ray index` and `mode-ray search` on a finished run: done once, found again, changed configs refused."""

from pathlib import Path

import numpy as np
import pytest
from copied_run import copy_of

from mode_ray.cli import main
from mode_ray.config.load import dump_config
from mode_ray.config.run import RunConfig
from mode_ray.config.train import ModelConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.index.parts import ImageIndex
from mode_ray.index.stage import IndexStages, index_stages, run_index, search_index
from mode_ray.index.vectors import embedding_rows
from mode_ray.models.clip import build_clip, save_clip
from mode_ray.models.encode import Expert
from mode_ray.pipeline import build_stages, open_run
from mode_ray.run_directory import FINE_FILE, MANIFEST, stage_directories
from mode_ray.stages.manifest import Manifest, UnitRecord, read_output, read_units

USABLE = 11


def stages_of(config: RunConfig) -> IndexStages:
    run = open_run(config)
    return index_stages(run, build_stages(run)["train"])


def build(config: RunConfig) -> tuple[Manifest, list[UnitRecord]]:
    records: list[UnitRecord] = []
    manifest = run_index(config, stages_of(config), lambda *_: None, records.append)
    return manifest, records


def without_0(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"leave_out_experts": (0,)})})


@pytest.fixture(scope="module")
def indexed_once(trained: RunConfig, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A copy of the trained run with its index; tests only read it."""
    config = copy_of(trained, tmp_path_factory.mktemp("indexed"))
    build(config)
    return config


@pytest.fixture
def indexed(indexed_once: RunConfig, tmp_path: Path) -> RunConfig:
    """A copy of the run with an index, for one test."""
    return copy_of(indexed_once, tmp_path)


@pytest.fixture
def units_of_two_row_groups(config: RunConfig) -> RunConfig:
    """The parquet file, of nine rows in groups of three, in units of six rows at most."""
    return config.model_copy(update={"index": config.index.model_copy(update={"max_rows_per_unit": 6})})


@pytest.mark.usefixtures("ray_session")
class TestIndex:
    def test_it_is_made_once_and_searched(self, units_of_two_row_groups: RunConfig) -> None:
        config = units_of_two_row_groups
        manifest, records = build(config)
        assert manifest.summary == {"parts": 3, "images": USABLE}
        assert len(records) == 2 + 1 + 1  # units of the parquet file, the tar, the parts
        again, nothing = build(config)
        assert (again.content_hash, nothing) == (manifest.content_hash, [])
        found = search_index(config, ["a dog", "a bus"], 3)
        assert [len(hits) for hits in found] == [3, 3]
        scores = [hit.score for hit in found[0]]
        assert scores == sorted(scores, reverse=True)

    def test_other_routing_searches_the_same_index(self, indexed: RunConfig) -> None:
        uniform = indexed.model_copy(update={"routing": indexed.routing.model_copy(update={"rule": "uniform"})})
        assert build(uniform)[1] == []
        ours, theirs = (search_index(one, ["a dog"], USABLE)[0] for one in (indexed, uniform))
        assert {(hit.source, hit.row) for hit in ours} == {(hit.source, hit.row) for hit in theirs}
        assert [hit.score for hit in ours] != [hit.score for hit in theirs]

    def test_larger_parts_are_made_of_the_same_embeddings(self, indexed: RunConfig) -> None:
        larger = indexed.model_copy(update={"index": indexed.index.model_copy(update={"rows_per_part": 100})})
        with pytest.raises(UsageError, match=r"index.rows_per_part was 4, is 100"):
            build(larger)
        (indexed.directory / "index" / "faiss").delete()
        manifest, records = build(larger)
        assert (manifest.summary["parts"], len(records)) == (1, 1)

    def test_the_command_line_makes_and_searches_it(
        self, config: RunConfig, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = config.directory / "my.yaml"
        file.write_text(dump_config(config))
        assert main(["index", "--config", file.uri]) == 0
        assert f"index: {USABLE} images in 3 parts" in capsys.readouterr().out
        assert main(["search", "--config", file.uri, "--text", "a dog", "--count", "2", "routing.rule=soft"]) == 0
        said = capsys.readouterr().out
        assert "a dog" in said
        assert said.count(".parquet") + said.count(".tar") >= 2
        captions = [line for line in said.splitlines() if line.startswith(" " * 10)]
        assert len(captions) == 2
        assert all("caption" in line for line in captions), "the caption of each image is below it"


@pytest.mark.usefixtures("ray_session")
class TestLeavingOutAnExpert:
    def test_a_search_without_it_takes_the_same_index(self, indexed: RunConfig) -> None:
        # Of the model that is left out nothing is read.
        (stage_directories(indexed.directory)["train"] / "n2/00").delete()
        found = search_index(without_0(indexed), ["a dog"], USABLE)[0]
        index = ImageIndex(indexed.directory / "index" / "embeddings", indexed.directory / "index" / "faiss", 3)
        expert = Expert(stage_directories(indexed.directory)["train"] / "n2/01", "cpu")
        text = expert.encode_texts(["a dog"])
        alone, _ = index.search(np.concatenate([np.zeros_like(text), text], axis=1), USABLE)
        np.testing.assert_allclose([hit.score for hit in found], alone[0], atol=1e-6)

    @pytest.mark.drill
    def test_an_index_made_without_it_has_a_block_of_zeros(self, config: RunConfig) -> None:
        (stage_directories(config.directory)["train"] / "n2/00").delete()
        build(without_0(config))
        embeddings = config.directory / "index" / "embeddings"
        tables = [embedding_rows(read_output(embeddings, unit.unit)) for unit in read_units(embeddings)]
        rows_nd = np.concatenate(tables)
        assert (len(rows_nd), rows_nd.shape[1]) == (USABLE, 32)
        assert not rows_nd[:, :16].any()
        np.testing.assert_allclose(np.linalg.norm(rows_nd[:, 16:], axis=1), 1.0, atol=1e-5)
        assert len(search_index(without_0(config), ["a dog"], 3)[0]) == 3

    @pytest.mark.drill
    def test_a_search_with_an_expert_that_the_index_lacks_is_refused(self, config: RunConfig) -> None:
        build(without_0(config))
        with pytest.raises(DataError, match=r"made without expert 0: search without it \(evaluate.leave_out_experts="):
            search_index(config, ["a dog"], 3)


class TestMistakes:
    def test_a_missing_expert_is_named(self, config: RunConfig) -> None:
        folder = stage_directories(config.directory)["train"] / "n2/01"
        folder.delete()
        with pytest.raises(
            DataError,
            match=f"{folder}/open_clip_config.json: missing.*or leave it out: evaluate.leave_out_experts=\\[1\\]",
        ):
            stages_of(config)

    def test_an_untrained_run_is_told(self, config: RunConfig) -> None:
        (stage_directories(config.directory)["train"] / MANIFEST).delete()
        with pytest.raises(UsageError, match="the train stage is not done: run `mode-ray train` first"):
            stages_of(config)

    @pytest.mark.usefixtures("ray_session")
    def test_an_index_of_other_weights_is_not_searched(self, indexed: RunConfig, architecture: Path) -> None:
        folder = stage_directories(indexed.directory)["train"] / "n2/01"
        save_clip(folder, build_clip(ModelConfig(architecture=str(architecture), precision="float32"), seed=9))
        with pytest.raises(DataError, match=f"the index was made with other weights than those of {folder}: delete"):
            search_index(indexed, ["a dog"], 3)
        with pytest.raises(UsageError, match="weights of the experts"):
            build(indexed)

    @pytest.mark.usefixtures("ray_session")
    def test_a_clustering_of_another_encoder_is_named(self, indexed: RunConfig) -> None:
        other = indexed.model_copy(update={"encoder": indexed.encoder.model_copy(update={"max_tokens": 7})})
        file = stage_directories(indexed.directory)["cluster"] / FINE_FILE
        with pytest.raises(DataError, match=f"{file}: the clustering was made with encoder"):
            search_index(other, ["a dog"], 3)

    def test_without_an_index_there_is_nothing_to_search(self, config: RunConfig) -> None:
        with pytest.raises(UsageError, match="run `mode-ray index` first"):
            search_index(config, ["a dog"], 3)

    def test_a_search_without_a_query_is_refused(self, config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["search", "--config", config.directory.uri]) == 2
        assert "at least one query" in capsys.readouterr().err
