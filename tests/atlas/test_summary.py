"""`summary.json`: all captions of all clusters, one clear error for a damaged file, and runs of version 0.1.0."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mode_ray.atlas.data import AtlasFacts, atlas_data
from mode_ray.atlas.page import MAX_DATA_BYTES, fit_to_bytes, render_atlas
from mode_ray.atlas.sample import summarise
from mode_ray.atlas.summary import (
    CAPTIONS_PER_END,
    AtlasSummary,
    near_captions,
    read_summary,
    terms_by_cluster,
    terms_by_expert,
    write_summary,
)
from mode_ray.cluster.clustering import Clustering
from mode_ray.errors import DataError
from mode_ray.run_directory import ATLAS_HTML, SUMMARY_FILE
from mode_ray.storage import Location

ABOUT = {"Run": "s3://bucket/run", "Made": "today", "Encoder": "static", "Usable captions": "1,000"}


def summary_of(centers: int, captions: list[str]) -> AtlasSummary:
    """Of captions distributed over the clusters in turn, each farther from its center than the one before."""
    generator = np.random.default_rng(0)
    clustering = Clustering(
        centers_md=generator.normal(size=(centers, 8)).astype(np.float32),
        prices_m=np.zeros(centers),
        mass_m=np.arange(1, centers + 1),
        squared_distance_m=np.ones(centers),
        encoder_name="static",
        coarse={n: (np.arange(centers) % n).astype(np.int32) for n in (2, 4)},
    )
    rows = np.arange(len(captions))
    sample = summarise((rows % centers).astype(np.int32), rows.astype(np.float32), captions, CAPTIONS_PER_END)
    facts = AtlasFacts(about=ABOUT, slack=0.1, first_map=2, refused={"empty": 3}, versions={})
    return atlas_data(clustering, sample, facts)


@pytest.fixture
def summary() -> AtlasSummary:
    return summary_of(8, [f"topic{row % 8} </script> & 'it' seen {row}" for row in range(80)])


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path))


class TestWhatIsWritten:
    def test_is_what_is_read(self, summary: AtlasSummary, folder: Location) -> None:
        write_summary(folder, summary)
        assert read_summary(folder, 8) == summary

    def test_holds_size_mass_terms_captions_and_expert_of_every_cluster(self, summary: AtlasSummary) -> None:
        clusters = summary["clusters"]
        assert clusters["mass"] == clusters["rows"] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert clusters["sampled"] == [10] * 8
        assert [terms[0] for terms in clusters["terms"]] == [f"topic{fine}" for fine in range(8)]
        assert [len(near) for near in clusters["near"]] == [5] * 8
        assert {one["n"]: one["expert"][:5] for one in summary["maps"]} == {2: [0, 1, 0, 1, 0], 4: [0, 1, 2, 3, 0]}

    def test_no_caption_is_lost_at_many_centers_though_the_page_shows_fewer(self, folder: Location) -> None:
        centers, most_bytes = 512, MAX_DATA_BYTES // 8  # as 4,096 centers on a page, in a fraction of the time
        long = " with many further words of a long description" * 4
        captions = [f"caption {row} of cluster {row % centers}{long}" for row in range(10 * centers)]
        summary = summary_of(centers, captions)
        _, shown_each = fit_to_bytes(summary, most_bytes)
        assert shown_each < CAPTIONS_PER_END
        write_summary(folder, summary)
        near = near_captions(read_summary(folder, centers), centers)
        assert len(near) == centers
        for fine, own in enumerate(near):
            numbers = [fine + centers * row for row in range(CAPTIONS_PER_END)]
            assert [caption.split(" of ")[0] for caption in own] == [f"caption {number}" for number in numbers]
            assert all(len(caption) > 150 for caption in own)
        clusters_bytes = (folder / SUMMARY_FILE).size_bytes() / centers
        assert clusters_bytes < 2 * CAPTIONS_PER_END * 200 + 1000


def damaged(field: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Sets a field by its dotted name."""

    def change(data: Any) -> None:  # noqa: ANN401
        *parents, last = field.split(".")
        for parent in parents:
            data = data[int(parent) if parent.isdecimal() else parent]
        data[last] = value

    return change


