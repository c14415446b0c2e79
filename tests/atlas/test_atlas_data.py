"""What the atlas shows of small, known clusters."""

import numpy as np
import pytest

from mode_ray.atlas.data import AtlasFacts, atlas_data, nearest_neighbours
from mode_ray.atlas.sample import CaptionSample, merge, shown, summarise
from mode_ray.atlas.summary import AtlasSummary
from mode_ray.cluster.clustering import Clustering

WORDS = ("cat", "dog", "ship", "train")
FACTS = AtlasFacts(about={}, slack=0.1, first_map=2, refused={"empty caption": 3}, versions={})


def clustering_of(mass: tuple[int, ...] = (40, 20, 20, 20)) -> Clustering:
    return Clustering(
        centers_md=np.eye(4, 8, dtype=np.float32),
        prices_m=np.array([0.3, 0.0, 0.0, 0.0]),
        mass_m=np.array(mass, np.int64),
        squared_distance_m=np.array(mass, np.float64) * 0.5,
        encoder_name="static",
        coarse={
            1: np.zeros(4, np.int32),
            2: np.array([0, 1, 1, 1], np.int32),
            4: np.array([0, 1, 2, 3], np.int32),
        },
        training={"iterations": 7, "coarse": {"2": {}}},
    )


def sample_of(rows: int = 40) -> CaptionSample:
    fine = np.arange(rows, dtype=np.int32) % 4
    distance = (np.arange(rows) / rows).astype(np.float32)
    return summarise(fine, distance, [f"a {WORDS[row % 4]} number {row:03d}" for row in range(rows)], per_end=5)


@pytest.fixture(scope="module")
def data() -> AtlasSummary:
    return atlas_data(clustering_of(), sample_of(), FACTS)


def test_maps_begin_with_the_one_the_experts_are_trained_for(data: AtlasSummary) -> None:
    assert [chosen["n"] for chosen in data["maps"]] == [2, 4, 1]
    first = data["maps"][0]
    assert first["load"] == [0.4, 0.6]
    assert first["capacity"] == pytest.approx(0.55)
    assert first["centers"] == [1, 3]
    assert first["spread"] == pytest.approx(clustering_of().spread(2).tolist(), abs=1e-4)


def test_near_and_far_captions_are_in_order_and_distinct(data: AtlasSummary) -> None:
    assert data["clusters"]["near"][0] == [f"a cat number {row:03d}" for row in (0, 4, 8, 12, 16)]
    assert data["clusters"]["far"][0] == [f"a cat number {row:03d}" for row in (36, 32, 28, 24, 20)]
    assert data["clusters"]["far_distance"][0] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])


def test_figures_of_a_cluster(data: AtlasSummary) -> None:
    clusters = data["clusters"]
    assert clusters["rows"] == [40, 20, 20, 20]
    assert clusters["sampled"] == [10, 10, 10, 10]
    assert clusters["mean"][1] == pytest.approx(np.mean(np.arange(1, 40, 4) / 40), abs=1e-4)
    assert clusters["quantiles"][0][2] == pytest.approx(0.45, abs=1e-4)
    assert [sum(bins) for bins in clusters["histogram"]] == clusters["sampled"]
    assert np.sum(clusters["histogram"], axis=0).tolist() == data["histogram"]
    assert [terms[0] for terms in clusters["terms"]] == list(WORDS)
    assert clusters["price"] == [0.3, 0.0, 0.0, 0.0]
    assert clusters["neighbour_distance"] == [2.0, 2.0, 2.0, 2.0]


def test_balance_and_capacity_are_judged(data: AtlasSummary) -> None:
    sentences = {finding["sentence"]: finding["good"] for finding in data["findings"]}
    assert sentences[
        "The largest fine cluster has 1.6 times the mean size; the imbalance factor is 1.12 (1 is perfect)."
    ]
    over = next(sentence for sentence in sentences if sentence.startswith("n = 2"))
    assert "60\N{NO-BREAK SPACE}%" in over
    assert "1.09 times its capacity" in over
    assert not sentences[over]
    assert data["fit"] == {"iterations": "7"}
    assert data["refused"] == {"empty caption": 3}


