"""Where a run reads its pairs: from the source shards, from tars of its own, or as features of locked trunks."""

from typing import Literal

from mode_ray.config.run import RunConfig

SourceMode = Literal["index", "materialised", "features"]


def source_mode(config: RunConfig) -> SourceMode:
    """`train.data.mode`; `auto` is `materialised` for GPUs that read from an object store, otherwise `index`."""
    mode = config.train.data.mode
    if mode != "auto":
        return mode
    places = (*config.captions.paths, config.captions.image_root or "")
    remote = any("://" in place and not place.startswith("file://") for place in places)
    return "materialised" if remote and config.train.placement.use_gpu else "index"


def read_block_pairs(config: RunConfig) -> int:
    """Neighbouring pairs that stay together when an epoch is shuffled."""
    data = config.train.data
    if source_mode(config) != "materialised" or data.read_block_pairs is None:
        return data.block_pairs
    return data.read_block_pairs


def sample_order_fields(config: RunConfig) -> dict[str, object]:
    """The fields that decide the order of samples, with the values that `auto` and None stand for.

    A checkpoint is valid for one order. Blocks as large as `block_pairs` are left out, as before version 0.2.0.
    """
    fields: dict[str, object] = {"train.data.mode": source_mode(config)}
    blocks = read_block_pairs(config)
    return fields if blocks == config.train.data.block_pairs else fields | {"train.data.read_block_pairs": blocks}
