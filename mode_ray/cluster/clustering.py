"""The clustering artefact: fine centers and coarse maps, as safetensors files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from mode_ray.cluster.search.nearest import Float32Array, Int32Array, NearestCenters
from mode_ray.config.run import EncoderPlacement
from mode_ray.embed.encoder import CaptionEncoder, encoder_config
from mode_ray.embed.load import load_encoder
from mode_ray.errors import DataError, UsageError
from mode_ray.run_directory import FINE_FILE, coarse_file
from mode_ray.storage import Location

_METADATA_KEY = "mode_ray"
_FINE_TENSORS = {
    "centers_md": ("float32", 2),
    "prices_m": ("float64", 1),
    "mass_m": ("int64", 1),
    "squared_distance_m": ("float64", 1),
}

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Clustering:
    """Fine centers and the coarse maps over them.

    Attributes:
        centers_md: float32 [m, d].
        prices_m: float64 [m], balancing prices; all 0 for plain k-means.
        mass_m: int64 [m], rows of the sample by nearest center, prices ignored.
        squared_distance_m: float64 [m], sum of squared distances of those rows.
        encoder_name: The encoder that made the embeddings.
        coarse: For each n, int32 [m], the expert of each fine center.
        training: Statistics of the fit, any JSON values.
    """

    centers_md: Float32Array
    prices_m: npt.NDArray[np.float64]
    mass_m: npt.NDArray[np.int64]
    squared_distance_m: npt.NDArray[np.float64]
    encoder_name: str
    coarse: Mapping[int, Int32Array]
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dimension(self) -> int:
        """Length d of an embedding."""
        return int(self.centers_md.shape[1])

    def save(self, directory: Location) -> None:
        """Write `coarse-n<n>.safetensors` for every map, then `fine.safetensors`, which names the maps."""
        for n, group_m in self.coarse.items():
            (directory / coarse_file(n)).write_bytes(
                safetensors.numpy.save({"group_m": np.ascontiguousarray(group_m, np.int32)})
            )
        tensors = {
            name: np.ascontiguousarray(getattr(self, name), dtype) for name, (dtype, _) in _FINE_TENSORS.items()
        }
        # A single key: the order of several keys is not fixed, and equal clusterings must have equal bytes.
        about = {
            "encoder_name": self.encoder_name,
            "coarse": sorted(int(n) for n in self.coarse),
            "training": dict(self.training),
        }
        metadata = {_METADATA_KEY: json.dumps(about, sort_keys=True)}
        (directory / FINE_FILE).write_bytes(safetensors.numpy.save(tensors, metadata))

    @classmethod
    def load(cls, directory: str | Path | Location) -> Self:
        """Read a clustering.

        Args:
            directory: `clusters` of a run, or `clustering` of an exported ensemble; a path or a URI.

        Raises:
            DataError: A file is absent, corrupt, or does not fit the others; the message names it.
        """
        directory = directory if isinstance(directory, Location) else Location.parse(str(directory))
        file = directory / FINE_FILE
        data = _read(file)
        tensors = _tensors(file, data, _FINE_TENSORS)
        m = len(tensors["centers_md"])
        for name, values in tensors.items():
            if len(values) != m or not np.isfinite(values).all():
                raise DataError(
                    f"{file}: {name} of shape {values.shape} must have one finite entry for each of {m} centers; "
                    "run the cluster stage again"
                )
        encoder_name, counts, training = _about(file, data)
        coarse = {n: _load_map(directory / coarse_file(n), n, m) for n in counts}
        return cls(**tensors, encoder_name=encoder_name, coarse=coarse, training=training)

    @classmethod
    def load_for(cls, directory: Location, encoder_name: str) -> Self:
        """`load` for embeddings of an encoder.

        Raises:
            DataError: As `load`, or the clustering was made with another encoder; the message names the file.
        """
        clustering = cls.load(directory)
        try:
            clustering.compatible_with(encoder_name, clustering.dimension)
        except DataError as error:
            raise DataError(f"{directory / FINE_FILE}: {error}") from None
        return clustering

    def experts_of(self, n: int) -> Int32Array:
        """The expert of each fine center, int32 [m].

        Raises:
            UsageError: There is no map for this n.
        """
        if n not in self.coarse:
            raise UsageError(
                f"no coarse map for n={n}, only for {sorted(self.coarse)}: add it to cluster.coarse.experts "
                "and run the cluster stage"
            )
        return self.coarse[n]

    def assign(
        self, captions: Sequence[str] | npt.NDArray[np.floating], *, device: str = "auto", threads: int = 1
    ) -> tuple[Int32Array, Float32Array]:
        """The nearest fine center of captions, as the assign stage finds it without prices.

        Args:
            captions: Texts, which the clustering's own encoder embeds, or unit embeddings [b, d] of that encoder.
            device: Of the encoder.
            threads: CPU threads of the encoder and the search.

        Returns:
            fine int32 [b] and squared_distance float32 [b]; -1 and NaN for a text without a word that the encoder
            knows.

        Raises:
            UsageError: The encoder cannot be found.
            DataError: The embeddings have another dimension.
        """
        if isinstance(captions, np.ndarray) and captions.dtype.kind == "f":
            vectors_bd = np.asarray(captions, np.float32)
        else:
            vectors_bd = self._encoder(device, threads).encode([str(caption) for caption in captions])
        if vectors_bd.ndim != 2 or vectors_bd.shape[1] != self.dimension:
            raise DataError(
                f"embeddings of shape {vectors_bd.shape}, but the centers have {self.dimension} dimensions"
            )
        known_b = vectors_bd.any(axis=1)
        fine_b = np.full(len(vectors_bd), -1, np.int32)
        squared_distance_b = np.full(len(vectors_bd), np.nan, np.float32)
        # Embeddings are stored as float16; texts are rounded alike, so that both ways give the same assignment.
        rounded_bd = vectors_bd[known_b].astype(np.float16).astype(np.float32)
        if len(rounded_bd):
            search = NearestCenters(self.centers_md, None, threads)
            fine_b[known_b], squared_distance_b[known_b] = search.search(rounded_bd)
        return fine_b, squared_distance_b

    def expert_of(self, fine: npt.NDArray[np.integer] | Sequence[int], n: int) -> Int32Array:
        """The expert of fine clusters in the map of n experts, int32; -1 stays -1.

        Raises:
            UsageError: There is no map for this n.
        """
        fine_b = np.asarray(fine, np.int32)
        experts_b: Int32Array = np.where(fine_b < 0, np.int32(-1), self.experts_of(n)[fine_b])
        return experts_b

    def _encoder(self, device: str, threads: int) -> CaptionEncoder:
        """The clustering's encoder, loaded once per device and number of threads."""
        encoders = self.__dict__.setdefault("_encoders", {})
        if (device, threads) not in encoders:
            placement = EncoderPlacement(device=device)
            encoders[device, threads] = load_encoder(encoder_config(self.encoder_name), placement, threads)
        encoder: CaptionEncoder = encoders[device, threads]
        self.compatible_with(encoder.name, encoder.dimension)
        return encoder

    def masses(self, n: int) -> npt.NDArray[np.int64]:
        """Rows of the sample that belong to each expert, int64 [n]."""
        mass_n = np.zeros(n, np.int64)
        np.add.at(mass_n, self.experts_of(n), self.mass_m)
        return mass_n

    def spread(self, n: int) -> npt.NDArray[np.float64]:
        """Mean squared distance of each expert's rows to the expert's centroid, float64 [n].

        The centroid is the mass-weighted mean of the expert's centers. The squared distance is that of the rows to
        their centers plus that of the centers to the centroid, which is exact if centers are the means of their rows.
        An expert without rows has spread 0.
        """
        group_m, mass_n = self.experts_of(n), self.masses(n)
        divisor_n = np.maximum(mass_n, 1)
        centroids_nd = np.zeros((n, self.dimension))
        np.add.at(centroids_nd, group_m, self.centers_md.astype(np.float64) * self.mass_m[:, None])
        centroids_nd /= divisor_n[:, None]
        between_m = self.mass_m * np.square(self.centers_md - centroids_nd[group_m]).sum(axis=1)
        return np.bincount(group_m, weights=self.squared_distance_m + between_m, minlength=n) / divisor_n

    def widest_first(self, n: int) -> list[int]:
        """Experts in the order of training: by descending spread, then descending size, then number."""
        spread_n, mass_n = self.spread(n), self.masses(n)
        return sorted(range(n), key=lambda expert: (-spread_n[expert], -mass_n[expert], expert))

    def compatible_with(self, encoder_name: str, dimension: int) -> None:
        """Check that embeddings belong to this clustering.

        Raises:
            DataError: The encoder or the dimension differs; the message names both.
        """
        if (encoder_name, dimension) != (self.encoder_name, self.dimension):
            raise DataError(
                f"the clustering was made with encoder {self.encoder_name!r} ({self.dimension} dimensions), "
                f"but the embeddings with {encoder_name!r} ({dimension} dimensions): "
                "use the same encoder, or run the cluster stage again"
            )


