"""Finds the files of a config's paths: files, directories, wildcards, braces, and listings of these.

A directory or wildcard is listed once, which also gives sizes and times. Files are looked up one by one only if few
files of a directory are named. `mode_ray.util.path_notation` has the notation.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow.fs

from mode_ray.captions.shard_choice import ShardChoice, nothing_found
from mode_ray.errors import DataError, UsageError
from mode_ray.storage import FileEntry, Location
from mode_ray.util.path_notation import PathPattern, expand_path, is_hidden, join_path, parse_path

LISTING_SUFFIXES = (".txt", ".list")
MAX_LISTING_BYTES = 128 << 20
_LIST_DIRECTORY_ABOVE = 16
_LISTERS = 16


@dataclass(frozen=True)
class _Named:
    """One path of an entry of `captions.paths`, or of a line of a listing.

    Attributes:
        text: The entry or line.
        place: Where it is given, for messages.
        pattern: The path.
        is_alone: Whether the text names no other path.
    """

    text: str
    place: str
    pattern: PathPattern
    is_alone: bool

    @property
    def location(self) -> Location:
        """The path itself, or the directory above the first wildcard."""
        return Location(self.pattern.base)

    @property
    def shown(self) -> str:
        """Place, text and, if the text names several paths, the path, for messages."""
        return f"{self.place}: {self.text}" + ("" if self.is_alone else f": {self.pattern.uri}")


def find_files(paths: Sequence[str], choice: ShardChoice, field: str = "captions.paths") -> list[FileEntry]:
    """Find the files of paths, with their sizes and times, in the order of the paths.

    A path that ends in `.txt` or `.list` is a listing with one path, URI or wildcard per line. `#` comments and empty
    lines are skipped. Relative lines are relative to the listing's folder.

    Args:
        paths: As in `captions.paths`.
        choice: Which files of a directory or wildcard to include. Files named directly are always included.
        field: The config field, for messages.

    Raises:
        DataError: A path does not exist or matches nothing, or a listing cannot be read; names the path or line.
    """
    named = [one for path in paths for one in _read_paths(path, field)]
    described = _describe([one.location for one in named if not one.pattern.rest], field)
    found: list[FileEntry] = []
    for one in named:
        files = _found(one, described, choice)
        if not files:
            raise DataError(_missing(one, named, described))
        found += files
    return found


def find_roots(paths: Sequence[str]) -> list[Location]:
    """The directories of paths, in order, with braces and wildcards expanded; they are not opened.

    Raises:
        UsageError: A path cannot be meant, or its wildcards match nothing.
        OSError: The filesystem fails.
    """
    roots = []
    for text in paths:
        for pattern in expand_path(text, parse_path, path_exists):
            base = Location(pattern.base)
            matching = base.glob(pattern.rest, directories=True) if pattern.rest else []
            if pattern.rest and not matching:
                raise UsageError(f"{text}: no directory matches it")
            roots += [entry.location for entry in matching] or [base]
    return roots


def path_exists(uri: str) -> bool:
    """Whether something of a canonical URI exists; for `expand_path`."""
    return Location(uri).exists()


def _found(one: _Named, described: dict[Location, pyarrow.fs.FileInfo], choice: ShardChoice) -> list[FileEntry]:
    """The files of one path; none if nothing exists."""
    try:
        if one.pattern.rest:
            files = one.location.glob(one.pattern.rest)
            chosen = choice.choose(one.shown, files)
            directories = [] if chosen else one.location.glob(one.pattern.rest, directories=True)
            if not directories:
                return chosen or files
        else:
            info = described.get(one.location)
            if info is None or info.type == pyarrow.fs.FileType.NotFound:
                return []
            entry = FileEntry.of(one.location, info)
            if info.type == pyarrow.fs.FileType.File:
                return [entry]
            directories = [entry]
        inside = [file for directory in directories for file in _data_files(directory.location)]
    except OSError as error:
        raise DataError(f"{one.shown}: cannot be listed ({error})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{one.shown}: contains a name that is not UTF-8 ({error.object!r}): rename it") from None
    chosen = choice.choose(one.shown, inside)
    if not chosen:
        raise DataError(f"{one.shown}: {nothing_found(inside)}")
    return chosen


def _data_files(directory: Location) -> list[FileEntry]:
    """The files below a directory, except hidden ones such as `_SUCCESS` and those in `_temporary`."""
    below = len(directory.uri.rstrip("/")) + 1
    return [
        file
        for file in directory.entries(recursive=True)
        if not any(is_hidden(part) for part in file.location.uri[below:].split("/"))
    ]


def _missing(one: _Named, named: Sequence[_Named], described: dict[Location, pyarrow.fs.FileInfo]) -> str:
    """The message for a path of which nothing exists."""
    alike = [other for other in named if (other.text, other.place) == (one.text, one.place)]
    missing = [other for other in alike if not other.pattern.rest and not _is_there(other.location, described)]
    more = f" ({len(missing)} of its {len(alike)} paths are missing)" if len(missing) > 1 else ""
    return f"{one.shown}: no such file, and nothing matches it{more}"


def _is_there(location: Location, described: dict[Location, pyarrow.fs.FileInfo]) -> bool:
    info = described.get(location)
    return info is not None and bool(info.type != pyarrow.fs.FileType.NotFound)


def _describe(locations: Sequence[Location], field: str) -> dict[Location, pyarrow.fs.FileInfo]:
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
            raise DataError(f"{field}: {parent}: cannot be listed ({error})") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{field}: {parent}: contains a name that is not UTF-8 ({error.object!r})") from None
        return [(child, by_path[child.path]) for child in children if child.path in by_path]

    with ThreadPoolExecutor(_LISTERS) as listers:
        return dict(pair for pairs in listers.map(describe, by_parent.items()) for pair in pairs)


def _read_paths(path: str, field: str) -> list[_Named]:
    """The paths of one entry, and the lines of those that are listings."""
    named = []
    for one in _expanded(path, field, parse_path):
        named += _read_listing(one, field) if _is_listing(one.pattern) else [one]
    return named


def _expanded(text: str, place: str, resolve: Callable[[str], str]) -> list[_Named]:
    try:
        patterns = expand_path(text, resolve, path_exists)
    except UsageError as error:
        raise DataError(f"{place}: {error}") from None
    except OSError as error:
        raise DataError(f"{place}: {text}: cannot be listed ({error})") from None
    return [_Named(text, place, pattern, len(patterns) == 1) for pattern in patterns]


def _read_listing(listing: _Named, field: str) -> list[_Named]:
    location = listing.location
    lines = _listing_text(listing).splitlines()
    named = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        for one in _expanded(text, f"{location}: line {number}", partial(join_path, location.parent.uri)):
            if _is_listing(one.pattern):
                raise DataError(f"{one.shown}: a listing cannot name another listing; add it to {field}")
            named.append(one)
    if not named:
        raise DataError(f"{listing.shown}: the listing contains no path")
    return named


def _listing_text(listing: _Named) -> str:
    location = listing.location
    try:
        if location.size_bytes() > MAX_LISTING_BYTES:
            raise DataError(f"{listing.shown}: the listing has more than {MAX_LISTING_BYTES} bytes; split it")
        return location.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{listing.shown}: no such file; expected a listing of paths") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{listing.shown}: the listing is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{listing.shown}: the listing cannot be read ({error})") from None


def _is_listing(pattern: PathPattern) -> bool:
    return not pattern.rest and pattern.base.lower().endswith(LISTING_SUFFIXES)
