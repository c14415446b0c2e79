"""The sections `captions`, `limits`, `encoder` and `embed`: which captions are read, and how they are encoded."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mode_ray.config.base import ActorPool, Placement, PositiveInt, Settings, Share, Strings


class CaptionsConfig(Settings):
    """Where the pairs lie and which of their texts count."""

    paths: Strings
    """Files, directories, globs; local, s3:// or gs://. A file that ends in `.txt` or `.list` is a listing: one of
    these a line, `#` comments skipped, relative lines counted from the listing's folder."""
    format: Literal["auto", "parquet", "webdataset", "jsonl", "csv", "tsv"] = "auto"
    """`auto`: by suffix, .parquet .pq, .tar, .jsonl .ndjson, .csv, .tsv, the text ones plain or `.gz`. JSON Lines, CSV
    and TSV (with a header line) hold captions only: they can be clustered and assigned, not trained on."""
    caption_field: str | None = None
    """Parquet, CSV: the column (default `caption`). JSON Lines: the field (default `caption`). Tars: a field of the
    `.json` member, or else the `.txt`."""
    key_field: str | None = None
    """The column or field with a pair's name (default: row number). Tars: always the member's base name."""
    image_field: str = "image"
    """Parquet: the column with the encoded image; only training reads it."""
    select: Literal["first", "all"] = "first"
    """Which captions of a pair with several are used."""
    max_caption_bytes: PositiveInt = 8192
    """Longer captions are refused, and counted."""
    max_rows_per_unit: PositiveInt = 1_000_000
    """A parquet file with more rows is split by row groups into several work units; JSON Lines, CSV and TSV files with
    more captions are refused."""

    @model_validator(mode="after")
    def _paths_given(self) -> Self:
        if not self.paths:
            raise ValueError("paths is empty: name at least one file, directory or glob")
        return self


class LimitsConfig(Placement):
    """What a run puts up with in its input. Not part of the fingerprint: a run may go on with other limits."""

    max_refused_share: Share = 0.2
    """Above this share of refused captions a stage ends with an error: the wrong column, most likely."""
    max_quarantined_units: Annotated[int, Field(ge=0)] = 0
    """How many unreadable shards a stage may leave out and still count as done."""
    max_bad_image_share: Share = 0.01
    """Above this share of undecodable images a training run ends with an error."""
    max_image_pixels: PositiveInt = 64_000_000
    """Larger images are refused before they are decoded."""


class EncoderConfig(Settings):
    """The frozen language encoder (paper section 4.1; never CLIP itself)."""

    kind: Literal["huggingface", "static"] = "huggingface"
    model: str = "princeton-nlp/sup-simcse-bert-base-uncased"
    """Hub id, folder, or `package:NAME/FOLDER` for files inside an installed Python package."""
    pooling: Literal["auto", "pooler", "mean", "cls"] = "auto"
    """`auto`: what a sentence-transformers folder asks for, else the pooler output (SimCSE)."""
    max_tokens: PositiveInt = 64
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the forward pass; embeddings are stored as float16 whatever it is."""


class EncoderPlacement(Placement):
    """Speed of the encoder."""

    batch_size: PositiveInt = 64
    device: str = "auto"


class EmbedConfig(Settings):
    """Embedding shards."""

    keep: Literal["all", "sample"] = "all"
    """`all`: every caption's embedding is stored. `sample`: only those that the clustering is fitted on;
    `assign` then reads the captions itself and encodes and assigns them in one pass."""
    pool: ActorPool = ActorPool()
    encoder: EncoderPlacement = EncoderPlacement()
