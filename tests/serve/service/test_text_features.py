"""A bounded cache of text features."""

from collections.abc import Sequence

import torch

from mode_ray.models.shared_trunks import Trunk
from mode_ray.serve.service.text_features import TextFeatures

ROW_BYTES = 2 * 4


class Lengths:
    """Features that are the lengths of texts; remembers which texts it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        self.asked += texts
        return torch.tensor([[float(len(text)), 1.0] for text in texts])


def test_a_text_is_computed_once_for_each_trunk_and_comes_back_in_its_place() -> None:
    cache, compute = TextFeatures(), Lengths()
    one, other = Trunk({}, {}), Trunk({}, {})
    assert cache.get(one, ["a", "bb", "a"], compute)[:, 0].tolist() == [1.0, 2.0, 1.0]
    assert cache.get(one, ["ccc", "bb"], compute)[:, 0].tolist() == [3.0, 2.0]
    assert compute.asked == ["a", "bb", "ccc"]
    cache.get(other, ["a"], compute)
    assert compute.asked == ["a", "bb", "ccc", "a"]


def test_what_was_not_used_for_longest_is_dropped() -> None:
    cache, compute = TextFeatures(most_bytes=2 * ROW_BYTES), Lengths()
    trunk = Trunk({}, {})
    for text in ("a", "bb", "a", "ccc", "a", "bb"):
        cache.get(trunk, [text], compute)
    assert compute.asked == ["a", "bb", "ccc", "bb"]
    assert cache.get(trunk, ["a", "dddd", "eeeee"], compute)[:, 0].tolist() == [1.0, 4.0, 5.0], "more than are kept"
