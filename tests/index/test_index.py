"""Images are embedded once, whatever the task; a search with weighted queries gives the ensemble's scores."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mode_ray.captions.listing import list_work_units
from mode_ray.cluster.clustering import Clustering
from mode_ray.config.run import RunConfig
from mode_ray.embed.load import load_encoder
from mode_ray.errors import DataError, UsageError
from mode_ray.index.embed import BAD_IMAGE, NO_IMAGE, IndexWorker
from mode_ray.index.images import read_images
from mode_ray.index.parts import ImageIndex, build_parts
from mode_ray.index.query import QueryEncoder
from mode_ray.models.encode import Expert
from mode_ray.pairs.images import decode_image
from mode_ray.routing.mix import ensemble_scores, per_query_scores
from mode_ray.run_directory import part_name, stage_directories
from mode_ray.stages.manifest import Stage
from mode_ray.storage import Location

PARQUET_ROWS, TAR_SAMPLES = 9, 4
USABLE = PARQUET_ROWS - 2 + TAR_SAMPLES
QUERIES = ("a small dog", "a red bus in the rain", "a horse beside a tram")


def experts_of(config: RunConfig) -> list[Expert]:
    train = stage_directories(config.directory)["train"]
    return [Expert(train / f"n2/{expert:02d}", "cpu") for expert in range(2)]


@pytest.fixture
def query(config: RunConfig) -> QueryEncoder:
    """The query side of the run."""
    clustering = Clustering.load(stage_directories(config.directory)["cluster"])
    encoder = load_encoder(config.encoder, config.embed.encoder)
    return QueryEncoder(experts_of(config), encoder, clustering, config.routing)


@pytest.fixture
def embedded(config: RunConfig) -> Stage:
    """The embedding stage, done by one worker in this process."""
    train = stage_directories(config.directory)["train"]
    models = [train / f"n2/{expert:02d}" for expert in range(2)]
    worker = IndexWorker(config, models)
    stage = Stage("index", config.directory / "index" / "embeddings", {})
    work_units = list_work_units(config.captions)
    stage.begin(len(work_units))
    records = [stage.write_unit(*worker.compute(work_unit, worker.read(work_unit))) for work_unit in work_units]
    stage.finish(records, {})
    return stage


def open_index(embedded: Stage, rows_per_part: int = 4) -> ImageIndex:
    parts = embedded.directory.parent / "faiss"
    return ImageIndex(embedded.directory, parts, build_parts(embedded.directory, parts, rows_per_part))


def cosines(config: RunConfig, texts: Sequence[str]) -> np.ndarray:
    """Every expert's cosine of every usable image, in the order of the index, with every text."""
    decoded = []
    for work_unit in list_work_units(config.captions):
        for image in read_images(work_unit, config.captions):
            try:
                decoded.append(decode_image(image.data or b"", 10**6, "here"))
            except DataError:
                continue
    found = []
    for expert in experts_of(config):
        images_b3hw = torch.stack([expert.prepare(image) for image in decoded])
        found.append(expert.encode_images(images_b3hw) @ expert.encode_texts(texts).T)
    return np.stack(found)


def scores_il(index: ImageIndex, queries_ld: np.ndarray) -> np.ndarray:
    """Scores of all images by position."""
    scores_lk, positions_lk = index.search(queries_ld, len(index))
    by_position = np.empty((len(index), len(queries_ld)), np.float32)
    for text, (scores, positions) in enumerate(zip(scores_lk, positions_lk, strict=True)):
        assert (np.diff(scores) <= 0).all()
        by_position[positions, text] = scores
    return by_position


def test_one_index_gives_the_ensembles_scores_with_weights_of_each_query(
    config: RunConfig, embedded: Stage, query: QueryEncoder
) -> None:
    weights_lc = query.weights(QUERIES)
    assert weights_lc[0, 0] > weights_lc[1, 0]  # animals are expert 0's
    expected = per_query_scores(cosines(config, QUERIES), weights_lc)
    np.testing.assert_allclose(scores_il(open_index(embedded), query.encode(QUERIES)), expected, atol=1e-5)


def test_the_same_index_gives_the_scores_of_a_task(config: RunConfig, embedded: Stage, query: QueryEncoder) -> None:
    weights_c = query.weights(QUERIES, as_one_task=True)
    assert weights_c.shape == (2,)
    expected = ensemble_scores(cosines(config, QUERIES), weights_c)
    queries_ld = query.encode(QUERIES, as_one_task=True)
    np.testing.assert_allclose(scores_il(open_index(embedded), queries_ld), expected, atol=1e-5)


@pytest.mark.parametrize("rows_per_part", [1, 3, 7, USABLE, 100])
def test_the_size_of_the_parts_changes_nothing(embedded: Stage, query: QueryEncoder, rows_per_part: int) -> None:
    queries_ld = query.encode(QUERIES)
    scores_lk, positions_lk = open_index(embedded, rows_per_part).search(queries_ld, 5)
    (embedded.directory.parent / "faiss").delete()
    whole_scores_lk, whole_positions_lk = open_index(embedded, 1000).search(queries_ld, 5)
    np.testing.assert_allclose(scores_lk, whole_scores_lk, atol=1e-6)
    np.testing.assert_array_equal(positions_lk, whole_positions_lk)


