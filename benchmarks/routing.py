"""Routing a task of 1,000 classes takes a fraction of a second, and gives what the bare formula gives.

Peer: the soft rule (paper section 3.3, but with a softmax over all centers) as three lines of float32 torch,
the least that it can cost. Ours adds the checks, the float64 sums and the per-class diagnostics.
"""

import numpy as np
import numpy.typing as npt
import torch
from frame import alternate, arguments, finish

from mode_ray.config.evaluate import RoutingConfig
from mode_ray.routing.weights import ExpertCenters, routing_weights

CLASSES = 1000
CENTERS = 1024
DIMENSIONS = 768
EXPERTS = 4


def unit_rows(generator: np.random.Generator, rows: int) -> npt.NDArray[np.float32]:
    """Random unit rows, float32 [rows, DIMENSIONS]."""
    values = generator.standard_normal((rows, DIMENSIONS), dtype=np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def plain_torch_soft(
    text_embeddings_ld: torch.Tensor, centers_md: torch.Tensor, group_m: torch.Tensor, temperature: float
) -> torch.Tensor:
    """p(c | task) as one would write it at first: [EXPERTS]."""
    squared_lm = torch.cdist(text_embeddings_ld, centers_md).square()
    share_m = torch.softmax(-squared_lm / temperature, dim=1).mean(dim=0)
    return torch.zeros(EXPERTS).index_add(0, group_m, share_m)


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    rounds = options.repeats or (5 if options.quick else 30)
    generator = np.random.default_rng(0)
    texts_ld, centers_md = unit_rows(generator, CLASSES), unit_rows(generator, CENTERS)
    # Each text lies near a center, as captions do, and more of them near the first experts' centers: random
    # directions would be equally far from everything, and any wrong rule would look right.
    near = (CENTERS * generator.random(CLASSES) ** 3).astype(np.int64)
    texts_ld += 2.0 * centers_md[near]
    texts_ld /= np.linalg.norm(texts_ld, axis=1, keepdims=True)
    group_m = np.arange(CENTERS) * EXPERTS // CENTERS
    config = RoutingConfig(rule="soft")
    texts, centers, groups = (torch.from_numpy(array) for array in (texts_ld, centers_md, group_m))

    expert_centers = ExpertCenters(centers_md, group_m)
    ours_c = routing_weights(texts_ld, expert_centers, config).weights_c
    theirs_c = plain_torch_soft(texts, centers, groups, config.temperature).numpy()
    timings = alternate(
        lambda: routing_weights(texts_ld, expert_centers, config),
        {"plain_torch": lambda: plain_torch_soft(texts, centers, groups, config.temperature)},
        rounds,
    )
    for name, seconds in timings.median_seconds.items():
        print(f"{name:12} {1000 * seconds:8.2f} ms a task of {CLASSES} classes")
    finish(
        "routing",
        {
            "soft_vs_plain_torch": timings.speed_up("plain_torch"),
            "max_abs_difference": float(np.abs(ours_c - theirs_c).max()),
        },
        {
            "classes": CLASSES,
            "centers": CENTERS,
            "dimensions": DIMENSIONS,
            "experts": EXPERTS,
            "rounds": rounds,
            "weights_c": ours_c.round(4).tolist(),
            "median_seconds": timings.median_seconds,
            "torch_threads": torch.get_num_threads(),
        },
    )


if __name__ == "__main__":
    main()
