"""Values of a parquet column of images: encoded bytes, Hugging Face's structs, and paths of files."""

from mode_ray.errors import DataError
from mode_ray.storage import Location

MAX_IMAGE_BYTES = 256 << 20


class BadImageError(DataError):
    """One row has no usable image: the row is counted, and the others are used."""


def stored_image(value: object, column: str, image_root: str | None, place: str) -> bytes:
    """The encoded image of one row.

    Args:
        value: The column's value: bytes, a struct with `bytes` and `path`, a path, or a list with one of these.
        column: Name of the column, for messages.
        image_root: As `captions.image_root`: the folder that paths are relative to; None if paths are not read.
        place: File and row, for messages.

    Raises:
        BadImageError: The row has no image, or several, or its file does not exist.
        DataError: The column holds values of another kind.
    """
    place = f"{place}: column {column!r}"
    if isinstance(value, list):
        if len(value) > 1:
            raise BadImageError(f"{place} holds {len(value)} images; a pair has one")
        value = value[0] if value else None
    if isinstance(value, str) and image_root is None:
        raise DataError(
            f"{place} holds no image bytes but text; set captions.image_field to another column, or "
            "captions.image_root to the folder of the image files if these are their paths"
        )
    content, path = value, None
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
    elif isinstance(value, str):
        content, path = None, value
    if content is not None and not isinstance(content, bytes):
        raise DataError(f"{place} holds no image bytes but {type(content).__name__}; set captions.image_field")
    if content:
        return content
    if isinstance(path, str) and path:
        return _file_content(path, image_root, place)
    raise BadImageError(f"{place} holds no image")


def _file_content(path: str, image_root: str | None, place: str) -> bytes:
    if image_root is None:
        raise BadImageError(f"{place} holds only a path, {path!r}; set captions.image_root to its folder")
    # The data are untrusted: they may name files below the root only.
    if path.startswith(("/", "\\")) or "://" in path or ".." in path.replace("\\", "/").split("/"):
        raise BadImageError(f"{place}: {path!r} is not a path below captions.image_root")
    file = Location(image_root) / path
    try:
        size_bytes = file.size_bytes()
        if size_bytes > MAX_IMAGE_BYTES:
            raise BadImageError(f"{file}: {size_bytes:,} bytes; at most {MAX_IMAGE_BYTES:,} are read as one image")
        return file.read_bytes()
    except FileNotFoundError:
        raise BadImageError(f"{place}: {file}: no such file") from None
