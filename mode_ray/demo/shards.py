"""WebDataset tars: the members of a pair are next to each other, and the same pairs give the same bytes."""

import io
import json
import tarfile
from collections.abc import Iterable

from mode_ray.demo.pairs import Drawing
from mode_ray.storage import Location


def write_shard(location: Location, drawings: Iterable[Drawing]) -> int:
    """Write pairs as `KEY.png`, `KEY.txt` (first caption), `KEY.json` (all captions, labels), atomically.

    Args:
        location: The tar to write.
        drawings: The pairs, in order.

    Returns:
        Number of pairs written.
    """
    count = 0
    with (
        location.open_atomic() as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for drawing in drawings:
            for suffix, data in _members(drawing):
                # TarInfo's defaults (time 0, user 0, no names) make the bytes reproducible.
                info = tarfile.TarInfo(f"{drawing.pair.key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            count += 1
    return count


def _members(drawing: Drawing) -> tuple[tuple[str, bytes], ...]:
    pair = drawing.pair
    record = {"captions": list(pair.captions), "domain": pair.domain, **pair.labels}
    return (
        ("png", drawing.png()),
        ("txt", pair.captions[0].encode()),
        ("json", json.dumps(record, ensure_ascii=False).encode()),
    )
