"""What is served of a run: captions and words of its clusters from `summary.json`, or from a page of version 0.1.0."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from serving import EXPERTS, TOPICS

from mode_ray.atlas.data import AtlasFacts, atlas_data
from mode_ray.atlas.page import render_atlas
from mode_ray.atlas.sample import summarise
from mode_ray.atlas.summary import AtlasSummary, write_summary
from mode_ray.cluster.clustering import Clustering
from mode_ray.errors import DataError, UsageError
from mode_ray.run_directory import ATLAS_HTML
from mode_ray.serve.http.answers import clusters_answer
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.storage import Location

CENTERS = len(TOPICS)
ABOUT = {"Run": "run", "Made": "today", "Encoder": "static", "Usable captions": "1,000"}


@pytest.fixture
def run(served_folder: Path, tmp_path: Path) -> Location:
    """A copy of the run, which has no atlas."""
    return Location.parse(str(shutil.copytree(served_folder, tmp_path / "run")))


@pytest.fixture
def summary(run: Location) -> AtlasSummary:
    """Of ten captions a cluster, those named first nearest to its center."""
    fine = np.repeat(np.arange(CENTERS, dtype=np.int32), 10)
    captions = [f"{TOPICS[fine]} in picture {row}" for row, fine in enumerate(fine)]
    sample = summarise(fine, np.arange(len(fine), dtype=np.float32), captions, per_end=5)
    facts = AtlasFacts(about=ABOUT, slack=0.1, first_map=EXPERTS, refused={}, versions={})
    return atlas_data(Clustering.load(run / "clusters"), sample, facts)


def test_without_an_atlas_clusters_have_neither_captions_nor_terms(run: Location) -> None:
    served = ServedRun.load(run)
    answer = clusters_answer(served, 0, CENTERS)
    assert [(cluster.captions, cluster.terms) for cluster in answer.clusters] == [([], [])] * CENTERS
    assert not answer.atlas


def test_captions_and_terms_are_those_of_the_summary(run: Location, summary: AtlasSummary) -> None:
    write_summary(run / "clusters", summary)
    served = ServedRun.load(run)
    answer = clusters_answer(served, 0, CENTERS)
    assert [cluster.captions for cluster in answer.clusters] == [
        [f"{topic} in picture {10 * fine + row}" for row in range(5)] for fine, topic in enumerate(TOPICS)
    ]
    assert [cluster.terms for cluster in answer.clusters] == summary["clusters"]["terms"]
    assert [cluster.fine for cluster in clusters_answer(served, 0, 9, contains="picture 11").clusters] == [1]


def test_a_run_of_version_010_is_served_with_the_captions_of_its_page(run: Location, summary: AtlasSummary) -> None:
    (run / "clusters" / ATLAS_HTML).write_text(render_atlas(summary))
    served = ServedRun.load(run)
    assert served.captions == summary["clusters"]["near"]
    assert served.terms == summary["clusters"]["terms"]
    assert served.atlas == run / "clusters" / ATLAS_HTML


def test_a_summary_of_another_clustering_is_refused(run: Location, summary: AtlasSummary) -> None:
    clusters = summary["clusters"]
    write_summary(run / "clusters", {**summary, "clusters": {**clusters, "near": clusters["near"][1:]}})
    with pytest.raises(DataError, match=rf"clusters\.near: has {CENTERS - 1} entries instead of {CENTERS}; .*atlas"):
        ServedRun.load(run)


class TestExpertFolder:
    def test_it_is_in_the_run_unless_another_one_is_named(self, run: Location, tmp_path: Path) -> None:
        assert ServedRun.expert_folder(run, 2).path.endswith("02")
        assert ServedRun.expert_folder(run, 2, str(tmp_path)).path == str(tmp_path)

    @pytest.mark.parametrize("folder", [None, "/models/seven"])
    def test_a_number_that_the_run_does_not_have_is_refused(self, run: Location, folder: str | None) -> None:
        with pytest.raises(UsageError, match="there is no expert 7: the run has 3, from 0 to 2"):
            ServedRun.expert_folder(run, 7, folder)