def _read(file: Location) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; run the cluster stage first") from None


def _tensors(file: Location, data: bytes, expected: Mapping[str, tuple[str, int]]) -> Tensors:
    try:
        tensors: Tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{file}: not a readable safetensors file ({error}); run the cluster stage again") from None
    for name, (dtype, dimensions) in expected.items():
        if name not in tensors:
            raise DataError(f"{file}: tensor {name!r} is missing; run the cluster stage again")
        found = tensors[name]
        if found.dtype != np.dtype(dtype) or found.ndim != dimensions or not found.size:
            raise DataError(
                f"{file}: tensor {name!r} is {found.dtype}{list(found.shape)}, expected {dtype} "
                f"of {dimensions} dimensions; run the cluster stage again"
            )
    return {name: tensors[name] for name in expected}


def _about(file: Location, data: bytes) -> tuple[str, list[int], dict[str, Any]]:
    """Encoder name, numbers of experts and training statistics, from `__metadata__` of the safetensors header."""
    header_bytes = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + header_bytes])
        about = json.loads(header["__metadata__"][_METADATA_KEY])
        encoder_name, counts, training = about["encoder_name"], about["coarse"], about["training"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{file}: the metadata is not that of a clustering; run the cluster stage again") from None
    if not (
        isinstance(encoder_name, str)
        and isinstance(training, dict)
        and isinstance(counts, list)
        and all(type(n) is int and n >= 1 for n in counts)
    ):
        raise DataError(f"{file}: the metadata has a wrong type; run the cluster stage again")
    return encoder_name, counts, training


def _load_map(file: Location, n: int, m: int) -> Int32Array:
    group_m = _tensors(file, _read(file), {"group_m": ("int32", 1)})["group_m"]
    if len(group_m) != m or group_m.min() < 0 or group_m.max() >= n:
        raise DataError(
            f"{file}: not a map of {m} fine centers into {n} experts (it has {len(group_m)} entries from "
            f"{group_m.min()} to {group_m.max()}); run the cluster stage again"
        )
    return group_m
