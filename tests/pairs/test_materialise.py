"""A materialised set holds the same pairs as its index, distributed evenly, in tars that other trainers can read."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import read_captions
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.pairs.index import PairIndex, index_columns, index_rows
from mode_ray.pairs.index_files import write_index
from mode_ray.pairs.materialise import (
    MaterialisedSet,
    MaterialiseWorker,
    SourceIndex,
    captions_of_tars,
    image_suffix,
    places_of,
    tar_count,
    write_pairs,
)
from mode_ray.pairs.reader import Pair, PairReader
from mode_ray.stages.actor import UnitActor
from mode_ray.stages.work_unit import write_work_units
from mode_ray.storage import Location

PAIRS = 23


def encoded(number: int, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4 + number, 3), (number * 9, 0, 90)).save(buffer, form)
    return buffer.getvalue()


def image(number: int) -> bytes:
    """Every format, one image that is none, and one that is missing."""
    if number in (5, 6):
        return {5: b"", 6: b"<html>not found</html>"}[number]
    return encoded(number, ("JPEG", "PNG", "WEBP")[number % 3])


class Source:
    """A tar with several captions a pair in its .json members, and a parquet file, in one index."""

    def __init__(self, folder: Path) -> None:
        data = folder / "data"
        data.mkdir()
        with tarfile.open(data / "a.tar", "w") as archive:
            for number in range(12):
                captions = json.dumps({"caption": [f"pair {number}", f"again  {number}"]}).encode()
                for suffix, content in (("png", image(number)), ("json", captions)):
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        numbers = range(12, PAIRS)
        table = pa.table({"image": [image(n) for n in numbers], "caption": [f"pair {n}" for n in numbers]})
        pq.write_table(table, data / "b.parquet", row_group_size=4)
        self.captions = CaptionsConfig(
            paths=(f"{data}/a.tar", f"{data}/b.parquet"), caption_field="caption", select="all"
        )
        work_units = list_work_units(self.captions)
        root = Location(str(folder))
        self.folder = root / "all"
        write_work_units(root / "shards.parquet", work_units)
        schema = index_columns(tars=True)
        tables = [index_rows(read_captions(s, self.captions).table, n, schema) for n, s in enumerate(work_units)]
        write_index(root / "all.arrow", tables, {"members": "all"})
        self.index = SourceIndex(root / "all.arrow", root / "shards.parquet", {"members": "all"})

    def pairs(self) -> Counter[tuple[bytes, str]]:
        return contents(self.index.open(), self.captions)

    def tars(self, pairs_per_shard: int = 10, block_pairs: int = 1) -> MaterialisedSet:
        return MaterialisedSet(self.folder, self.index, pairs_per_shard, block_pairs)

    def make(self, tars: MaterialisedSet, least_shards: int = 1, only: int | None = None) -> int:
        """Materialise what is left (or the first of it); the number of tars made."""
        count = tars.begin(len(self.index.open()), least_shards)
        worker = MaterialiseWorker(self.index, self.captions, tars.block_pairs, count)
        left = tars.left(count)[:only]
        records = list(UnitActor(worker, tars.folder, tars.stage.attempt, 0).process(left)) if left else []
        assert [record.error for record in records] == [None] * len(left)
        if only is None:
            tars.finish(count)
        return len(left)


def contents(index: PairIndex, captions: CaptionsConfig) -> Counter[tuple[bytes, str]]:
    read = PairReader(index, captions).read(np.arange(len(index)))
    return Counter((pair.image, pair.caption) for pair in read)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


class TestSameSamples:
    @pytest.mark.parametrize("block", [1, 4, 100])
    def test_index_and_materialised_mode_hold_the_same_pairs(self, source: Source, block: int) -> None:
        tars = source.tars(block_pairs=block)
        source.make(tars)
        assert tars.is_done()
        expected = source.pairs()
        assert sum(expected.values()) == 35  # 12 pairs with two captions, 11 with one
        assert contents(tars.open(), captions_of_tars(source.captions)) == expected

    def test_they_are_shuffled_over_the_tars(self, source: Source) -> None:
        tars = source.tars(pairs_per_shard=5)
        source.make(tars)
        index = tars.open()
        pairs = PairReader(index, captions_of_tars(source.captions)).read(np.arange(len(index)))
        numbers = [int(pair.caption.split()[1]) for pair in pairs]
        assert numbers != sorted(numbers)
        for first in range(0, 35, 5):
            assert max(numbers[first : first + 5]) - min(numbers[first : first + 5]) > 4


class TestTars:
    def test_they_are_balanced_and_as_many_as_the_readers(self, source: Source) -> None:
        tars = source.tars(pairs_per_shard=10)
        assert source.make(tars, least_shards=6) == 6
        sizes = np.bincount(tars.open().columns_at(np.arange(35))["shard"])
        assert sorted(sizes.tolist()) == [5, 6, 6, 6, 6, 6]

    @pytest.mark.parametrize(
        ("pairs", "most", "least", "count"), [(35, 10, 1, 4), (35, 10, 8, 8), (3, 10, 8, 3), (40, 10, 1, 4)]
    )
    def test_how_many_there_are(self, pairs: int, most: int, least: int, count: int) -> None:
        assert tar_count(pairs, most, least) == count
        parts = [places_of(work_unit, count, pairs) for work_unit in range(count)]
        assert [place for part in parts for place in part] == list(range(pairs))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert max(map(len, parts)) <= most

    def test_webdataset_iterates_them(self, source: Source) -> None:
        tars = source.tars()
        source.make(tars)
        urls = [work_unit.uri for work_unit in tars.open().work_units]
        samples = list(webdataset.WebDataset(urls, shardshuffle=False))
        assert len({sample["__key__"] for sample in samples}) == len(samples) == 35
        found: Counter[tuple[bytes, str]] = Counter()
        for sample in samples:
            suffixes = [name for name in sample if name in ("jpg", "png", "webp")]
            assert len(suffixes) == 1
            found[sample[suffixes[0]], sample["txt"].decode()] += 1
        assert found == source.pairs()

    def test_the_suffix_names_the_format(self) -> None:
        forms = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
        assert {form: image_suffix(encoded(1, form)) for form in forms} == forms
        assert image_suffix(b"") == image_suffix(b"<html>") == "jpg"

    def test_offsets_are_those_of_the_members(self, tmp_path: Path) -> None:
        pairs = [Pair(b"x" * size, f"caption {size}", "") for size in (0, 1, 511, 512, 513, 70_000)]
        location = Location(str(tmp_path / "a.tar"))
        table = write_pairs(location, pairs, first_key=7)
        content = location.read_bytes()
        for row, pair in zip(table.to_pylist(), pairs, strict=True):
            assert content[row["image_offset"] :][: row["image_bytes"]] == pair.image
            assert content[row["caption_offset"] :][: row["caption_bytes"]] == pair.caption.encode()
        with tarfile.open(location.path) as archive:
            assert archive.getnames()[:2] == ["000000000007.jpg", "000000000007.txt"]
        write_pairs(location, pairs, first_key=7)
        assert location.read_bytes() == content


class TestGoingOn:
    def test_after_a_kill_only_what_is_missing_is_made(self, source: Source) -> None:
        tars = source.tars(pairs_per_shard=5)
        source.make(tars, only=3)
        assert not tars.is_done()
        with pytest.raises(DataError, match="missing; run `mode-ray train` again"):
            tars.open()
        kept = {file.name: file.read_bytes() for file in tars.folder.files() if file.name.endswith(".tar")}
        again = source.tars(pairs_per_shard=5)
        assert source.make(again) == 4
        assert contents(again.open(), captions_of_tars(source.captions)) == source.pairs()
        assert {name: (again.folder / name).read_bytes() for name in kept} == kept

    def test_what_was_begun_keeps_its_number_of_tars(self, source: Source) -> None:
        source.make(source.tars(), least_shards=6, only=2)
        assert source.tars().begin(35, least_shards=9) == 6

    def test_what_was_made_of_something_else_is_made_again(self, source: Source) -> None:
        source.make(source.tars())
        other = source.tars(pairs_per_shard=7)
        assert not other.is_done()
        with pytest.raises(DataError, match="made of other pairs_per_shard"):
            other.open()
        assert source.make(other) == 5
        assert len([file for file in other.folder.files() if file.name.endswith(".tar")]) == 5

    def test_a_set_that_was_never_begun_is_named(self, source: Source) -> None:
        with pytest.raises(DataError, match="all: not materialised; run `mode-ray train` again"):
            source.tars().open()

    def test_a_source_that_is_gone_is_the_units_reason(self, source: Source) -> None:
        tars = source.tars()
        count = tars.begin(35, 1)
        Location(source.captions.paths[0]).delete()
        worker = MaterialiseWorker(source.index, source.captions, 1, count)
        records: Sequence[Any] = list(UnitActor(worker, tars.folder, "now", 0).process(tars.left(count)))
        assert all("a.tar: no such file" in record.error for record in records)
