"""Embed, cluster and assign on Ray: the same result by every way, resumed unit by unit, never half-written."""

import io
import secrets
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mode_ray.assign.stage import run_assign
from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import read_captions
from mode_ray.cluster.clustering import Clustering
from mode_ray.cluster.stage import run_cluster
from mode_ray.config.run import RunConfig
from mode_ray.embed.load import load_encoder
from mode_ray.embed.stage import run_embed
from mode_ray.embed.table import as_stored, embedding_vectors
from mode_ray.errors import DataError
from mode_ray.run_directory import stage_directories
from mode_ray.stages.manifest import Manifest, Stage, table_hash
from mode_ray.stages.run import Quiet, Run
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

ANIMALS = ("cat", "dog", "bird", "horse", "frog", "whale")
PLACES = ("on a sofa", "in the sea", "under a tree", "at night", "in the snow", "by the road", "on the moon")


def captions_of(work_unit: int) -> list[str]:
    """Forty captions that repeat in no other shard."""
    return [
        f"a {ANIMALS[row % 6]} {PLACES[row % 7]}, number {work_unit} {('one', 'two', 'three')[row % 3]} {row}"
        for row in range(40)
    ]


def write_tar(file: Path, captions: list[str]) -> None:
    """A tar of pairs."""
    with tarfile.open(file, "w") as archive:
        for number, caption in enumerate(captions):
            for suffix, content in (("jpg", b"image"), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def config_of(run: str, captions: Path, keep: str, max_rows: int = 20) -> RunConfig:
    """A small run over all files of a folder."""
    paths = [f"{captions}/*{suffix}" for suffix in sorted({file.suffix for file in captions.iterdir()})]
    return RunConfig.model_validate(
        {
            "run": run,
            "captions": {"paths": paths, "max_rows_per_unit": max_rows},
            "encoder": {"kind": "static", "model": "package:wordllama"},
            "embed": {"keep": keep, "pool": {"max_actors": 1, "retries_per_unit": 0}},
            "cluster": {"sample_rows": 10_000, "fine": {"centers": 8}, "coarse": {"experts": [2]}},
            "assign": {"pool": {"max_actors": 1}},
            "train": {"dense_samples": 1, "experts": 2},
        }
    )


class Stages(NamedTuple):
    """A run of the three stages, its manifests by stage."""

    config: RunConfig
    work_units: Sequence[WorkUnit]
    places: Mapping[str, Location]
    manifests: Mapping[str, Manifest]


def stage(config: RunConfig, name: str) -> Stage:
    """A new invocation of a stage."""
    return Stage(name, stage_directories(config.directory)[name], {})


def assign(config: RunConfig) -> Manifest:
    """The assign stage, or what is left of it."""
    return run_assign(Run(config, list_work_units(config.captions)), stage(config, "assign"), Quiet())


def run_all(config: RunConfig) -> Stages:
    """All three stages."""
    work_units, places = list_work_units(config.captions), stage_directories(config.directory)
    manifests = {
        "embed": run_embed(Run(config, work_units), stage(config, "embed"), Quiet()),
        "cluster": run_cluster(Run(config, ()), stage(config, "cluster"), Quiet()),
        "assign": assign(config),
    }
    return Stages(config, work_units, places, manifests)


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two parquet files (one of them split), and a tar."""
    folder = tmp_path_factory.mktemp("captions")
    pq.write_table(pa.table({"caption": captions_of(0)}), folder / "a.parquet", row_group_size=10)
    pq.write_table(pa.table({"caption": [*captions_of(1)[:15], None, "", "  "]}), folder / "b.parquet")
    write_tar(folder / "c.tar", captions_of(2))
    return folder


@pytest.fixture(scope="module")
def kept(ray_session: None, captions: Path, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """A local run that keeps all embeddings."""
    return run_all(config_of(str(tmp_path_factory.mktemp("kept")), captions, "all"))


@pytest.fixture(scope="module")
def fused(ray_session: None, captions: Path, s3_server: str) -> Stages:
    """A run on S3 that encodes in the assign pass."""
    bucket = f"fused-{secrets.token_hex(4)}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return run_all(config_of(f"s3://{bucket}/run", captions, "sample"))


def files(folder: Location) -> dict[str, bytes]:
    """Contents by name."""
    return {file.name: file.read_bytes() for file in folder.files(recursive=True)}


class TestKept:
    def test_every_caption_has_one_embedding_of_unit_norm(self, kept: Stages) -> None:
        config, encoder = kept.config, load_encoder(kept.config.encoder, kept.config.embed.encoder)
        assert len(kept.work_units) == 4
        for work_unit in kept.work_units:
            expected = read_captions(work_unit, config.captions).table
            table = (kept.places["embed"] / f"{work_unit.unit}.parquet").read_table()
            assert table["row"].to_pylist() == expected["row"].to_pylist()
            assert table["key"].to_pylist() == expected["key"].to_pylist()
            vectors_bd = embedding_vectors(table)
            assert np.array_equal(vectors_bd, as_stored(encoder.encode(expected["caption"].to_pylist())))
            assert np.linalg.norm(vectors_bd, axis=1) == pytest.approx(1.0, abs=2e-3)

    def test_the_nearest_center_and_its_squared_distance(self, kept: Stages) -> None:
        centers_md = Clustering.load(kept.places["cluster"]).centers_md
        for work_unit in kept.work_units:
            vectors_bd = embedding_vectors((kept.places["embed"] / f"{work_unit.unit}.parquet").read_table())
            table = (kept.places["assign"] / f"{work_unit.unit}.parquet").read_table()
            distances_bm = ((vectors_bd[:, None] - centers_md[None]) ** 2).sum(axis=2)
            fine_b = table["fine"].to_numpy()
            chosen_b = np.take_along_axis(distances_bm, fine_b[:, None], axis=1)[:, 0]
            assert chosen_b == pytest.approx(distances_bm.min(axis=1), abs=1e-5)
            assert table["distance"].to_numpy() == pytest.approx(chosen_b, abs=1e-5)

    def test_manifests_count_every_caption(self, kept: Stages) -> None:
        embedded, assigned = kept.manifests["embed"], kept.manifests["assign"]
        assert (embedded.units, embedded.rows_in, embedded.rows_out) == (4, 98, 95)
        assert embedded.refused == {"empty caption": 2, "missing caption": 1}
        assert (assigned.rows_in, assigned.rows_out) == (95, 95)
        assert kept.manifests["cluster"].summary["sample_rows"] == 95

    def test_nothing_else_lies_about(self, kept: Stages) -> None:
        units = {f"{work_unit.unit}.parquet" for work_unit in kept.work_units}
        for name in ("embed", "assign"):
            found = {file.name for file in Path(kept.places[name].path).iterdir()}
            counts = {"fine_counts.json"} if name == "assign" else set()
            assert found == units | counts | {"started.json", "units.parquet", "manifest.json"}


def test_fewer_captions_than_centers_is_one_sentence_and_leaves_no_clustering(kept: Stages, tmp_path: Path) -> None:
    fine = kept.config.cluster.fine.model_copy(update={"centers": 200})
    cluster = kept.config.cluster.model_copy(update={"fine": fine})
    config = kept.config.model_copy(update={"cluster": cluster, "run": str(tmp_path)})
    (tmp_path / "embeddings").symlink_to(kept.places["embed"].path)
    with pytest.raises(DataError, match="95"):
        run_cluster(Run(config, ()), stage(config, "cluster"), Quiet())
    assert [file.name for file in (tmp_path / "clusters").iterdir()] == ["started.json"]


class TestFused:
    def test_assignments_are_the_same_as_with_kept_embeddings(self, kept: Stages, fused: Stages) -> None:
        assert files(fused.places["cluster"])["fine.safetensors"] == files(kept.places["cluster"])["fine.safetensors"]
        for work_unit in kept.work_units:
            one, other = (
                (run.places["assign"] / f"{work_unit.unit}.parquet").read_table().replace_schema_metadata(None)
                for run in (kept, fused)
            )
            assert one.num_rows > 0
            assert one == other
            assert table_hash(one) == table_hash(other)
        assert fused.manifests["assign"].content_hash == kept.manifests["assign"].content_hash

    def test_refused_captions_are_counted_in_the_one_pass(self, fused: Stages) -> None:
        assigned = fused.manifests["assign"]
        assert (assigned.rows_in, assigned.rows_out) == (98, 95)
        assert assigned.refused == {"empty caption": 2, "missing caption": 1}


class TestResume:
    def test_only_what_is_missing_is_done_again(self, kept: Stages) -> None:
        folder = Path(kept.places["assign"].path)
        missing = [f"{kept.work_units[number].unit}.parquet" for number in (1, 3)]
        (folder / "manifest.json").unlink()
        before = {name: (folder / name).read_bytes() for name in sorted(files(Location(str(folder))))}
        times = {name: (folder / name).stat().st_mtime_ns for name in before}
        tables = {name: pq.read_table(folder / name) for name in missing}
        for name in missing:
            (folder / name).unlink()
        manifest = assign(kept.config)
        assert manifest.summary["units_made"] == 2
        assert manifest.content_hash == kept.manifests["assign"].content_hash
        assert manifest.attempts == 2
        for work_unit in kept.work_units:
            name = f"{work_unit.unit}.parquet"
            if name in missing:
                assert pq.read_table(folder / name).equals(tables[name])
                assert (folder / name).stat().st_mtime_ns > times[name]
            else:
                assert (folder / name).read_bytes() == before[name]
                assert (folder / name).stat().st_mtime_ns == times[name]


@pytest.mark.drill
def test_damaged_embeddings_are_left_out_by_name_with_the_mend(kept: Stages, tmp_path: Path) -> None:
    shutil.copytree(kept.config.run, tmp_path / "run")
    config = kept.config.model_copy(update={"run": str(tmp_path / "run")})
    shutil.rmtree(tmp_path / "run/assignments")
    unit = kept.work_units[2].unit
    file = tmp_path / f"run/embeddings/{unit}.parquet"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(bytes(whole))
    with pytest.raises(DataError, match=rf"1 of 4 shards.*\n  {file}: damaged .*delete it and .*mode-ray embed"):
        assign(config)
    with pytest.raises(DataError, match=f"{unit}.parquet: damaged"):
        run_cluster(Run(config, ()), Stage("cluster", Location(str(tmp_path / "c")), {}), Quiet())
    for name in (f"{unit}.parquet", "manifest.json"):
        (tmp_path / "run/embeddings" / name).unlink()
    assert run_embed(Run(config, kept.work_units), stage(config, "embed"), Quiet()).summary["units_made"] == 1
    manifest = assign(config)
    assert manifest.summary["units_made"] == 1
    assert manifest.content_hash == kept.manifests["assign"].content_hash


class TestBadShards:
    @pytest.mark.usefixtures("ray_session")
    def test_good_shards_stand_and_after_the_mend_only_the_bad_are_done(self, tmp_path: Path) -> None:
        # With `sample` the driver meets the bad shards first, when it counts rows: they must not end the stage there.
        folder, output = tmp_path / "in", tmp_path / "run" / "embeddings"
        folder.mkdir()
        for name in ("a", "b"):
            pq.write_table(pa.table({"caption": captions_of(ord(name))}), folder / f"{name}.parquet")
        whole = (folder / "b.parquet").read_bytes()
        (folder / "b.parquet").write_bytes(whole[: len(whole) // 2])
        write_tar(folder / "c.tar", captions_of(3))
        whole_tar = (folder / "c.tar").read_bytes()
        (folder / "c.tar").write_bytes(whole_tar[:2048])
        pq.write_table(pa.table({"caption": pa.array([], pa.string())}), folder / "d.parquet")
        config = config_of(str(tmp_path / "run"), folder, "sample", max_rows=1000)
        with pytest.raises(DataError) as caught:
            run_embed(Run(config, list_work_units(config.captions)), stage(config, "embed"), Quiet())
        for part in ("2 of 4 shards", "b.parquet: not a readable parquet file", "c.tar: truncated or damaged tar"):
            assert part in str(caught.value)
        names = {file.name for file in output.iterdir()}
        units = {
            work_unit.location.name: f"{work_unit.unit}.parquet" for work_unit in list_work_units(config.captions)
        }
        good = {units["a.parquet"], units["d.parquet"]}
        assert names == good | {"started.json", "quarantine.json", "caption_counts.parquet", "records"}
        before = {name: ((output / name).read_bytes(), (output / name).stat().st_mtime_ns) for name in good}

        (folder / "b.parquet").write_bytes(whole)
        (folder / "c.tar").write_bytes(whole_tar)
        manifest = run_embed(Run(config, list_work_units(config.captions)), stage(config, "embed"), Quiet())
        assert manifest.summary["units_made"] == 2
        assert (manifest.units, manifest.rows_out) == (4, 120)
        after = {name: ((output / name).read_bytes(), (output / name).stat().st_mtime_ns) for name in good}
        assert after == before
        names = {file.name for file in output.iterdir()}
        notes = {"started.json", "units.parquet", "manifest.json", "caption_counts.parquet"}
        assert names == {*units.values(), *notes}


@pytest.mark.drill
@pytest.mark.usefixtures("ray_session")
class TestReplacedSources:
    """A run over two parquet files of 40 captions; one of them is replaced while the stage is not done."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "in"
        folder.mkdir()
        for number, name in enumerate("ab"):
            pq.write_table(pa.table({"caption": captions_of(number)}), folder / f"{name}.parquet", row_group_size=10)
        return folder

    def embed(self, run: Path, folder: Path) -> Manifest:
        config = config_of(str(run), folder, "all")
        return run_embed(Run(config, list_work_units(config.captions)), stage(config, "embed"), Quiet())

    def test_a_mended_file_that_now_has_more_units_is_all_that_is_done_again(
        self, tmp_path: Path, folder: Path
    ) -> None:
        whole = (folder / "b.parquet").read_bytes()
        (folder / "b.parquet").write_bytes(whole[:-10])
        with pytest.raises(DataError, match=r"1 of 3 shards"):
            self.embed(tmp_path / "run", folder)
        output = tmp_path / "run/embeddings"
        before = {file.name: file.stat().st_mtime_ns for file in output.glob("a-*.parquet")}
        (folder / "b.parquet").write_bytes(whole)
        manifest = self.embed(tmp_path / "run", folder)
        assert (manifest.units, manifest.rows_out, manifest.summary["units_made"]) == (4, 80, 2)
        assert {file.name: file.stat().st_mtime_ns for file in output.glob("a-*.parquet")} == before
        assert not (output / "quarantine.json").exists()

    def test_outputs_of_the_file_that_was_there_go(self, tmp_path: Path, folder: Path) -> None:
        self.embed(tmp_path / "run", folder)
        output = tmp_path / "run/embeddings"
        (output / "manifest.json").unlink()
        pq.write_table(pa.table({"caption": captions_of(7)[:15]}), folder / "b.parquet")
        manifest = self.embed(tmp_path / "run", folder)
        assert (manifest.units, manifest.rows_out, manifest.summary["units_made"]) == (3, 55, 1)
        assert (manifest.summary["units_vanished"], manifest.summary["units_with_replaced_source"]) == (2, 0)
        assert len(list(output.glob("b-*.parquet"))) == 1

    def test_units_of_a_file_with_other_captions_are_done_again(self, tmp_path: Path, folder: Path) -> None:
        self.embed(tmp_path / "run", folder)
        (tmp_path / "run/embeddings/manifest.json").unlink()
        pq.write_table(pa.table({"caption": captions_of(7)}), folder / "b.parquet", row_group_size=10)
        manifest = self.embed(tmp_path / "run", folder)
        assert (manifest.summary["units_made"], manifest.summary["units_with_replaced_source"]) == (2, 2)
        fresh = self.embed(tmp_path / "fresh", folder)
        assert manifest.content_hash == fresh.content_hash
