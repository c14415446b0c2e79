"""The size of a slice follows from how long slices take."""

import numpy as np

from mode_ray.serve.service.turns import Rows, Turns


class Model:
    """Takes a fixed time per text, on a clock of its own."""

    def __init__(self, seconds_per_text: float) -> None:
        self.now = 0.0
        self._seconds_per_text = seconds_per_text

    def encode(self, texts: list[str]) -> Rows:
        self.now += self._seconds_per_text * len(texts)
        return np.zeros((len(texts), 1), np.float32)


def settled(seconds_per_text: float, texts: int = 1000) -> int:
    model = Model(seconds_per_text)
    turns = Turns(seconds=0.2, clock=lambda: model.now)
    for _ in range(20):
        turns.encode(model.encode, ["text"] * min(texts, turns.size))  # type: ignore[arg-type]
    return turns.size


def test_a_slice_takes_between_half_a_turn_and_a_turn() -> None:
    assert settled(0.01) == 16
    assert settled(0.02) == 8
    assert settled(0.002) == 64


def test_it_has_bounds() -> None:
    assert settled(1e-6) == 256
    assert settled(5.0) == 4


def test_short_requests_say_nothing_about_larger_slices() -> None:
    assert settled(0.001, texts=3) == 16
