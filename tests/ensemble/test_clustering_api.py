"""A clustering used from Python: captions to clusters and experts, alone and inside Ray Data."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import mode_ray
from mode_ray.cluster.clustering import Clustering
from mode_ray.errors import DataError, UsageError


@pytest.fixture(scope="module")
def clustering(run_of_before: Path) -> Clustering:
    return mode_ray.Clustering.load(run_of_before / "run" / "clusters")


@pytest.fixture(scope="module")
def captions(run_of_before: Path) -> list[str]:
    captions: list[str] = pq.read_table(run_of_before / "pairs/00000.parquet")["caption"].to_pylist()
    return captions


@pytest.fixture(scope="module")
def assigned(run_of_before: Path) -> dict[str, np.ndarray]:
    """The run's own assignments of the first file, in its order."""
    [file] = (run_of_before / "run/assignments").glob("00000-*.parquet")
    table = pq.read_table(file)
    return {name: table[name].to_numpy() for name in ("row", "fine", "distance")}


@pytest.fixture(scope="module")
def embeddings(run_of_before: Path) -> np.ndarray:
    [file] = (run_of_before / "run/embeddings").glob("00000-*.parquet")
    column = pq.read_table(file)["embedding"].combine_chunks()
    rows: np.ndarray = column.flatten().to_numpy().reshape(-1, 256)
    return rows


class TestAssign:
    def test_texts_get_the_assignment_of_the_run(
        self, clustering: Clustering, captions: list[str], assigned: dict[str, np.ndarray]
    ) -> None:
        fine, squared_distance = clustering.assign([captions[row] for row in assigned["row"]])
        np.testing.assert_array_equal(fine, assigned["fine"])
        # Another processor made the run.
        np.testing.assert_allclose(squared_distance, assigned["distance"], rtol=1e-6)
        assert [str(fine.dtype), str(squared_distance.dtype)] == ["int32", "float32"]

    def test_so_do_embeddings(
        self, clustering: Clustering, embeddings: np.ndarray, assigned: dict[str, np.ndarray]
    ) -> None:
        fine, squared_distance = clustering.assign(embeddings)
        np.testing.assert_array_equal(fine, assigned["fine"])
        np.testing.assert_allclose(squared_distance, assigned["distance"], rtol=1e-6)

    def test_what_has_no_direction_gets_none(self, clustering: Clustering) -> None:
        for unknown in (["a red apple", ""], np.stack([clustering.centers_md[0], np.zeros(256, np.float32)])):
            if isinstance(unknown, np.ndarray):
                unknown[0] /= np.linalg.norm(unknown[0])
            fine, squared_distance = clustering.assign(unknown)
            assert (fine[0] >= 0, fine[1], np.isnan(squared_distance).tolist()) == (True, -1, [False, True])
        assert [len(part) for part in clustering.assign([])] == [0, 0]

    def test_wrong_input_is_refused(self, clustering: Clustering, embeddings: np.ndarray) -> None:
        with pytest.raises(UsageError, match="captions are a list of texts"):
            clustering.assign("a red apple")
        with pytest.raises(UsageError, match="caption 1 is of type NoneType, not a text"):
            clustering.assign(["a red apple", None])  # type: ignore[list-item]
        with pytest.raises(DataError, match=r"shape \(96, 8\), but the centers have 256 dimensions"):
            clustering.assign(embeddings[:, :8])
        with pytest.raises(DataError, match="embedding 0 has length 2"):
            clustering.assign(embeddings[:1].astype(np.float32) * 2)
        with pytest.raises(DataError, match="embedding 0 has length nan"):
            clustering.assign(np.full((1, 256), np.nan))

    def test_a_used_clustering_is_copied_to_other_processes_as_data(self, clustering: Clustering) -> None:
        expected = clustering.assign(["a red apple"])
        copied = pickle.loads(pickle.dumps(clustering))  # noqa: S301  (our own bytes)
        assert copied.assign(["a red apple"]) == expected


class TestExperts:
    def test_fine_clusters_have_experts(self, clustering: Clustering) -> None:
        np.testing.assert_array_equal(clustering.expert_of(np.arange(8), 2), clustering.coarse[2])
        assert clustering.expert_of([-1, 0], 2).tolist() == [-1, clustering.coarse[2][0]]

    def test_maps_and_clusters_that_do_not_exist(self, clustering: Clustering) -> None:
        with pytest.raises(UsageError, match=r"no coarse map for n=3, only for \[2\]"):
            clustering.expert_of([0], 3)
        with pytest.raises(UsageError, match="fine cluster 8: they are numbered 0 to 7"):
            clustering.expert_of([8], 2)


class TestRoutingWeights:
    def test_they_are_the_ensembles(self, run_of_before: Path, clustering: Clustering) -> None:
        from mode_ray.config.captions import EncoderConfig
        from mode_ray.embed.static import StaticEncoder

        texts = ["a picture of a red apple", "a picture of a blue bus"]
        embeddings = StaticEncoder(EncoderConfig(kind="static", model="package:wordllama")).encode(texts)
        ensemble = mode_ray.load(run_of_before / "run", device="cpu")
        for rule in ("calibrated", "released"):
            found = mode_ray.routing_weights(embeddings, clustering, n=2, rule=rule)
            expected = ensemble.task(texts, rule=rule)
            np.testing.assert_allclose(found.weights_c, expected.weights, atol=1e-6)
            assert found.normalised_entropy == pytest.approx(expected.entropy, abs=1e-6)

    def test_wrong_arguments(self, clustering: Clustering, embeddings: np.ndarray) -> None:
        with pytest.raises(UsageError, match="rule='best': use one of calibrated, soft"):
            mode_ray.routing_weights(embeddings, clustering, n=2, rule="best")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="no coarse map for n=5"):
            mode_ray.routing_weights(embeddings, clustering, n=5)


class TestAssignCaptions:
    @pytest.mark.drill
    @pytest.mark.usefixtures("ray_session")
    def test_in_a_ray_data_pipeline(
        self,
        run_of_before: Path,
        clustering: Clustering,
        captions: list[str],
        assigned: dict[str, np.ndarray],
    ) -> None:
        import ray

        found = (
            ray.data.read_parquet(str(run_of_before / "pairs/00000.parquet"), columns=["key", "caption"])
            .map_batches(
                mode_ray.AssignCaptions,
                fn_constructor_args=(str(run_of_before / "run/clusters"),),
                batch_size=40,
                concurrency=1,
            )
            .to_pandas()
        )
        by_caption = found.set_index("caption")[["fine", "distance", "expert_n2"]]
        by_caption = by_caption[~by_caption.index.duplicated()]
        assert len(found) == len(captions)
        for row, fine, distance in zip(*assigned.values(), strict=True):
            expected = (fine, distance, clustering.coarse[2][fine])
            assert by_caption.loc[captions[row]].tolist() == pytest.approx(expected)

    def test_missing_captions_and_columns(self, run_of_before: Path) -> None:
        assign = mode_ray.AssignCaptions(str(run_of_before / "run/clusters"), column="text", device="cpu")
        batch = {"text": np.array(["a red apple", None, "  "], object), "id": np.arange(3)}
        found = assign(batch)
        assert list(found) == ["text", "id", "fine", "distance", "expert_n2"]
        assert found["fine"].tolist()[1:] == found["expert_n2"].tolist()[1:] == [-1, -1]
        assert np.isnan(found["distance"]).tolist() == [False, True, True]
        with pytest.raises(UsageError, match=r"no column 'text'; the batch has \['caption'\]"):
            assign({"caption": batch["text"]})
