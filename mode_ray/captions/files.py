"""Finds the files of a config's paths: files, directories, wildcards, and listings of these.

A directory or wildcard is listed once, which also gives sizes and times. Files are looked up one by one only if few
files of a directory are named.
"""

import posixpath
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.fs

from mode_ray.errors import DataError, UsageError
from mode_ray.storage import FileEntry, Location

LISTING_SUFFIXES = (".txt", ".list")
MAX_LISTING_BYTES = 128 << 20
_LIST_DIRECTORY_ABOVE = 16
_LISTERS = 16


@dataclass(frozen=True)
class _Named:
    """A path, and where it is named: `captions.paths`, or a line of a listing."""

    text: str
    place: str
    location: Location


def find_files(paths: Sequence[str], belongs: Callable[[str], bool]) -> list[FileEntry]:
    """Find the files of paths, with their sizes and times, in the order of the paths.

    A path that ends in `.txt` or `.list` is a listing with one path, URI or wildcard per line. `#` comments and empty
    lines are skipped. Relative lines are relative to the listing's folder.

    Args:
        paths: As in `captions.paths`.
        belongs: Whether to include a file of a directory, by its name. Files named directly are always included.

    Raises:
        DataError: A path does not exist or matches nothing, or a listing cannot be read; names the path or line.
    """
    named = [one for path in paths for one in _read_paths(path)]
    plain = [one.location for one in named if not one.location.has_wildcards]
    described = _describe(plain)
    found: list[FileEntry] = []
    for one in named:
        found += _found(one, described, belongs)
    return found


def _found(
    one: _Named, described: dict[Location, pyarrow.fs.FileInfo], belongs: Callable[[str], bool]
) -> list[FileEntry]:
    try:
        if one.location.has_wildcards:
            entries = one.location.glob_entries()
        else:
            info = described.get(one.location)
            if info is not None and info.type == pyarrow.fs.FileType.Directory:
                inside = [file for file in one.location.entries(recursive=True) if belongs(file.location.name)]
                if not inside:
                    raise DataError(
                        f"{one.place}: {one.text}: this directory contains no .parquet, .tar, .jsonl, .csv or .tsv "
                        "file"
                    )
                return inside
            is_file = info is not None and info.type == pyarrow.fs.FileType.File
            entries = [FileEntry.of(one.location, info)] if is_file else []
    except OSError as error:
        raise DataError(f"{one.place}: {one.text}: cannot be listed ({error})") from None
    if not entries:
        raise DataError(f"{one.place}: {one.text}: no such file, and nothing matches it")
    return entries


def _describe(locations: Sequence[Location]) -> dict[Location, pyarrow.fs.FileInfo]:
    """File information by location; many locations of a directory are looked up in one listing of it."""
    by_parent = defaultdict(list)
    for location in locations:
        by_parent[location.parent].append(location)

    def describe(item: tuple[Location, list[Location]]) -> list[tuple[Location, pyarrow.fs.FileInfo]]:
        parent, children = item
        try:
            if len(children) <= _LIST_DIRECTORY_ABOVE:
                infos = parent.filesystem.get_file_info([child.path for child in children])
                return list(zip(children, infos, strict=True))
            selector = pyarrow.fs.FileSelector(parent.path, allow_not_found=True)
            by_path = {info.path.rstrip("/"): info for info in parent.filesystem.get_file_info(selector)}
        except OSError as error:
            raise DataError(f"captions.paths: {parent}: cannot be listed ({error})") from None
        return [(child, by_path[child.path]) for child in children if child.path in by_path]

    with ThreadPoolExecutor(_LISTERS) as listers:
        return dict(pair for pairs in listers.map(describe, by_parent.items()) for pair in pairs)


def _read_paths(path: str) -> list[_Named]:
    """The path itself, or the lines of the listing at the path."""
    location = Location.parse(path)
    if not _is_listing(path):
        return [_Named(path, "captions.paths", location)]
    lines = _listing_text(path, location).splitlines()
    named = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        place = f"{location}: line {number}"
        if _is_listing(text):
            raise DataError(f"{place}: {text}: a listing cannot name another listing; add it to captions.paths")
        try:
            named.append(_Named(text, place, _beside(location, text)))
        except UsageError as error:
            raise DataError(f"{place}: {error}") from None
    if not named:
        raise DataError(f"captions.paths: {path}: the listing contains no path")
    return named


def _listing_text(path: str, location: Location) -> str:
    try:
        if location.size_bytes() > MAX_LISTING_BYTES:
            raise DataError(f"captions.paths: {path}: the listing has more than {MAX_LISTING_BYTES} bytes; split it")
        return location.read_text()
    except FileNotFoundError:
        raise DataError(f"captions.paths: {path}: no such file; expected a listing of paths") from None
    except UnicodeDecodeError as error:
        raise DataError(f"captions.paths: {path}: the listing is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise DataError(f"captions.paths: {path}: the listing cannot be read ({error})") from None


def _is_listing(path: str) -> bool:
    return path.lower().endswith(LISTING_SUFFIXES) and not Location(path).has_wildcards


def _beside(listing: Location, text: str) -> Location:
    """The location of a line; relative paths are relative to the listing's folder."""
    if "://" in text or text.startswith("/"):
        return Location.parse(text)
    if listing.is_local:
        return Location(posixpath.normpath(f"{listing.parent.path}/{text}"))
    scheme, folder = listing.parent.uri.split("://", 1)
    return Location(f"{scheme}://{posixpath.normpath(f'{folder}/{text}')}")
