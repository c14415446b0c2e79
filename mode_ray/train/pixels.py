"""Untrusted images to pixels for training: torchvision's decoders where they are faster than PIL, PIL for the rest.

Both give the same pixels. The size is read from the header, before anything is decoded.
"""

import struct

import numpy as np
import torch
import torchvision.io

from mode_ray.errors import DataError
from mode_ray.images import decode_image, too_large

_PNG_HEAD = struct.Struct(">8s4x4sIIBB")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_RGB_OF_8_BITS = (8, 2)
_JPEG_START = b"\xff\xd8\xff"
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
_GREY_OR_COLOUR = (1, 3)  # components; what has four goes to PIL, which knows what they mean


def decode_pixels(data: bytes, max_pixels: int, place: str) -> torch.Tensor:
    """Decode to RGB, uint8 [3, h, w].

    Args:
        data: The encoded image.
        max_pixels: Larger images are refused before they are decoded.
        place: File and row, for the message.

    Raises:
        DataError: As `decode_image`.
    """
    size = fast_size(data)
    if size is not None:
        width, height = size
        if width * height > max_pixels:
            raise DataError(too_large(width, height, max_pixels, place))
        try:
            return _decode(data)
        except RuntimeError:
            pass  # damaged, or not as the header says: PIL decides, and words the reason
    pixels = np.array(decode_image(data, max_pixels, place))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _decode(data: bytes) -> torch.Tensor:
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)  # torch warns of bytes, which it may not write to
    decode = torchvision.io.decode_jpeg if data.startswith(_JPEG_START) else torchvision.io.decode_png
    pixels: torch.Tensor = decode(encoded, mode=torchvision.io.ImageReadMode.RGB)
    return pixels


def fast_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of an image that torchvision decodes as PIL does; None for all others."""
    if data.startswith(_JPEG_START):
        return _jpeg_size(data)
    if data.startswith(_PNG_SIGNATURE) and len(data) >= _PNG_HEAD.size:
        _, kind, width, height, *depth = _PNG_HEAD.unpack_from(data)
        if kind == b"IHDR" and tuple(depth) == _PNG_RGB_OF_8_BITS:
            return width, height
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height by the frame header, which stands behind segments of known length."""
    at, end = 2, len(data) - 9
    while at < end and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAME_MARKERS:
            height, width, components = struct.unpack_from(">HHB", data, at + 5)
            return (width, height) if components in _GREY_OR_COLOUR and width and height else None
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _STANDALONE_MARKERS:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None
