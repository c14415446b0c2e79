"""New captions for a finished run, by the command line: a reused clustering, its drift report, its extension.

Run A is fitted on captions of animals. Run B takes A's clustering for captions of which half are of another kind. Its
far captions extend the clustering, and run C assigns with that.
"""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mode_ray.atlas.summary import read_summary
from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import read_captions
from mode_ray.cli import main
from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.coarse import group_centers
from mode_ray.cluster.fit.kmeans import fit_fine
from mode_ray.cluster.search.nearest import NearestCenters
from mode_ray.config.captions import EncoderConfig, EncoderPlacement
from mode_ray.config.cluster import CoarseConfig, FineConfig
from mode_ray.config.load import load_config
from mode_ray.embed.encoder import encoder_name
from mode_ray.embed.load import load_encoder
from mode_ray.embed.table import as_stored
from mode_ray.storage import Location

ANIMALS = ("cat", "dog", "horse", "whale", "frog", "eagle", "bear", "sheep", "rabbit", "snake")
DEEDS = ("sleeping", "running", "eating", "hiding", "playing", "drinking")
PLACES = ("in the forest", "on the grass", "by the river", "in the snow", "near the barn")
COURTS = ("judge", "lawyer", "notary", "senator", "auditor", "clerk")
PAPERS = ("tax invoice", "contract clause", "court verdict", "bank statement", "insurance policy")
TIMES = ("signed quarterly", "filed for appeal", "under federal law")
OLD = [f"a {animal} {deed} {place}" for animal, deed, place in product(ANIMALS, DEEDS, PLACES)]
FOREIGN = [f"{person} {paper} {time}" for person, paper, time in product(COURTS, PAPERS, TIMES)]
NEW = [OLD[:60] + FOREIGN[:40], FOREIGN[40:]]
ENCODER = {"kind": "static", "model": "package:wordllama"}
M, K = 12, 3

pytestmark = pytest.mark.drill


class Runs(NamedTuple):
    """The folder with A's clustering, runs B and C, and the extended clustering."""

    folder: Path

    def clustering(self, name: str) -> Clustering:
        return Clustering.load(Location(str(self.folder / name)))

    def drift(self, run: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.folder / run / "assignments/drift.json").read_text())
        return report


def write_run(folder: Path, name: str, captions: list[list[str]], **changes: object) -> str:
    """Write the captions, a file a list, and the config of a run; returns the config's path."""
    source = folder / f"{name}-captions"
    source.mkdir()
    for number, texts in enumerate(captions):
        pq.write_table(pa.table({"caption": texts}), source / f"{number}.parquet")
    values: dict[str, Any] = {
        "run": str(folder / name),
        "captions": {"paths": [str(source)]},
        "encoder": ENCODER,
        "embed": {"keep": "sample", "pool": {"max_actors": 1}},
        "assign": {"pool": {"max_actors": 1}},
        "train": {"experts": 2, "dense_samples": 1},
        **changes,
    }
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(values))
    return str(config)


def assignments(run: Path) -> pa.Table:
    """All assignments of a run, in order of its files."""
    units = sorted(run.glob("assignments/*-*.parquet"))
    return pa.concat_tables([pq.read_table(file).replace_schema_metadata(None) for file in units])


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of the last change of every file."""
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.iterdir()}


def run_stages(config: str) -> None:
    for stage in ("embed", "cluster", "assign"):
        assert main([stage, "--config", config]) == 0


def fit_in_process(directory: Path) -> None:
    """A clustering of the old captions, as run A leaves it, without the run."""
    config = EncoderConfig.model_validate(ENCODER)
    rows_nd = as_stored(load_encoder(config, EncoderPlacement()).encode(OLD))
    fit = fit_fine(rows_nd, FineConfig(centers=M, balanced=False), 0, 1)
    _, distance_n = NearestCenters(fit.centers_md).search(rows_nd)
    quantiles = {str(share): float(np.quantile(distance_n, share)) for share in (0.5, 0.99)}
    Clustering(
        centers_md=fit.centers_md,
        prices_m=fit.prices_m,
        mass_m=fit.mass_m,
        squared_distance_m=fit.squared_distance_m,
        encoder_name=encoder_name(config),
        coarse={n: group_centers(fit.centers_md, fit.mass_m, n, CoarseConfig(), 0).group_m for n in (2, 4)},
        training={"squared_distance_quantiles": quantiles},
    ).save(Location(str(directory)))


@pytest.fixture(scope="module")
def runs(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A's clustering, runs B and C, and the extension between them."""
    folder = tmp_path_factory.mktemp("new-data")
    fit_in_process(folder / "A/clusters")
    config = write_run(folder, "B", NEW, cluster={"reuse": str(folder / "A/clusters")})
    run_stages(config)
    before = contents(folder / "B/assignments")
    extended = folder / "extended"
    arguments = ["--config", config, "--centers", str(K), "--to", str(extended), "--new-expert"]
    assert main(["cluster", "extend", *arguments]) == 0
    assert contents(folder / "B/assignments") == before
    train = {"experts": 3, "dense_samples": 1}
    run_stages(write_run(folder, "C", NEW, cluster={"reuse": str(extended)}, train=train))
    return Runs(folder)