def found(data: AtlasSummary, word: str) -> list[list[int]]:
    return [finding["clusters"] for finding in data["findings"] if word in finding["sentence"]]


def test_odd_clusters_are_named() -> None:
    generator = np.random.default_rng(0)
    fine = np.repeat(np.arange(4, dtype=np.int32), 20)
    distance = generator.uniform(0.4, 0.6, 80).astype(np.float32)
    distance[fine == 2] += 0.9
    captions = ["buy now" if cluster == 1 else f"text {row}" for row, cluster in enumerate(fine)]
    clustering = clustering_of((60, 20, 20, 0))
    clustering.centers_md[3] = clustering.centers_md[0]
    shown_data = atlas_data(clustering, summarise(fine, distance, captions, 5), FACTS)
    assert found(shown_data, "no caption") == [[3]]
    assert found(shown_data, "repeated") == [[1]]
    assert found(shown_data, "diffuse") == [[2]]
    assert found(shown_data, "near-duplicates") == [[0, 3]]
    assert shown_data["clusters"]["near"][1] == ["buy now"]
    assert shown_data["clusters"]["distinct"][1] == 0.05


def test_clusters_without_sampled_captions_are_shown_as_such() -> None:
    sample = summarise(np.zeros(3, np.int32), np.full(3, 0.5, np.float32), ["a", "b", "c"], 5)
    clusters = atlas_data(clustering_of(), sample, FACTS)["clusters"]
    assert clusters["mean"][1:] == [None, None, None]
    assert clusters["near"][3] == []
    assert clusters["quantiles"][2] == []


def test_sizes_are_counted_in_the_sample_if_assignments_are_priced() -> None:
    facts = AtlasFacts(about={}, slack=0.1, first_map=2, refused={}, versions={}, count_sample=True)
    assert atlas_data(clustering_of(), sample_of(), facts)["clusters"]["rows"] == [10, 10, 10, 10]


def test_merging_does_not_depend_on_the_distribution_of_captions() -> None:
    generator = np.random.default_rng(3)
    fine = generator.integers(0, 6, 600).astype(np.int32)
    words = generator.integers(0, 20, (600, 2))
    captions = [f"word{first} word{second}" for first, second in words]
    distance = (words @ [0.05, 0.0025]).astype(np.float32)  # equal texts have equal distances

    def merged(parts: int) -> CaptionSample:
        pieces = [slice(part, None, parts) for part in range(parts)]
        return merge([summarise(fine[own], distance[own], captions[own], 4) for own in pieces], 4)

    whole, split = merged(1), merged(7)
    assert whole.ends.equals(split.ends)
    assert whole.terms.equals(split.terms)
    assert len(split) == 600
    assert whole.ends.num_rows <= 6 * 8


def test_merged_samples_add_what_is_missing() -> None:
    parts = [summarise(np.zeros(1, np.int32), np.ones(1, np.float32), ["x"], 2, missing=count) for count in (2, 3)]
    assert merge(parts, 2).missing == 5


def test_captions_are_shown_on_one_line_without_control_or_direction_characters() -> None:
    assert shown("a\x00b\n\u202ec\u2066d\ufeff") == "a b c d"
    assert shown("👩\u200d👧 family") == "👩\u200d👧 family"
    assert len(shown("x" * 10_000)) == 200


def test_neighbours_are_the_nearest_others_over_all_blocks() -> None:
    angle = np.linspace(0, 1, 1500)
    neighbours, squared = nearest_neighbours(np.column_stack([np.cos(angle), np.sin(angle)]), 2)
    assert sorted(neighbours[1100].tolist()) == [1099, 1101]
    assert squared[1100] == pytest.approx(2 - 2 * np.cos(1 / 1499), rel=1e-6)
    assert nearest_neighbours(np.ones((1, 2)), 3)[0].shape == (1, 0)