class TestDamage:
    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (damaged("clusters.near", [["x" * 201]] * 8), r"clusters\.near\.0\.0: String should have at most 200"),
            (damaged("clusters.near", [["x"] * 6] * 8), r"clusters\.near\.0: List should have at most 5"),
            (damaged("clusters.terms", [["x"] * 9] * 8), r"clusters\.terms\.0: List should have at most 8"),
            (damaged("clusters.far", [[]] * 7), r"clusters\.far: has 7 entries instead of 8"),
            (damaged("clusters.mass", ["many"] * 8), r"clusters\.mass\.0: Input should be a valid integer"),
            (damaged("maps.0.expert", [2] * 8), r"maps\.0\.expert: has expert 2, but n is 2"),
            (damaged("maps.0.terms", [[]]), r"maps\.0\.terms: has 1 entries instead of 2"),
            (damaged("schema_version", 2), "schema_version is 2, but this version of mode_ray reads 1"),
            (lambda data: data.pop("clusters"), "clusters: Field required"),
        ],
    )
    def test_names_file_and_field_and_the_fix(
        self, summary: AtlasSummary, folder: Location, change: Callable[[dict[str, Any]], None], sentence: str
    ) -> None:
        data = json.loads(json.dumps(summary))
        change(data)
        (folder / SUMMARY_FILE).write_text(json.dumps(data))
        with pytest.raises(DataError, match=rf"summary\.json: {sentence}.*; write it again with `mode-ray atlas`"):
            read_summary(folder, 8)

    @pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"schema_version": NaN}'])
    def test_what_is_no_summary_is_refused(self, folder: Location, content: bytes) -> None:
        (folder / SUMMARY_FILE).write_bytes(content)
        with pytest.raises(DataError, match=r"summary\.json: .*mode-ray atlas"):
            read_summary(folder, 8)

    def test_a_summary_of_another_clustering_is_refused(self, summary: AtlasSummary, folder: Location) -> None:
        write_summary(folder, summary)
        with pytest.raises(DataError, match="has 8 entries instead of 9"):
            read_summary(folder, 9)


class TestRunsOfVersion010:
    """They have a page and no summary: remove this class with `page_of_before`."""

    @staticmethod
    def page_of(summary: AtlasSummary) -> str:
        """As version 0.1.0 wrote it."""
        clusters = {name: values for name, values in summary["clusters"].items() if name != "mass"}
        before: Any = {**summary, "clusters": clusters}
        del before["schema_version"]
        return render_atlas(before)

    def test_their_captions_and_terms_are_read_from_the_page(self, summary: AtlasSummary, folder: Location) -> None:
        (folder / ATLAS_HTML).write_text(self.page_of(summary))
        assert read_summary(folder, 8) == summary

    def test_a_summary_is_preferred(self, summary: AtlasSummary, folder: Location) -> None:
        (folder / ATLAS_HTML).write_text("anything")
        write_summary(folder, summary)
        assert read_summary(folder, 8) == summary

    @pytest.mark.parametrize("page", ["<title>Other</title>", '<script id="data">{}</script>', "<script id='data'>["])
    def test_a_page_without_data_is_refused(self, folder: Location, page: str) -> None:
        (folder / ATLAS_HTML).write_text(page)
        with pytest.raises(DataError, match=r"atlas\.html: contains no data of an atlas; .*mode-ray atlas"):
            read_summary(folder, 8)


class TestWithoutAnAtlas:
    def test_there_are_no_captions_and_no_terms(self, folder: Location) -> None:
        assert read_summary(folder, 3) is None
        assert near_captions(None, 3) == terms_by_cluster(None, 3) == [[], [], []]
        assert terms_by_expert(None, 2) == [[], []]

    def test_a_map_that_the_atlas_does_not_know_has_no_terms(self, summary: AtlasSummary) -> None:
        assert terms_by_expert(summary, 3) == [[], [], []]
        assert len(terms_by_expert(summary, 4)[0]) > 0