def test_a_reused_clustering_is_copied_byte_by_byte_and_its_source_named(runs: Runs) -> None:
    source, copy = (contents(runs.folder / run / "clusters") for run in ("A", "B"))
    for name in ("fine.safetensors", "coarse-n2.safetensors", "coarse-n4.safetensors"):
        assert copy[name][0] == source[name][0]
    manifest = json.loads((runs.folder / "B/clusters/manifest.json").read_text())
    assert manifest["summary"]["reuse"] == str(runs.folder / "A/clusters")
    assert manifest["fields"]["cluster.reuse (content)"] == manifest["summary"]["content_hash"]


@pytest.mark.parametrize("run", ["B", "C"])
def test_a_clustering_without_an_atlas_gets_one_after_assignment(runs: Runs, run: str) -> None:
    clusters = Location.parse(str(runs.folder / run / "clusters"))
    summary = read_summary(clusters, len(Clustering.load(clusters).centers_md))
    assert summary is not None
    assert "as assigned" in summary["facts"]["Sampled for this page"]
    assert summary["facts"]["Usable captions"] == str(len(NEW[0]) + len(NEW[1]))


def test_nothing_is_embedded_where_nothing_is_fitted(runs: Runs) -> None:
    manifest = json.loads((runs.folder / "B/embeddings/manifest.json").read_text())
    assert (manifest["units"], manifest["rows_out"]) == (0, 0)


def test_the_drift_report_finds_the_foreign_captions(runs: Runs) -> None:
    report, table = runs.drift("B"), assignments(runs.folder / "B")
    far = runs.clustering("A/clusters").training["squared_distance_quantiles"]["0.99"]
    distance = table["distance"].to_numpy()
    assert report["rows"] == len(distance) == 60 + len(FOREIGN)
    assert report["far_rows"] == int((distance > np.float32(far)).sum())
    assert report["far_rows"] >= 0.9 * len(FOREIGN)
    assert report["clusters"]["rows"] == np.bincount(table["fine"].to_numpy(), minlength=M).tolist()
    assert report["quantiles"]["0.5"] == pytest.approx(np.quantile(distance, 0.5, method="inverted_cdf"), abs=3e-4)
    assert "Consider `mode-ray cluster extend`" in report["verdict"][0]


def test_the_extension_keeps_the_parent_as_its_prefix(runs: Runs) -> None:
    parent, made = runs.clustering("A/clusters"), runs.clustering("extended")
    for name in ("centers_md", "prices_m", "mass_m", "squared_distance_m"):
        assert getattr(made, name)[:M].tobytes() == getattr(parent, name).tobytes()
        assert len(getattr(made, name)) == M + K
    assert sorted(made.coarse) == [2, 3, 4]
    assert made.coarse[3].tolist() == [*parent.coarse[2].tolist(), 2, 2, 2]
    for n in (2, 4):
        assert made.coarse[n][:M].tolist() == parent.coarse[n].tolist()


