"""`mode-ray index` and `mode-ray search` on a finished run: done once, found again, changed configs refused."""

import pytest

from mode_ray.cli import main
from mode_ray.config import RunConfig
from mode_ray.config_file import dump_config
from mode_ray.errors import DataError, UsageError
from mode_ray.index.run import index_stages, run_index, search_index
from mode_ray.pipeline import stage_directories
from mode_ray.stage import Manifest, UnitRecord

USABLE = 11


def build(config: RunConfig) -> tuple[Manifest, list[UnitRecord]]:
    records: list[UnitRecord] = []
    manifest = run_index(config, index_stages(config), lambda *_: None, records.append)
    return manifest, records


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

    def test_other_routing_searches_the_same_index(self, config: RunConfig) -> None:
        build(config)
        uniform = config.model_copy(update={"routing": config.routing.model_copy(update={"rule": "uniform"})})
        assert build(uniform)[1] == []
        ours, theirs = (search_index(one, ["a dog"], USABLE)[0] for one in (config, uniform))
        assert {(hit.source, hit.row) for hit in ours} == {(hit.source, hit.row) for hit in theirs}
        assert [hit.score for hit in ours] != [hit.score for hit in theirs]

    def test_larger_parts_are_made_of_the_same_embeddings(self, config: RunConfig) -> None:
        build(config)
        larger = config.model_copy(update={"index": config.index.model_copy(update={"rows_per_part": 100})})
        with pytest.raises(UsageError, match=r"index.rows_per_part was 4, is 100"):
            build(larger)
        (config.directory / "index" / "faiss").delete()
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


class TestMistakes:
    def test_a_missing_expert_is_named(self, config: RunConfig) -> None:
        folder = stage_directories(config.directory)["train"] / "n2/01"
        folder.delete()
        with pytest.raises(DataError, match=f"{folder}/open_clip_config.json: missing.*an index needs every expert"):
            index_stages(config)

    def test_without_an_index_there_is_nothing_to_search(self, config: RunConfig) -> None:
        with pytest.raises(UsageError, match="run `mode-ray index` first"):
            search_index(config, ["a dog"], 3)

    def test_a_search_without_a_query_is_refused(self, config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["search", "--config", config.directory.uri]) == 2
        assert "at least one query" in capsys.readouterr().err
