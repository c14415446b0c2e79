"""Nothing that shows the same thing, or looks the same, lies on both sides of the split."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mode_ray.demo.pairs import SIDE_PIXELS, ink_share, on_white
from mode_ray.demo.split import group_drawings, hold_out


def _noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def test_images_of_one_concept_or_with_the_same_look_are_one_group() -> None:
    pixels = _noise(5)
    pixels[3] = pixels[0] ^ 1
    groups = group_drawings(["lamp", "lamp", "cat", "torch", "dog"], pixels)
    assert groups[0] == groups[1] == groups[3]
    assert len({int(groups[0]), int(groups[2]), int(groups[4])}) == 3


def test_images_of_one_design_stay_apart() -> None:
    pixels = _noise(1).repeat(2, axis=0)
    pixels[1, 20:36, 20:36] = 255 - pixels[1, 20:36, 20:36]
    groups = group_drawings(["pod", "node"], pixels)
    assert groups[0] != groups[1]


def test_whole_groups_are_held_out_and_every_stratum_gives_its_share() -> None:
    groups = np.repeat(np.arange(200), 3)
    keys = [f"key-{row:03d}" for row in range(600)]
    strata = [("animals", "plants", "tools", "flags")[int(group) % 4] for group in groups]
    chosen = hold_out(groups, keys, strata, share=0.12, seed=0)
    assert chosen.sum() == 24 * 3
    assert all(len(set(chosen[groups == group])) == 1 for group in range(200))
    for stratum in set(strata):
        assert chosen[np.array(strata) == stratum].sum() == 6 * 3


def test_the_seed_decides_which_groups_are_held_out() -> None:
    groups = np.arange(100)
    keys = [f"key-{row:03d}" for row in range(100)]
    one, again, other = (hold_out(groups, keys, ["all"] * 100, 0.12, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_transparent_images_of_any_shape_are_centred_on_white() -> None:
    flat = Image.new("RGBA", (200, 50), (255, 0, 0, 255))
    pixels = np.asarray(on_white(flat))
    assert pixels.shape == (SIDE_PIXELS, SIDE_PIXELS, 3)
    assert (pixels[:20] == 255).all()
    assert (pixels[32] == (255, 0, 0)).all()
    assert (np.asarray(on_white(Image.new("RGBA", (30, 30), (0, 0, 0, 0)))) == 255).all()


def test_white_on_transparent_has_no_ink() -> None:
    assert ink_share(np.asarray(on_white(Image.new("RGBA", (30, 30), (255, 255, 255, 255))))) == 0.0
    assert ink_share(np.asarray(on_white(Image.new("RGB", (30, 30), "navy")))) == 1.0