def test_the_extension_says_what_it_was_made_of(runs: Runs) -> None:
    (about,) = runs.clustering("extended").training["extensions"]
    report = runs.drift("B")
    manifest = json.loads((runs.folder / "B/clusters/manifest.json").read_text())
    assert about["parent"] == str(runs.folder / "B/clusters")
    assert about["parent_content_hash"] == manifest["summary"]["content_hash"]
    assert (about["first_center"], about["centers"], about["new_expert_beside"]) == (M, K, 2)
    assert (about["far_rows"], about["fitted_rows"]) == (report["far_rows"], report["far_rows"])
    assert about["assigned_rows"] == report["rows"]
    assert about["far_squared_distance"] == report["far_squared_distance"]


def test_captions_that_are_not_nearer_to_a_new_center_keep_their_cluster(runs: Runs) -> None:
    before, after = assignments(runs.folder / "B"), assignments(runs.folder / "C")
    assert after["row"].to_pylist() == before["row"].to_pylist()
    fine, fine_before = after["fine"].to_numpy(), before["fine"].to_numpy()
    moved = fine >= M
    assert moved.sum() >= 0.9 * len(FOREIGN)
    np.testing.assert_array_equal(fine[~moved], fine_before[~moved])
    assert (after["distance"].to_numpy()[moved] < before["distance"].to_numpy()[moved]).all()
    assert runs.drift("C")["far_rows"] < runs.drift("B")["far_rows"] / 2


def test_new_centers_are_the_nearest_by_the_encoder_itself(runs: Runs) -> None:
    config = load_config(str(runs.folder / "C.yaml"))
    encoder = load_encoder(config.encoder, config.embed.encoder)
    centers_md = runs.clustering("extended").centers_md
    for work_unit in list_work_units(config.captions):
        texts = read_captions(work_unit, config.captions).table["caption"].to_pylist()
        vectors_bd = as_stored(encoder.encode(texts))
        nearest_b = np.square(vectors_bd[:, None] - centers_md[None]).sum(axis=2).argmin(axis=1)
        table = pq.read_table(runs.folder / "C/assignments" / f"{work_unit.unit}.parquet")
        assert table["fine"].to_numpy().tolist() == nearest_b.tolist()