def test_what_is_no_image_is_left_out_and_counted(embedded: Stage) -> None:
    manifest = embedded.manifest()
    assert manifest is not None
    assert (manifest.rows_in, manifest.rows_out) == (PARQUET_ROWS + TAR_SAMPLES, USABLE)
    assert manifest.refused == {NO_IMAGE: 1, BAD_IMAGE: 1}


def test_hits_name_file_row_and_key(config: RunConfig, embedded: Stage, query: QueryEncoder) -> None:
    index = open_index(embedded)
    hits = index.hits([0.0] * USABLE, range(USABLE))
    files = [Location.parse(hit.source).name for hit in hits]
    assert files == ["a.parquet"] * (PARQUET_ROWS - 2) + ["b.tar"] * TAR_SAMPLES
    assert [hit.row for hit in hits] == [0, 1, 3, 4, 6, 7, 8, 0, 1, 2, 3]
    assert [hit.key for hit in hits[-2:]] == ["s2", "s3"]
    assert [hit.caption for hit in hits[:3]] == ["caption 0", "caption 1", "caption 3"]
    assert [hit.caption for hit in hits[-2:]] == ["a caption", "a caption"]
    assert len(index.search(query.encode(QUERIES), 1000)[0][0]) == USABLE


class TestPartsInMemory:
    QUERY = np.ones((1, 32))

    def without_files(self, embedded: Stage, keep_bytes: int) -> ImageIndex:
        """An index that was searched once, and whose parts are gone since."""
        parts = embedded.directory.parent / "faiss"
        index = ImageIndex(embedded.directory, parts, build_parts(embedded.directory, parts, 4), keep_bytes)
        index.search(self.QUERY, 3)
        parts.delete()
        return index

    def test_parts_are_read_once_for_many_searches(self, embedded: Stage) -> None:
        index = self.without_files(embedded, 1 << 20)
        first, again = index.search(self.QUERY, USABLE), index.search(self.QUERY, USABLE)
        np.testing.assert_array_equal(first[1], again[1])
        assert sorted(first[1][0].tolist()) == list(range(USABLE))

    def test_what_is_over_the_bound_is_read_again(self, embedded: Stage) -> None:
        index = self.without_files(embedded, 2 * 4 * 32 * 4)  # two parts of four images, 32 dimensions
        with pytest.raises(DataError, match=f"{part_name(2)}: missing"):
            index.search(self.QUERY, 3)


class TestMistakes:
    def test_queries_of_other_experts_are_refused(self, embedded: Stage) -> None:
        with pytest.raises(UsageError, match="an index of 32 dimensions, but the queries have 16"):
            open_index(embedded).search(np.ones((1, 16)), 3)

    def test_a_missing_part_is_named(self, embedded: Stage) -> None:
        index = open_index(embedded)
        file = embedded.directory.parent / "faiss" / part_name(1)
        file.delete()
        with pytest.raises(DataError, match=f"{file}: missing"):
            index.search(np.ones((1, 32)), 3)

    def test_half_a_part_is_named(self, embedded: Stage) -> None:
        index = open_index(embedded)
        file = embedded.directory.parent / "faiss" / part_name(1)
        file.write_bytes(file.read_bytes()[:-40])
        with pytest.raises(DataError, match=f"{file}: damaged"):
            index.search(np.ones((1, 32)), 3)

    def test_parts_that_lack_images_are_found(self, embedded: Stage) -> None:
        parts = embedded.directory.parent / "faiss"
        count = build_parts(embedded.directory, parts, 4)
        with pytest.raises(DataError, match=f"the parts hold 8 images, the embeddings {USABLE}"):
            ImageIndex(embedded.directory, parts, count - 1).search(np.ones((1, 32)), 3)

    def test_a_query_without_a_known_word_is_named(self, query: QueryEncoder) -> None:
        with pytest.raises(DataError, match="query '': no word"):
            query.encode(["a cat", ""])

    def test_a_clustering_of_another_encoder_is_refused(self, config: RunConfig) -> None:
        clustering = Clustering.load(stage_directories(config.directory)["cluster"])
        other = config.encoder.model_copy(update={"max_tokens": 7})
        encoder = load_encoder(other, config.embed.encoder)
        with pytest.raises(DataError, match="the clustering was made with encoder"):
            QueryEncoder(experts_of(config), encoder, clustering, config.routing)

    def test_a_column_that_is_not_there_is_named(self, config: RunConfig) -> None:
        captions = config.captions.model_copy(update={"image_field": "picture"})
        work_unit = list_work_units(captions)[0]
        with pytest.raises(DataError, match=r"no column 'picture'; set captions.image_field to one of"):
            list(read_images(work_unit, captions))

    def test_text_in_place_of_images_is_named(self, config: RunConfig) -> None:
        captions = config.captions.model_copy(update={"image_field": "caption"})
        work_unit = list_work_units(captions)[0]
        with pytest.raises(DataError, match="row 0: column 'caption' holds no image bytes"):
            list(read_images(work_unit, captions))
