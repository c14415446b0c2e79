"""The notation of paths, as pure functions: URIs, `~`, relative paths, `{00000..00012}`, `{a,b}`, `a::b`, wildcards.

The functions never read a file system. Where a name that exists goes before the notation, the caller passes a function
that checks whether a path exists.
"""

import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from mode_ray.errors import UsageError

REMOTE_SCHEMES = ("s3", "gs", "gcs")
ANONYMOUS = "anonymous"
SEPARATOR = "::"
MAX_PATHS = 1_000_000
"""Most paths that the braces of one path may expand to."""
_WILDCARDS = frozenset("*?[")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_LETTERS = re.compile(r"([A-Za-z])\.\.([A-Za-z])")
_LOST_SLASH = re.compile(r"(s3|gs|gcs):/(?!/)")
_OBJECT = re.compile(r"\b(?:s3|gs)://[^\s'\"|;]+")
_ASCII = "".join(chr(code) for code in range(0x20, 0x7F))
_HINTS = {
    "http": "files are not fetched over HTTP; download it, or name a local path, s3://… or gs://…",
    "https": "files are not fetched over HTTP; download it, or name a local path, s3://… or gs://…",
    "s3a": "write s3://…",
    "s3n": "write s3://…",
    "hf": "download it with the `hf` command of huggingface_hub, and name the local path",
}


@dataclass(frozen=True)
class PathPattern:
    """One path after the expansion of its notation.

    Attributes:
        base: Canonical URI whose characters are taken as written.
        rest: The parts below `base`, the first of them with a wildcard; empty if there is no wildcard.
    """

    base: str
    rest: str = ""

    @property
    def uri(self) -> str:
        """The whole path."""
        return f"{self.base.rstrip('/')}/{self.rest}" if self.rest else self.base


def parse_path(text: str) -> str:
    """The canonical form of a path or URI.

    Relative paths are relative to the working directory, `~` is the home directory, and file URIs are
    percent-encoded.

    Returns:
        An absolute local path, or `scheme://bucket/path`, without a trailing slash.

    Raises:
        UsageError: The path cannot be meant: unknown scheme, no bucket, an empty part between two slashes, a file URI
            with a host, credentials in a URI, a shell command, or characters that are not UTF-8.
    """
    if not text or "\0" in text or text != text.encode(errors="replace").decode():
        raise UsageError(f"{text!a}: not a path: it is empty, or has a zero byte or is not UTF-8")
    if text.startswith("pipe:"):
        named = _OBJECT.search(text)
        instead = named.group() if named else "the file, local, s3://… or gs://…"
        raise UsageError(f"{text}: shell commands are not run; name {instead}")
    lost = _LOST_SLASH.match(text)
    if lost:
        raise UsageError(f"{text}: one slash is missing; write {lost[1]}://{text[lost.end() :]}")
    if text.startswith("file:"):
        return _file_path(text)
    if "://" not in text:
        return str(Path(os.path.expanduser(text)).absolute())  # noqa: PTH111  (pathlib raises for names such as ~x)
    return _remote_uri(text)


def _file_path(text: str) -> str:
    """The path of `file:///PATH`, `file://localhost/PATH` or `file:/PATH`."""
    path = text.removeprefix("file:")
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host not in ("", "localhost"):
            raise UsageError(f"{text}: {host!r} is read as a host; write file:///PATH")
        path = slash + path
    try:
        decoded = unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise UsageError(f"{text}: its percent-encoded characters are not UTF-8") from None
    if not decoded.startswith("/") or "\0" in decoded:
        raise UsageError(f"{text}: not an absolute path; write file:///PATH")
    return str(Path(decoded).absolute())


