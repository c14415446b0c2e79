"""Captions to calibrate on: some shards of the run's own, or made-up captions where there are none yet."""

from itertools import islice

import numpy as np
import pyarrow as pa

from mode_ray.captions.listing import list_work_units
from mode_ray.config.run import CaptionsConfig, RunConfig
from mode_ray.errors import DataError
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

_SHARDS_READ = 64
_STAND_IN_ROWS = 50_000
_MEAN_STAND_IN_WORDS = 11
_STAND_IN_WORDS = (
    *("a", "the", "of", "with", "in", "on", "and", "for", "black", "white", "red", "blue", "new", "old", "vintage"),
    *("photo", "picture", "woman", "man", "child", "dog", "cat", "house", "street", "city", "table", "wall", "tree"),
    *(
        "water",
        "sky",
        "car",
        "bike",
        "phone",
        "book",
        "chair",
        "shirt",
        "dress",
        "shoes",
        "wooden",
        "modern",
        "kitchen",
    ),
    *("garden", "beach", "mountain", "summer", "winter", "wedding", "birthday", "design", "logo", "poster", "print"),
)


def captions_to_measure(config: RunConfig, scratch: Location) -> tuple[RunConfig, list[WorkUnit], str]:
    """The config with captions that are there, some of their shards, and in words what they are."""
    try:
        work_units = list_work_units(config.captions)
        source = f"captions of {config.captions.paths[0]}"
    except DataError:
        _write_stand_in(scratch / "captions" / "stand-in.parquet")
        captions = CaptionsConfig(paths=((scratch / "captions").uri,))
        config = config.model_copy(update={"captions": captions})
        work_units, source = list_work_units(captions), "made-up captions (nothing found at captions.paths)"
    chosen = np.random.default_rng(config.cluster.seed).permutation(len(work_units))[:_SHARDS_READ]
    return config, [work_units[index] for index in chosen], source


def _write_stand_in(location: Location) -> None:
    generator = np.random.default_rng(0)
    words = np.array(_STAND_IN_WORDS)
    lengths = 1 + generator.poisson(_MEAN_STAND_IN_WORDS - 1, _STAND_IN_ROWS)
    drawn = iter(generator.choice(words, lengths.sum()).tolist())
    captions = [" ".join(islice(drawn, length)) for length in lengths]
    location.write_table(pa.table({"caption": captions}))
