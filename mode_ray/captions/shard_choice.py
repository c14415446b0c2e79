"""Chooses the shards among the files of a directory or wildcard, by their formats."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from mode_ray.errors import DataError
from mode_ray.stages.work_unit import ShardFormat, suffix_format
from mode_ray.storage import FileEntry

PACKED_TAR = "a compressed tar: unpack it (gunzip for gzip), because training reads single members by their offset"
_PACKED_TAR_NAME = re.compile(r".+\.(tar\.(gz|bz2|xz|zst|lz4|z)|tgz|tbz2?|txz|tzst)", re.IGNORECASE)
_SUFFIXES_NAMED = 5


def is_packed_tar(name: str) -> bool:
    """Whether a file's name says that it is a compressed tar."""
    return _PACKED_TAR_NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class ShardChoice:
    """The rule for the files of one directory or wildcard.

    Attributes:
        shard_format: `captions.format`: a format, or `auto`.
        formats: The formats that the caller can use; files of others are ignored.
        say: Called with one sentence about files that are left out.
    """

    shard_format: str
    formats: Collection[ShardFormat]
    say: Callable[[str], None]

    def choose(self, place: str, files: Sequence[FileEntry]) -> list[FileEntry]:
        """The shards among some files; none if no file has a known suffix.

        If the files have several formats, `captions.format` decides. Without it, tars are chosen if every other file
        has the name of a tar beside it, as the metadata of img2dataset do.

        Raises:
            DataError: There are several formats, and none can be chosen.
        """
        by_format: dict[ShardFormat, list[FileEntry]] = {}
        for file in files:
            found = suffix_format(file.location.name)
            if found is not None and found in self.formats:
                by_format.setdefault(found, []).append(file)
        packed = [file for file in files if is_packed_tar(file.location.name)]
        if packed and by_format:
            self.say(f"{place}: {_count(packed)} left out; {packed[0].location.name} is {PACKED_TAR}")
        if len(by_format) < 2:
            return [file for chosen in by_format.values() for file in chosen]
        chosen = next((one for one in by_format if one == self.shard_format), None)
        why = "captions.format"
        if chosen is None and self.shard_format != "auto":
            return [file for of_format in by_format.values() for file in of_format]
        if chosen is None:
            if not _are_metadata(by_format):
                held = _count([file for of_format in by_format.values() for file in of_format])
                raise DataError(
                    f"{place}: holds several formats ({held}): set captions.format, or name the files of one format "
                    "with a wildcard such as *.tar"
                )
            chosen, why = "webdataset", "metadata: each has the name of a tar beside it"
        left_out = [file for one, of_format in by_format.items() if one != chosen for file in of_format]
        self.say(f"{place}: {_count(by_format[chosen])} read, {_count(left_out)} left out ({why})")
        return by_format[chosen]


def nothing_found(files: Sequence[FileEntry]) -> str:
    """Why a directory with some files has no shard."""
    packed = next((file for file in files if is_packed_tar(file.location.name)), None)
    if packed is not None:
        return f"{packed.location.name} is {PACKED_TAR}"
    return f"this directory contains no .parquet, .tar, .jsonl, .csv or .tsv file{_found_instead(files)}"


def _found_instead(files: Sequence[FileEntry]) -> str:
    return f" (it contains {_count(files)})" if files else ""


def _are_metadata(by_format: dict[ShardFormat, list[FileEntry]]) -> bool:
    """Whether every file that is no tar has the name of a tar beside it, but for the suffix."""
    tars = {file.location.uri.rpartition(".")[0] for file in by_format.get("webdataset", ())}
    others = [file for one, of_format in by_format.items() if one != "webdataset" for file in of_format]
    return all(re.sub(r"\.[^./]+(\.(gz|bz2|xz|zst))?$", "", file.location.uri) in tars for file in others)


def _count(files: Sequence[FileEntry]) -> str:
    """`3 .tar, 2 .parquet files`."""
    suffixes = Counter(f".{file.location.name.rpartition('.')[2]}" for file in files)
    shown = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(_SUFFIXES_NAMED))
    return f"{shown}{', …' if len(suffixes) > _SUFFIXES_NAMED else ''} {'file' if len(files) == 1 else 'files'}"