def _remote_uri(text: str) -> str:
    scheme, _, below = text.partition("://")
    scheme = scheme.lower()
    if scheme not in REMOTE_SCHEMES:
        hint = _HINTS.get(scheme, "use a local path, s3://… or gs://…")
        raise UsageError(f"{text}: unknown scheme {scheme!r}; {hint}")
    bucket, _, path = below.rstrip("/").partition("/")
    user, at, bucket_name = bucket.rpartition("@")
    if at and user != ANONYMOUS:
        raise UsageError(
            f"{scheme}://…@{bucket_name}: credentials do not belong in a URI, which is stored in the run directory; "
            f"set AWS_ACCESS_KEY_ID and so on, or write {scheme}://{ANONYMOUS}@{bucket_name} to read without any"
        )
    if not bucket_name:
        raise UsageError(f"{text}: the bucket is missing; write {scheme}://BUCKET/PATH")
    uri = f"{scheme}://{bucket}/{path}" if path else f"{scheme}://{bucket}"
    if "//" in f"/{path}":
        fixed = "/".join(part for part in path.split("/") if part)
        raise UsageError(f"{text}: has an empty part between two slashes; write {scheme}://{bucket}/{fixed}")
    return uri


def bucket_of(uri: str) -> tuple[str, str, bool]:
    """Scheme, bucket, and whether `anonymous@` is before the bucket, of a canonical remote URI."""
    parts = urlsplit(uri)
    user, _, bucket = parts.netloc.rpartition("@")
    return parts.scheme, bucket, user == ANONYMOUS


def join_path(folder: str, text: str) -> str:
    """The canonical form of a path that is relative to a folder, unless it is absolute, a URI, or begins with `~`.

    Args:
        folder: Canonical URI.
        text: As for `parse_path`.

    Raises:
        UsageError: As `parse_path`.
    """
    relative = text and not text.startswith(("/", "~", "file:", "pipe:")) and not _LOST_SLASH.match(text)
    if not relative or _SCHEME.match(text):
        return parse_path(text)
    if "://" not in folder:
        return parse_path(posixpath.normpath(f"{folder}/{text}"))
    scheme, below = folder.split("://", 1)
    return parse_path(f"{scheme}://{posixpath.normpath(f'{below}/{text}')}")


def expand_path(text: str, resolve: Callable[[str], str], exists: Callable[[str], bool]) -> list[PathPattern]:
    """The paths that one text names, in order.

    `a::b` are two texts. `{00000..00012}` and `{a,b}` are expanded as by bash. A leading part of the path that exists
    with these characters, or with wildcards, is taken as written.

    Args:
        text: One entry of a list of paths.
        resolve: Gives the canonical URI of a text: `parse_path`, or `join_path` of a folder.
        exists: Whether something of a canonical URI exists. It is called only for parts with notation.

    Raises:
        UsageError: As `parse_path`, or the braces expand to more than `MAX_PATHS` paths.
    """
    if SEPARATOR in text and _is_joined(text, resolve, exists):
        return [found for piece in text.split(SEPARATOR) for found in expand_path(piece, resolve, exists)]
    found: list[PathPattern] = []
    literal, rest = _split_existing(resolve(text), exists)
    expanded = list(islice(expand_braces(rest), MAX_PATHS + 1))
    if len(expanded) > MAX_PATHS:
        raise UsageError(f"{text}: its braces expand to more than {MAX_PATHS} paths")
    for one in expanded:
        base, below = _split_existing(f"{literal}{one}", exists) if has_wildcards(one) else (f"{literal}{one}", "")
        if base.endswith("://"):
            raise UsageError(f"{text}: the name of a bucket cannot have wildcards; name each bucket")
        found.append(PathPattern(base.rstrip("/") or "/", below))
    return found


def _is_joined(text: str, resolve: Callable[[str], str], exists: Callable[[str], bool]) -> bool:
    """Whether the separator joins two paths, rather than being part of a name that exists."""
    if _SCHEME.search(text.partition(SEPARATOR)[2]):
        return True
    return SEPARATOR in _split_existing(resolve(text), exists)[1]


