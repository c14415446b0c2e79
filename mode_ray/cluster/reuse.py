"""Reuse of another run's clustering (`cluster.reuse`) instead of fitting a new one.

New captions get the same centers and ids as those of the other run, so that its experts can serve them.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray

from mode_ray.cluster.clustering import Clustering
from mode_ray.config.captions import EncoderPlacement
from mode_ray.config.run import RunConfig
from mode_ray.embed.encoder import encoder_name
from mode_ray.embed.load import load_encoder
from mode_ray.errors import UsageError
from mode_ray.run_directory import FINE_FILE, SUMMARY_FILE, coarse_file
from mode_ray.stages.manifest import Manifest, Stage, UnitRecord, combined_hash
from mode_ray.storage import Location
from mode_ray.util.ray_tasks import task_result

CONTENT_FIELD = "cluster.reuse (content)"


@dataclass(frozen=True)
class ReusedClustering:
    """A clustering to reuse.

    Attributes:
        source: Its directory.
        files: Contents of its files by name, in the order to write them; the file that names the others is the last.
        clustering: The parsed clustering.
    """

    source: Location
    files: Mapping[str, bytes]
    clustering: Clustering

    @property
    def content_hash(self) -> str:
        """Hash of the files, independent of their directory."""
        return combined_hash(f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in self.files.items())


def read_reused(source: Location) -> ReusedClustering:
    """Read a clustering and the bytes of its files.

    Raises:
        DataError: It is missing or damaged; names the file.
    """
    clustering = Clustering.load(source)
    names = [*(coarse_file(n) for n in sorted(clustering.coarse)), FINE_FILE]
    return ReusedClustering(source, {name: (source / name).read_bytes() for name in names}, clustering)


def find_reused(config: RunConfig, copy: Location) -> ReusedClustering:
    """The clustering that `cluster.reuse` names, or the run's own copy if the original no longer exists.

    Args:
        config: The run's config.
        copy: Directory of the run's own clustering.

    Raises:
        UsageError: `cluster.standing` is not set, is the run's own clustering, or has no map for `train.experts`.
        DataError: The clustering is missing or damaged, or was made with another encoder.
    """
    if config.cluster.reuse is None:
        raise UsageError("cluster.reuse is not set: set it to the clustering to reuse")
    source = Location.parse(config.cluster.reuse)
    if source.uri == copy.uri:
        raise UsageError(f"cluster.reuse: {source} belongs to this run; name the clusters of another run")
    gone = not (source / FINE_FILE).exists() and (copy / FINE_FILE).exists()
    reused = read_reused(copy if gone else source)
    clustering = reused.clustering
    clustering.compatible_with(encoder_name(config.encoder), clustering.dimension)
    if config.trains and config.train.experts not in clustering.coarse:
        raise UsageError(
            f"train.experts={config.train.experts} has no coarse map in cluster.reuse {source}, which has maps for "
            f"{sorted(clustering.coarse)}: set train.experts to one of these"
        )
    return reused


def run_reuse(
    config: RunConfig, stage: Stage, reused: ReusedClustering, on_record: Callable[[UnitRecord], None]
) -> Manifest:
    """Run the cluster stage with another run's clustering: check it against the encoder, then copy it.

    Its atlas summary is copied too, if there is one. The summary is not part of the content hash.

    Raises:
        DataError: The encoder's embeddings and the centers differ in dimension.
        UsageError: The clustering has changed since the stage began.
    """
    if reused.content_hash != stage.fields[CONTENT_FIELD]:
        raise UsageError(f"{reused.source}: changed while this run worked; run again")
    stage.begin(1)
    # The encoder's folder may have changed, so the encoder is loaded; in a task, because the driver imports no torch.
    task_result(ray.remote(max_calls=1)(_check_encoder).remote(config, reused.source))
    for name, data in reused.files.items():
        (stage.directory / name).write_bytes(data)
    atlas_summary = reused.source / SUMMARY_FILE
    if reused.source.uri != stage.directory.uri and atlas_summary.exists():
        atlas_summary.copy_to(stage.directory / SUMMARY_FILE)
    record = UnitRecord(
        unit="clustering",
        source=reused.source.uri,
        bytes_out=sum(len(data) for data in reused.files.values()),
        content_hash=reused.content_hash,
        attempt=stage.attempt,
    )
    on_record(record)
    summary = {
        "reuse": reused.source.uri,
        "content_hash": reused.content_hash,
        "centers": len(reused.clustering.centers_md),
        "coarse": sorted(reused.clustering.coarse),
    }
    return stage.finish([record], summary)


def _check_encoder(config: RunConfig, source: Location) -> None:
    encoder = load_encoder(config.encoder, EncoderPlacement(device="cpu"))
    Clustering.load(source).compatible_with(encoder.name, encoder.dimension)
