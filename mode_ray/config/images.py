"""The section `images`: how encoded images become pixels."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mode_ray.config.base import Settings


class ImagesConfig(Settings):
    """How encoded images become pixels: the same in training, evaluation, index and serving."""

    decoding: Literal["standard", "open_clip"] = "standard"
    """`standard`: the orientation of EXIF is applied, transparent pixels are composed on `background`, and grey of 16
    bits is scaled to 8. `open_clip`: none of these, for results that equal open_clip's exactly. docs/inputs.md lists
    the differences."""
    background: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] = "#ffffff"
    """The color behind transparent pixels, as `#rrggbb`."""
    added: ClassVar[frozenset[str]] = frozenset({"decoding", "background"})
