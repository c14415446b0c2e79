"""Captions from WebDataset tars, with the byte offsets of the members so that training can fetch single pairs.

The standard library reads the tar headers, because the webdataset package does not report the offsets of members.
"""

import contextlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from mode_ray.captions.clean import BAD_JSON, BIG_JSON, NO_IMAGE, CaptionTable, clean
from mode_ray.captions.json_text import field_captions, json_object
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.stages.work_unit import WorkUnit

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp"})
TEXT_SUFFIX = "txt"
JSON_SUFFIX = "json"
_STREAM_BUFFER_BYTES = 4 << 20
MAX_JSON_BYTES = 1 << 20


@dataclass
class TarSample:
    """Members of one sample: consecutive members with the same name up to the first dot.

    Attributes:
        key: That name.
        members: Offset and size of the contents, by suffix.
        contents: Contents of the requested members, by suffix.
    """

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)

    def image(self) -> tuple[int, int] | None:
        """Offset and size of the image, or None."""
        return next((place for suffix, place in self.members.items() if suffix in IMAGE_SUFFIXES), None)


def read_tar_samples(work_unit: WorkUnit, wanted: frozenset[str], max_bytes: int) -> Iterator[TarSample]:
    """Iterate over the samples of a tar.

    Args:
        work_unit: The tar.
        wanted: Suffixes of the members to read.
        max_bytes: Longer contents are cut to one byte more than this, so that the caller can detect them.

    Raises:
        DataError: Not a tar, or a truncated one.
    """
    sample: TarSample | None = None
    with _open_tar(work_unit) as archive:
        try:
            for member in archive:
                if not member.isfile():
                    continue
                directory, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key, suffix = _as_utf8(f"{directory}/{stem}".lstrip("/")), suffix.lower()
                if sample is None or sample.key != key or suffix in sample.members:
                    if sample is not None:
                        yield sample
                    sample = TarSample(key)
                sample.members[suffix] = (member.offset_data, member.size)
                if suffix in wanted:
                    source = archive.extractfile(member)
                    sample.contents[suffix] = source.read(max_bytes + 1) if source else b""
        except tarfile.ReadError as error:
            raise DataError(f"{work_unit.uri}: truncated or damaged tar ({error}); replace or remove it") from None
        # tarfile treats a damaged or missing header as the end of the archive.
        with work_unit.location.open_input() as file:
            if bytes(file.read_at(tarfile.BLOCKSIZE, archive.offset)) != bytes(tarfile.BLOCKSIZE):
                raise DataError(
                    f"{work_unit.uri}: truncated or damaged tar (no header and no end marker at byte {archive.offset})"
                    "; replace or remove it"
                )
    if sample is not None:
        yield sample


@contextlib.contextmanager
def _open_tar(work_unit: WorkUnit) -> Iterator[tarfile.TarFile]:
    """Open a tar: locally by seeking over the images, remotely as one sequential stream."""
    location = work_unit.location
    try:
        with contextlib.ExitStack() as stack:
            if location.is_local:
                source = stack.enter_context(Path(location.path).open("rb"))
                archive = stack.enter_context(tarfile.open(fileobj=source, mode="r:"))
            else:
                stream = location.filesystem.open_input_stream(location.path, buffer_size=_STREAM_BUFFER_BYTES)
                archive = stack.enter_context(tarfile.open(fileobj=stack.enter_context(stream), mode="r|"))
            yield archive
    except FileNotFoundError:
        raise DataError(f"{work_unit.uri}: no such file") from None
    except tarfile.ReadError as error:
        raise DataError(f"{work_unit.uri}: not a readable tar ({error}); replace or remove it") from None


def _as_utf8(name: str) -> str:
    """A member's name whose invalid UTF-8 (tarfile's surrogates) is written as escapes."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def read_tar_captions(work_unit: WorkUnit, config: CaptionsConfig) -> CaptionTable:
    """Read and clean a tar's captions.

    Captions come from the `.txt` member or, if `captions.caption_field` is set, from that field of the `.json` member
    (a string or a list of strings).

    Raises:
        DataError: Not a tar, or a truncated one; names the file.
    """
    suffix = TEXT_SUFFIX if config.caption_field is None else JSON_SUFFIX
    limit = config.max_caption_bytes if config.caption_field is None else MAX_JSON_BYTES
    names = ("row", "caption_index", "key", "image_offset", "image_bytes", "caption_offset", "caption_bytes")
    columns: dict[str, list[int | str | None]] = {name: [] for name in names}
    raw: list[bytes | None] = []
    reasons: list[str | None] = []
    for row, sample in enumerate(read_tar_samples(work_unit, frozenset({suffix}), limit)):
        image = sample.image()
        captions, reason = _captions_of(sample, suffix, config)
        for index, caption in enumerate(captions):
            place = sample.members.get(suffix, (None, None))
            values = (row, index, sample.key, *(image or (None, None)), *place)
            for name, value in zip(names, values, strict=True):
                columns[name].append(value)
            raw.append(caption)
            reasons.append(reason if image else NO_IMAGE)
    kinds = {"caption_index": pa.int32(), "key": pa.string()}
    arrays = {name: pa.array(values, kinds.get(name, pa.int64())) for name, values in columns.items()}
    return clean(arrays, pa.array(raw, pa.binary()), config.max_caption_bytes, pa.array(reasons, pa.string()))


def count_tar_rows(work_unit: WorkUnit) -> int:
    """Number of samples of a tar, from its headers; a remote tar is streamed whole.

    Raises:
        DataError: Not a tar, or a truncated one.
    """
    return sum(1 for _ in read_tar_samples(work_unit, frozenset(), 0))


def json_captions(content: bytes, field_name: str) -> list[bytes | None]:
    """The captions in one `.json` member; a single None if there is no caption.

    Raises:
        ValueError: Not a JSON object.
    """
    return field_captions(json_object(content), field_name)


def _captions_of(sample: TarSample, suffix: str, config: CaptionsConfig) -> tuple[list[bytes | None], str | None]:
    """A sample's captions, at least one entry, and the reason to refuse all of them, or None."""
    content = sample.contents.get(suffix)
    if content is None:
        return [None], None
    if config.caption_field is None:
        return [content], None
    if len(content) > MAX_JSON_BYTES:
        return [None], BIG_JSON
    try:
        captions = json_captions(content, config.caption_field)
    except ValueError:
        return [None], BAD_JSON
    return captions[:1] if config.select == "first" else captions, None
