"""The sections `captions`, `limits`, `encoder` and `embed`: which captions are read, and how they are encoded."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from mode_ray.config.base import ActorPool, FolderName, Placement, PositiveInt, Settings, Share, Strings
from mode_ray.errors import UsageError
from mode_ray.storage import Location


class CaptionsConfig(Settings):
    """Where the image-caption pairs are stored and which of their texts are used."""

    paths: Strings
    """Files, directories, globs, ranges such as `{00000..00012}.tar`; local, s3:// or gs://. A file that ends in
    `.txt` or `.list` is a listing: one such path per line, `#` comments are skipped, and relative paths start at the
    listing's folder. docs/inputs.md has the details."""
    format: Literal["auto", "parquet", "webdataset", "jsonl", "csv", "tsv"] = "auto"
    """`auto`: by suffix, .parquet .pq, .tar, .jsonl .ndjson, .csv, .tsv; text formats may be compressed, and then also
    end in `.gz`, `.bz2`, `.xz` or `.zst`. JSON Lines, CSV and TSV hold captions only: they can be clustered and
    assigned, but not trained on."""
    caption_field: str | None = None
    """Parquet, CSV: the column (default `caption`). JSON Lines: the field (default `caption`). Tars: a field of the
    `.json` member; by default the `.txt` member."""
    key_field: str | None = None
    """The column or field with a pair's name (default: its row number). Tars always use the member's base name."""
    image_field: str = "image"
    """Parquet: the column with the encoded image. Only training, `index` and the report read it."""
    image_root: str | None = None
    """Parquet: the folder of the image files, local or remote, if the image column holds relative paths instead of
    images: strings, or Hugging Face's structs of `bytes` and `path`. Without it, a row that holds only a path has no
    image."""
    header: bool = True
    """CSV, TSV: whether the first line names the columns. If false, `caption_field` and `key_field` are the numbers of
    columns, from 0."""
    quoting: Literal["auto", "quoted", "none"] = "auto"
    """CSV, TSV: `quoted`: fields may be in quotation marks, and such fields may contain line breaks (RFC 4180).
    `none`: quotation marks are text, as in CC3M and CC12M. `auto`: a field is quoted if its closing mark ends a
    column. It may continue on further lines, unless these are whole rows themselves (TSV: one of them, CSV: the
    next three)."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """CSV, TSV: the character between columns. Default: a comma in CSV, a tab in TSV."""
    select: Literal["first", "all"] = "first"
    """Which captions of a pair are used if it has several."""
    max_caption_bytes: PositiveInt = 8192
    """Longer captions are refused and counted."""
    max_rows_per_unit: PositiveInt = 1_000_000
    """A parquet file with more rows is split by row groups into several work units. JSON Lines, CSV and TSV files with
    more captions are refused."""
    added: ClassVar[frozenset[str]] = frozenset({"header", "quoting", "delimiter"})
    unversioned: ClassVar[frozenset[str]] = frozenset({"image_root"})

    @field_validator("caption_field", "key_field", mode="before")
    @classmethod
    def _column_number(cls, value: object) -> object:
        """YAML reads the number of a column as an integer."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("image_root")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        """Workers may have another working directory."""
        try:
            return None if value is None else Location.parse(value).uri
        except UsageError as error:
            raise ValueError(str(error)) from None

    @field_validator("delimiter")
    @classmethod
    def _possible_delimiter(cls, value: str | None) -> str | None:
        if value is not None and value in '"\r\n':
            raise ValueError("a quotation mark or a line break cannot separate columns")
        return value

    @model_validator(mode="after")
    def _paths_given(self) -> Self:
        if not self.paths:
            raise ValueError("paths is empty: name at least one file, directory or glob")
        return self


class LimitsConfig(Placement):
    """Which defects of its input a run tolerates. Not part of the fingerprint, so they may change."""

    max_refused_share: Share = 0.2
    """Above this share of refused captions a stage fails: most likely the wrong column is read."""
    max_quarantined_units: Annotated[int, Field(ge=0)] = 0
    """How many work units a stage may leave out, because their shard cannot be read, and still be done."""
    max_bad_image_share: Share = 0.01
    """Above this share of images that cannot be decoded, a training run fails."""
    max_image_pixels: PositiveInt = 64_000_000
    """Larger images are refused before they are decoded."""


class EncoderConfig(Settings):
    """The frozen language encoder (paper section 4.1; never CLIP itself)."""

    kind: Literal["huggingface", "static"] = "huggingface"
    model: FolderName = "princeton-nlp/sup-simcse-bert-base-uncased"
    """Hub id, folder, or `package:NAME/FOLDER` for files inside an installed Python package."""
    pooling: Literal["auto", "pooler", "mean", "cls"] = "auto"
    """`auto`: the pooling that a sentence-transformers folder specifies, otherwise the pooler output (SimCSE)."""
    max_tokens: PositiveInt = 64
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Arithmetic of the forward pass. `auto`: bfloat16 on GPUs, float32 on CPUs. `int8`: on CPUs with the VNNI
    instructions, by OpenVINO (`pip install 'mode_ray[openvino]'`). Its embeddings are a space of their own, and
    clusterings of others do not take them. Embeddings are always stored as float16."""

    @model_validator(mode="after")
    def _int8(self) -> Self:
        if self.dtype == "int8" and self.kind == "static":
            raise ValueError("dtype: int8 is for kind: huggingface; a static table has no matrix products")
        return self


class EncoderPlacement(Placement):
    """Speed of the encoder."""

    batch_size: PositiveInt | None = None
    """Captions that go through the encoder at once; by default 64 on CPUs and 1,024 on GPUs."""
    device: str = "auto"
    """`auto`: CUDA for an actor of the embed stage with GPUs (`embed.pool.gpus_per_actor`), else the CPU. In other
    stages, the encoder follows the resources of their own tasks; only `cpu` applies there too."""

    runtime: Literal["torch", "openvino"] = "torch"
    """Library that runs a transformer on CPUs. `openvino` is faster and needs `pip install 'mode_ray[openvino]'`."""

    @property
    def elsewhere(self) -> "EncoderPlacement":
        """The placement in a process that is not an actor of the embed stage: it may have no GPU."""
        return self if self.device == "cpu" else self.model_copy(update={"device": "auto"})


class EmbedConfig(Settings):
    """Which embeddings are stored, and the resources to compute them."""

    keep: Literal["all", "sample"] = "all"
    """`all`: every caption's embedding is stored. `sample`: only those that the clustering is fitted on. `assign` then
    reads the captions again, and encodes and assigns them in one pass."""
    pool: ActorPool = ActorPool()
    encoder: EncoderPlacement = EncoderPlacement()