def _split_existing(uri: str, exists: Callable[[str], bool]) -> tuple[str, str]:
    """The leading parts of a canonical URI that are taken as written, ending with a slash, and the other parts.

    The other parts begin with the first part that has notation and does not exist under that name.
    """
    parts = uri.split("/")
    first = 1 if uri.startswith("/") else 3  # the bucket of a remote URI is never looked up
    for place, part in enumerate(parts):
        if _has_notation(part) and (place < first or not exists("/".join(parts[: place + 1]))):
            return "".join(f"{before}/" for before in parts[:place]), "/".join(parts[place:])
    return uri, ""


def _has_notation(part: str) -> bool:
    return has_wildcards(part) or SEPARATOR in part or "{" in part


def has_wildcards(text: str) -> bool:
    """Whether a text contains `*`, `?` or `[`."""
    return not _WILDCARDS.isdisjoint(text)


def expand_braces(text: str) -> Iterator[str]:
    """Expand `{00000..00012}`, `{0..9..3}`, `{a..e}` and `{a,b}` as bash does; other braces are kept."""
    for start, end in _groups(text):
        items = _items(text[start + 1 : end])
        if items is not None:
            head, tail = text[:start], text[end + 1 :]
            for item in items:
                for rest in expand_braces(tail):
                    yield f"{head}{item}{rest}"
            return
    yield text


def _groups(text: str) -> Iterator[tuple[int, int]]:
    """Positions of the matching braces, in the order of the opening ones."""
    opened: list[int] = []
    found = []
    for place, character in enumerate(text):
        if character == "{":
            opened.append(place)
        elif character == "}" and opened:
            found.append((opened.pop(), place))
    yield from sorted(found)


def _items(body: str) -> Iterable[str] | None:
    """What the content of braces stands for; None if it is neither a range nor a list."""
    numbers, letters = _NUMBERS.fullmatch(body), _LETTERS.fullmatch(body)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        step = abs(int(numbers[3] or 1)) or 1
        padded = any(re.match(r"-?0\d", end) for end in numbers.groups()[:2])
        width = max(len(numbers[1]), len(numbers[2])) if padded else 0
        found = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        return (f"{number:0{width}d}" for number in found)
    if letters:
        first, last = ord(letters[1]), ord(letters[2])
        return map(chr, range(first, last + 1) if first <= last else range(first, last - 1, -1))
    choices = _choices(body)
    return None if len(choices) < 2 else (one for choice in choices for one in expand_braces(choice))


def _choices(body: str) -> list[str]:
    """The parts of a list, split at the commas outside inner braces."""
    depth, choices = 0, [""]
    for character in body:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            choices.append("")
        else:
            choices[-1] += character
    return choices


def is_hidden(name: str) -> bool:
    """Whether a name marks a file or directory that is not data: `_SUCCESS`, `_temporary`, `_delta_log`, `.crc` files.

    The rule of Spark and Hive: names that begin with `_` or `.`, except partitions such as `_year=2026`.
    """
    return name.startswith(".") or (name.startswith("_") and "=" not in name) or name.endswith("._COPYING_")


def matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match the parts of a pattern with wildcards.

    `**` matches any number of directories. A wildcard matches a hidden name only if the pattern's part begins with the
    same `_` or `.`, as in a shell.
    """
    if not pattern:
        return not parts
    if pattern[0] == "**":
        deep = bool(parts) and not is_hidden(parts[0]) and matches(parts[1:], pattern)
        return matches(parts, pattern[1:]) or deep
    return bool(parts) and _matches_part(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def _matches_part(name: str, pattern: str) -> bool:
    if is_hidden(name) and name != pattern and pattern[:1] != name[:1]:
        return False
    return name == pattern or fnmatchcase(name, pattern)


def as_ascii(uri: str) -> str:
    """A URI whose other characters than printable ASCII are percent-encoded, for labels of metrics."""
    return quote(uri, safe=_ASCII)
