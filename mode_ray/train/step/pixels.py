"""Untrusted images to pixels for training: libjpeg-turbo (simplejpeg) for JPEG files, PIL for other formats.

Both decoders give the same pixels of a JPEG. On small images PIL takes several times as long. The size is read from
the header and checked before anything is decoded.
"""

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch

from mode_ray.errors import DataError
from mode_ray.pairs.images import decode_image, too_large

_JPEG_START = b"\xff\xd8\xff"
_COLOUR_SPACES = frozenset({"YCbCr", "Gray", "RGB"})  # PIL decodes images with four channels


def decode_pixels(data: bytes, max_pixels: int, place: str) -> torch.Tensor:
    """Decode to RGB, uint8 [3, h, w].

    Raises:
        DataError: The image is of an unknown format, damaged, or too large.
    """
    pixels = _decode_jpeg(data, max_pixels, place) if data.startswith(_JPEG_START) else None
    if pixels is None:
        pixels = np.array(decode_image(data, max_pixels, place))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _decode_jpeg(data: bytes, max_pixels: int, place: str) -> npt.NDArray[np.uint8] | None:
    """RGB pixels [h, w, 3], or None for an image that PIL should decode or refuse."""
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
        if colour_space not in _COLOUR_SPACES:
            return None
        if width * height > max_pixels:
            raise DataError(too_large(width, height, max_pixels, place))
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None
    return pixels
