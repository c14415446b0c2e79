"""The samples of WebDataset tars, with the byte offsets of their members.

The standard library reads the tar headers, because the webdataset package does not report the offsets of members.
"""

import contextlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mode_ray.errors import DataError
from mode_ray.stages.work_unit import WorkUnit

IMAGE_SUFFIXES = frozenset(
    "jpg jpeg jpe jfif png apng webp gif bmp tif tiff avif jp2 j2k jpx ppm pgm pbm pnm".split()  # noqa: SIM905
)
UNREAD_IMAGE_SUFFIXES = frozenset(
    "heic heif jxl svg svgz ico psd eps tga dds exr hdr jxr wdp dng cr2 cr3 nef arw orf raf rw2 raw pdf".split()  # noqa: SIM905
)
"""Suffixes of images that are not read, so that the refusal can name them."""
_STREAM_BUFFER_BYTES = 4 << 20
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


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

    @property
    def shown(self) -> str:
        """Key and suffixes, for messages: `00017: .heic .txt`."""
        return f"{self.key}: {' '.join(f'.{suffix}' for suffix in self.members)}"


def read_tar_samples(work_unit: WorkUnit, wanted: frozenset[str], max_bytes: int) -> Iterator[TarSample]:
    """Iterate over the samples of a tar.

    Members without a suffix or with a name that begins with a dot are skipped, as by the webdataset package: these are
    the files in which macOS stores attributes (`._NAME`), among others.

    Args:
        work_unit: The tar.
        wanted: Suffixes of the members to read.
        max_bytes: Longer contents are cut to one byte more than this, so that the caller can detect them.

    Raises:
        DataError: Not a plain tar, or a truncated one; a link or a sparse member; a sample whose members are not
            adjacent, or whose key has a dot.
    """
    samples = _Samples(work_unit)
    with _open_tar(work_unit) as archive:
        try:
            for member in archive:
                base = member.name.rpartition("/")[2]
                if member.isdir() or base.startswith(".") or "." not in base:
                    continue
                finished = samples.add(member)
                if finished is not None:
                    yield finished
                if samples.suffix in wanted and samples.current is not None:
                    source = archive.extractfile(member)
                    samples.current.contents[samples.suffix] = source.read(max_bytes + 1) if source else b""
        except tarfile.ReadError as error:
            raise DataError(f"{work_unit.uri}: truncated or damaged tar ({error}); replace or remove it") from None
        # tarfile treats a damaged or missing header as the end of the archive.
        with work_unit.location.open_input() as file:
            if bytes(file.read_at(tarfile.BLOCKSIZE, archive.offset)) != bytes(tarfile.BLOCKSIZE):
                raise DataError(
                    f"{work_unit.uri}: truncated or damaged tar (no header and no end marker at byte {archive.offset})"
                    "; replace or remove it"
                )
    if samples.current is not None:
        yield samples.finished(samples.current)


class _Samples:
    """Joins the members of a tar to samples.

    Attributes:
        current: The sample of the last member.
        suffix: The suffix of the last member, in lower case.
    """

    def __init__(self, work_unit: WorkUnit) -> None:
        self._uri = work_unit.uri
        self._suffixes_by_key: dict[str, frozenset[str]] = {}
        self._sets: dict[frozenset[str], frozenset[str]] = {}
        self.current: TarSample | None = None
        self.suffix = ""

    def add(self, member: tarfile.TarInfo) -> TarSample | None:
        """Add a member to the current sample, or begin one; returns the sample that is finished by that."""
        directory, _, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        key, self.suffix = _as_utf8(f"{directory}/{stem}".lstrip("/")), _as_utf8(suffix.lower())
        self._check_kind(member, key)
        finished = None
        if self.current is None or self.current.key != key or self.suffix in self.current.members:
            finished = self.finished(self.current) if self.current else None
            self._check_adjacent(key)
            self.current = TarSample(key)
        self.current.members[self.suffix] = (member.offset_data, member.size)
        return finished

    def finished(self, sample: TarSample) -> TarSample:
        """A sample to which no member is added any more."""
        _check_key(sample, self._uri)
        suffixes = self._suffixes_by_key.get(sample.key, frozenset()).union(sample.members)
        # Most samples have the same suffixes: one set serves all of them.
        self._suffixes_by_key[sample.key] = self._sets.setdefault(suffixes, suffixes)
        return sample

    def _check_kind(self, member: tarfile.TarInfo, key: str) -> None:
        """Offset and size must give the content."""
        if member.isreg() and not member.issparse():
            return
        if member.issparse():
            kind, fix = "is sparse", "write the tar without --sparse"
        elif member.islnk() or member.issym():
            kind = f"is a {'hard' if member.islnk() else 'symbolic'} link to {_as_utf8(member.linkname)!r}"
            fix = "write the tar with --hard-dereference --dereference"
        else:
            kind, fix = "is no file", "remove it"
        raise DataError(
            f"{self._uri}: sample {key!r}: its .{self.suffix} member {kind}, but members are read by their offset: "
            f"{fix}"
        )

    def _check_adjacent(self, key: str) -> None:
        known = self._suffixes_by_key.get(key)
        if known is not None and self.suffix not in known:
            raise DataError(
                f"{self._uri}: sample {key!r}: its members are not adjacent (.{self.suffix} is apart from "
                f".{min(known)}): write the members of a sample one after the other, as `tar --sort=name` does"
            )


def _check_key(sample: TarSample, uri: str) -> None:
    """Refuse a sample whose members would be an image and its text if the key ended at the last dot."""
    if any("." not in suffix for suffix in sample.members):
        return
    ends = [suffix.rpartition(".") for suffix in sample.members]
    image = next((f"{head}.{last}" for head, _, last in ends if last in IMAGE_SUFFIXES), None)
    other = next(
        (
            f"{head}.{last}"
            for head, _, last in ends
            if image is not None and image.rpartition(".")[0] == head and last not in IMAGE_SUFFIXES
        ),
        None,
    )
    if other is not None:
        raise DataError(
            f"{uri}: sample {sample.key!r}: a key ends at the first dot, so .{image} and .{other} are read as "
            "suffixes, not as an image and its caption: write keys without dots"
        )


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
                stream = location.filesystem.open_input_stream(
                    location.path, compression=None, buffer_size=_STREAM_BUFFER_BYTES
                )
                archive = stack.enter_context(tarfile.open(fileobj=stack.enter_context(stream), mode="r|"))
            yield archive
    except FileNotFoundError:
        raise DataError(f"{work_unit.uri}: no such file") from None
    except tarfile.ReadError as error:
        with location.open_input() as file:
            head = bytes(file.read_at(min(file.size(), tarfile.BLOCKSIZE), 0))
        packed = next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), None)
        if packed is not None:
            raise DataError(
                f"{work_unit.uri}: {packed} data, not a plain tar: unpack it, because training reads single members "
                "by their offset"
            ) from None
        raise DataError(f"{work_unit.uri}: not a readable tar ({error}); replace or remove it") from None


def _as_utf8(name: str) -> str:
    """A member's name whose invalid UTF-8 (tarfile's surrogates) is written as escapes."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