def test_the_whole_way_with_a_fitted_run_and_kept_embeddings(
    runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fitted = {"fine": {"centers": M, "balanced": False}, "coarse": {"experts": [2, 4]}}
    first = write_run(tmp_path, "first", [OLD[0::2], OLD[1::2]], cluster=fitted)
    run_stages(first)
    assert main(["drift", "--config", first]) == 0
    assert "The centers still cover the new captions" in capsys.readouterr().out

    cluster, embed = {"reuse": str(tmp_path / "first/clusters")}, {"keep": "all"}
    second = write_run(tmp_path, "second", NEW, cluster=cluster, embed=embed)
    run_stages(second)
    summaries = [(tmp_path / run / "clusters/summary.json").read_bytes() for run in ("first", "second")]
    assert summaries[0] == summaries[1]  # it comes with the clustering
    assert "Consider `mode-ray cluster extend`" in capsys.readouterr().out
    assert main(["cluster", "extend", "--config", second, "--centers", str(K), "--to", str(tmp_path / "more")]) == 0
    made = Clustering.load(Location(str(tmp_path / "more")))
    assert len(made.centers_md) == M + K
    assert sorted(made.coarse) == [2, 4]


class TestRefusals:
    """Each mistake is one sentence, with nothing changed."""

    def extend(self, runs: Runs, *arguments: str) -> int:
        return main(["cluster", "extend", "--config", str(runs.folder / "B.yaml"), *arguments])

    def test_a_clustering_is_never_changed_in_place(self, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
        before = contents(runs.folder / "extended")
        assert self.extend(runs, "--centers", "2", "--to", str(runs.folder / "extended")) == 2
        assert "not empty; a clustering is never changed in place" in capsys.readouterr().err
        assert contents(runs.folder / "extended") == before

    def test_more_centers_than_far_captions(self, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.extend(runs, "--centers", "5000", "--to", str(runs.folder / "none")) == 1
        said = capsys.readouterr().err
        assert f"of {60 + len(FOREIGN)} captions are far" in said
        assert "too few for 5000 new centers. Lower --centers or --far-quantile" in said
        assert not (runs.folder / "none").exists()

    def test_a_quantile_that_is_not_stored(self, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.extend(runs, "--centers", "2", "--to", str(runs.folder / "none"), "--far-quantile", "0.97") == 2
        assert "use one of these" in capsys.readouterr().err

    def test_another_encoder_than_the_clusterings(self, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
        overrides = [f"run={runs.folder / 'other'}", "encoder.max_tokens=32"]
        assert main(["embed", "--config", str(runs.folder / "B.yaml"), *overrides]) == 1
        assert "use the same encoder, or run" in capsys.readouterr().err
        assert not (runs.folder / "other").exists()

    def test_an_encoder_that_changed_behind_its_name(self, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
        fitted = runs.clustering("A/clusters")
        short = replace(fitted, centers_md=fitted.centers_md[:, :100])
        short.save(Location(str(runs.folder / "short")))
        config = write_run(runs.folder, "D", NEW, cluster={"reuse": str(runs.folder / "short")})
        assert main(["embed", "--config", config]) == 0
        assert main(["cluster", "--config", config]) == 1
        said = capsys.readouterr().err
        assert "(100 dimensions)" in said
        assert "(256 dimensions)" in said
        assert not list((runs.folder / "D/clusters").glob("*.safetensors"))

    def test_a_clustering_that_does_not_say_what_it_was_fitted_on(
        self, runs: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        replace(runs.clustering("A/clusters"), training={}).save(Location(str(runs.folder / "mute")))
        config = write_run(runs.folder, "E", NEW, cluster={"reuse": str(runs.folder / "mute")})
        assert main(["embed", "--config", config]) == 0
        assert main(["cluster", "--config", config]) == 1
        assert "run the cluster stage again with this version of mode-ray" in capsys.readouterr().err

    def test_no_map_for_the_experts_to_train(self, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
        overrides = [f"run={runs.folder / 'other'}", "train.experts=8"]
        assert main(["embed", "--config", str(runs.folder / "B.yaml"), *overrides]) == 2
        assert "has maps for [2, 4]: set train.experts to one of these" in capsys.readouterr().err

    def test_drift_before_anything_is_assigned(self, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
        overrides = [f"run={runs.folder / 'fresh'}"]
        assert main(["drift", "--config", str(runs.folder / "B.yaml"), *overrides]) == 2
        assert "the assign stage is not done: run `mode-ray assign` first" in capsys.readouterr().err


class TestReusedSourceChanges:
    """B's fingerprint holds the content of A's clustering, not its place; B's copy outlives A."""

    @pytest.fixture
    def moved(self, runs: Runs) -> str:
        """B's config with A's clustering under another name."""
        target = runs.folder / "elsewhere"
        target.mkdir(exist_ok=True)
        for file in (runs.folder / "A/clusters").glob("*.safetensors"):
            (target / file.name).write_bytes(file.read_bytes())
        values = yaml.safe_load((runs.folder / "B.yaml").read_text())
        values["cluster"]["reuse"] = str(target)
        config = runs.folder / "B-moved.yaml"
        config.write_text(yaml.safe_dump(values))
        return str(config)

    def test_the_same_clustering_elsewhere_is_the_same(self, moved: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["assign", "--config", moved]) == 0
        assert "nothing to do" in capsys.readouterr().out

    def test_a_changed_one_is_refused_by_its_field(
        self, runs: Runs, moved: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for file in (runs.folder / "extended").iterdir():
            (runs.folder / "elsewhere" / file.name).write_bytes(file.read_bytes())
        assert main(["assign", "--config", moved]) == 2
        assert "begun with another config: cluster.reuse (content) was" in capsys.readouterr().err

    def test_one_that_is_gone_is_stood_in_for_by_the_copy(
        self, runs: Runs, moved: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for file in (runs.folder / "elsewhere").iterdir():
            file.unlink()
        assert main(["assign", "--config", moved]) == 0
        assert "nothing to do" in capsys.readouterr().out

    def test_fields_that_only_a_fit_needs_may_change(self, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
        overrides = ["cluster.fine.centers=7", "cluster.coarse.experts=[3]", "cluster.sample_rows=5"]
        assert main(["assign", "--config", str(runs.folder / "B.yaml"), *overrides]) == 0
        assert "nothing to do" in capsys.readouterr().out
