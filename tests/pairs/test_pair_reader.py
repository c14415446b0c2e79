"""Single pairs come out of tars and parquet files as they were assigned; what changed since is named."""

import io
import json
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import read_captions
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import DataError
from mode_ray.pairs.index import SHARD, PairIndex
from mode_ray.pairs.order import SampleOrder
from mode_ray.pairs.reader import PairReader
from mode_ray.storage import Location


def image(number: int) -> bytes:
    """Bytes that tell the pair."""
    return f"image {number} ".encode() * (number + 1)


def tar_bytes(captions: Sequence[str | bytes], first: int = 0, suffix: str = "txt") -> bytes:
    """A tar of pairs `first`, `first + 1`, …"""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number, caption in enumerate(captions, first):
            text = caption.encode() if isinstance(caption, str) else caption
            for name, content in ((f"{number:04d}.jpg", image(number)), (f"{number:04d}.{suffix}", text)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def index_of(config: CaptionsConfig) -> tuple[PairIndex, list[str]]:
    """The index of all pairs, and the captions that were embedded."""
    work_units = list_work_units(config)
    tables = []
    for number, work_unit in enumerate(work_units):
        table = read_captions(work_unit, config).table
        tables.append(table.add_column(0, SHARD, pa.array(np.full(table.num_rows, number, np.int32))))
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    return PairIndex.of(tuple(work_units), table.drop_columns(["key", "caption"])), table["caption"].to_pylist()


def reader_of(*paths: Path | str, **settings: Any) -> tuple[PairReader, list[str]]:  # noqa: ANN401  (config fields)
    """A reader over all pairs, and their captions."""
    config = CaptionsConfig(paths=tuple(str(path) for path in paths), **settings)
    index, captions = index_of(config)
    return PairReader(index, config), captions


def write_parquet(folder: Path, columns: dict[str, Any], group_rows: int = 2) -> Path:
    """A parquet file of these columns."""
    file = folder / "pairs.parquet"
    pq.write_table(pa.table(columns), file, row_group_size=group_rows)
    return file


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder of each kind."""
    return Location(str(tmp_path)) if request.param == "local" else Location.parse(request.getfixturevalue("bucket"))


class TestTars:
    def test_every_pair_by_its_offsets_in_the_order_asked_for(self, folder: Location) -> None:
        (folder / "a.tar").write_bytes(tar_bytes(["a  cat", "", "ein\u00a0Hündchen"]))
        (folder / "b.tar").write_bytes(tar_bytes(["a dog", "\ufeff a bird"], first=3))
        reader, captions = reader_of(folder.uri)
        assert captions == ["a cat", "ein Hündchen", "a dog", "a bird"], "the empty one was refused"
        numbers = [0, 2, 3, 4]
        order = [3, 0, 2, 1, 3]
        pairs = reader.read(order)
        assert [pair.image for pair in pairs] == [image(numbers[position]) for position in order]
        assert [pair.caption for pair in pairs] == [captions[position] for position in order]
        assert pairs[0].place == f"{folder}/b.tar: sample 1"

    def test_captions_of_the_json_member(self, tmp_path: Path) -> None:
        values = [{"text": ["one", "", "three"]}, {"text": "four"}]
        (tmp_path / "a.tar").write_bytes(tar_bytes([json.dumps(value) for value in values], suffix="json"))
        reader, captions = reader_of(tmp_path, caption_field="text", select="all")
        assert captions == ["one", "three", "four"]
        pairs = reader.read([0, 1, 2])
        assert [pair.caption for pair in pairs] == captions
        assert [pair.image for pair in pairs] == [image(0), image(0), image(1)]

    def test_a_reader_goes_to_loader_processes(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(tar_bytes(["a cat", "a dog"]))
        reader, _ = reader_of(tmp_path)
        before = reader.read([0, 1])
        assert pickle.loads(pickle.dumps(reader)).read([0, 1]) == before  # noqa: S301  (our own, just made)


class TestParquet:
    COLUMNS: ClassVar[dict[str, list[Any]]] = {
        "caption": ["a  cat", None, "two\u3000\u2003words", "a dog", "a bird"],
        "image": [image(number) for number in range(5)],
    }

    @pytest.mark.parametrize("max_rows", [1000, 2], ids=["whole", "split"])
    def test_every_pair_of_every_row_group_and_unit(self, folder: Location, tmp_path: Path, max_rows: int) -> None:
        file = write_parquet(tmp_path, self.COLUMNS)
        (folder / "pairs.parquet").write_bytes(file.read_bytes())
        reader, captions = reader_of(folder.uri, max_rows_per_unit=max_rows)
        assert captions == ["a cat", "two words", "a dog", "a bird"]
        pairs = reader.read([3, 1, 0, 2])
        assert [pair.image for pair in pairs] == [image(4), image(2), image(0), image(3)]
        assert [pair.caption for pair in pairs] == [captions[position] for position in (3, 1, 0, 2)]
        assert pairs[0].place == f"{folder}/pairs.parquet: row 4"

    def test_several_captions_of_a_pair(self, tmp_path: Path) -> None:
        columns = {"text": [["one", "", "three"], None, ["four"]], "image": [image(number) for number in range(3)]}
        reader, captions = reader_of(
            write_parquet(tmp_path, columns), caption_field="text", select="all", max_rows_per_unit=2
        )
        assert captions == ["one", "three", "four"]
        pairs = reader.read([2, 1, 0])
        assert [pair.caption for pair in pairs] == ["four", "three", "one"]
        assert [pair.image for pair in pairs] == [image(2), image(0), image(0)]

    def test_the_image_layout_of_hugging_face(self, tmp_path: Path) -> None:
        images = [{"bytes": image(0), "path": "0.jpg"}, {"bytes": image(1), "path": None}]
        columns = {"caption": pa.array(["a cat", "a dog"]).dictionary_encode(), "jpg": images}
        reader, captions = reader_of(write_parquet(tmp_path, columns), image_field="jpg")
        pairs = reader.read([0, 1])
        assert [pair.image for pair in pairs] == [image(0), image(1)]
        assert [pair.caption for pair in pairs] == captions == ["a cat", "a dog"]

    def test_tars_and_parquet_files_in_one_index(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(tar_bytes(["a cat", "a dog"]))
        write_parquet(tmp_path, {"caption": ["a bird"], "image": [image(7)]})
        reader, captions = reader_of(tmp_path / "*.tar", tmp_path / "*.parquet")
        pairs = reader.read([2, 0, 1])
        assert [pair.image for pair in pairs] == [image(7), image(0), image(1)]
        assert [pair.caption for pair in pairs] == [captions[2], captions[0], captions[1]]

    def test_a_missing_image_is_a_bad_one(self, tmp_path: Path) -> None:
        columns = {"caption": ["a cat", "a dog"], "image": pa.array([None, image(1)], pa.binary())}
        reader, _ = reader_of(write_parquet(tmp_path, columns))
        assert [pair.image for pair in reader.read([0, 1])] == [b"", image(1)]

    def test_images_in_lists_and_in_structs(self, tmp_path: Path) -> None:
        struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        columns = {
            "list": pa.array([[image(0)]], pa.list_(pa.binary())),
            "struct": pa.array([{"bytes": image(0), "path": "a.png"}], struct),
            "structs": pa.array([[{"bytes": image(0), "path": None}]], pa.list_(struct)),
            "view": pa.array([image(0)], pa.binary_view()),
        }
        file = write_parquet(tmp_path, {"caption": ["a cat"], **columns})
        for name in columns:
            reader, _ = reader_of(file, image_field=name)
            assert [pair.encoded() for pair in reader.read([0])] == [image(0)]

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (None, "holds no image"),
            ([], "holds no image"),
            ([image(0), image(1)], "holds 2 images; a pair has one"),
        ],
        ids=["null", "empty", "two"],
    )
    def test_a_row_without_one_image_is_a_bad_one(self, tmp_path: Path, value: object, said: str) -> None:
        columns = {"caption": ["a cat"], "image": pa.array([value], pa.list_(pa.binary()))}
        [pair] = reader_of(write_parquet(tmp_path, columns))[0].read([0])
        with pytest.raises(DataError, match=rf"pairs\.parquet: row 0: column 'image' {said}"):
            pair.encoded()

    @pytest.mark.parametrize("text", [False, True])
    def test_paths_are_read_below_the_image_root(self, tmp_path: Path, text: bool) -> None:
        (tmp_path / "pictures/a").mkdir(parents=True)
        (tmp_path / "pictures/a/0.png").write_bytes(image(0))
        (tmp_path / "secret.png").write_bytes(image(1))
        paths = ["a/0.png", "a/1.png", "../secret.png", f"{tmp_path}/secret.png", "http://x/0.png"]
        images = paths if text else [{"bytes": None, "path": path} for path in paths]
        file = write_parquet(tmp_path, {"caption": [f"caption {i}" for i in range(5)], "image": images})
        pairs = reader_of(file, image_root=f"{tmp_path}/pictures")[0].read(range(5))
        assert pairs[0].encoded() == image(0)
        assert "no such file" in pairs[1].problem
        assert all("is not a path below captions.image_root" in pair.problem for pair in pairs[2:])
        if not text:
            [pair] = reader_of(file)[0].read([0])
            assert "holds only a path, 'a/0.png'; set captions.image_root" in pair.problem

    @pytest.mark.parametrize("images", [["cat.jpg"], [7], [{"bytes": 7, "path": "cat.jpg"}]], ids=str)
    def test_a_column_without_image_bytes(self, tmp_path: Path, images: list[object]) -> None:
        reader, _ = reader_of(write_parquet(tmp_path, {"caption": ["a cat"], "image": images}))
        with pytest.raises(DataError, match=r"pairs\.parquet: row 0: column 'image' holds no image bytes"):
            reader.read([0])

    def test_no_image_column(self, tmp_path: Path) -> None:
        reader, _ = reader_of(write_parquet(tmp_path, {"caption": ["a cat"], "jpg": [image(0)]}))
        with pytest.raises(DataError, match=r"pairs\.parquet: no column 'image'; set captions\.image_field .*'jpg'"):
            reader.read([0])


class TestRequests:
    """Images of 6 to 14 KB, as web photos are, in three tars of 128 pairs."""

    PAIRS, BATCH = 384, 64

    @pytest.fixture
    def photos(self, folder: Location) -> tuple[PairIndex, CaptionsConfig]:
        generator = np.random.default_rng(0)
        for number in range(3):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as archive:
                for pair in range(128):
                    photo = generator.bytes(int(generator.integers(6_000, 14_000)))
                    for suffix, content in (("jpg", photo), ("txt", f"photo {128 * number + pair}".encode())):
                        member = tarfile.TarInfo(f"{pair:04d}.{suffix}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
            (folder / f"{number}.tar").write_bytes(buffer.getvalue())
        config = CaptionsConfig(paths=(folder.uri,))
        return index_of(config)[0], config

    def epoch(self, photos: tuple[PairIndex, CaptionsConfig], block_pairs: int) -> PairReader:
        """A reader after one epoch in batches."""
        reader = PairReader(*photos)
        order = SampleOrder(self.PAIRS, seed=0, block_pairs=block_pairs)
        seen = []
        for first in range(0, self.PAIRS, self.BATCH):
            positions = order.pairs_at(np.arange(first, first + self.BATCH))
            captions = [pair.caption for pair in reader.read(positions)]
            assert captions == [f"photo {position}" for position in positions]
            seen += captions
        assert len(set(seen)) == self.PAIRS
        return reader

    @pytest.mark.parametrize("block_pairs", [1, 32])
    def test_no_more_than_1_2_times_the_wanted_bytes_are_read(
        self, photos: tuple[PairIndex, CaptionsConfig], block_pairs: int
    ) -> None:
        counters = self.epoch(photos, block_pairs).counters
        columns = photos[0].columns_at(np.arange(self.PAIRS))
        assert counters.member_bytes == int((columns["image_bytes"] + columns["caption_bytes"]).sum())
        assert counters.member_bytes < counters.bytes_read <= 1.2 * counters.member_bytes

    def test_a_pair_takes_one_request_and_a_block_too(self, photos: tuple[PairIndex, CaptionsConfig]) -> None:
        alone, blocks = (self.epoch(photos, block_pairs).counters.requests for block_pairs in (1, 32))
        assert alone <= self.PAIRS
        assert blocks <= self.PAIRS / 32 + 2

    def test_the_ranges_asked_of_the_filesystem_are_the_counted_ones(
        self, photos: tuple[PairIndex, CaptionsConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[int] = []
        real = PairReader._read_range

        def noting(self: PairReader, *request: Any) -> bytes:  # noqa: ANN401
            content = real(self, *request)
            asked.append(len(content))
            return content

        monkeypatch.setattr(PairReader, "_read_range", noting)
        counters = self.epoch(photos, 4).counters
        assert (len(asked), sum(asked)) == (counters.requests, counters.bytes_read)

    def test_a_row_group_is_counted_once_while_it_is_kept(self, tmp_path: Path) -> None:
        photos = [np.random.default_rng(number).bytes(5000) for number in range(8)]
        file = write_parquet(tmp_path, {"caption": ["a cat"] * 8, "image": photos, "other": photos}, group_rows=4)
        reader, _ = reader_of(file)
        reader.read(range(8))
        reader.read([7, 0])
        assert reader.counters.requests == 2
        assert reader.counters.member_bytes == 10 * 5005
        assert 40_000 < reader.counters.bytes_read < 45_000


class TestChangedSince:
    def test_a_tar_that_became_shorter(self, folder: Location) -> None:
        content = tar_bytes(["a cat", "a dog"])
        (folder / "a.tar").write_bytes(content)
        reader, _ = reader_of(folder.uri)
        (folder / "a.tar").write_bytes(content[:1800])
        with pytest.raises(DataError, match=r"a\.tar: sample 1: the file ends inside its image; it changed"):
            reader.read([0, 1])

    @pytest.mark.parametrize(
        ("suffix", "before", "after"),
        [
            ("txt", "a cat", b"\xff\xff\xff\xff\xff"),
            ("json", '{"text": "a cat"}', b'["text", "a cat"]'),
            ("json", '{"text": ["a", "b"]}', b'{"text": ["a, \'b"]}'),
        ],
        ids=["not UTF-8", "not an object", "fewer captions"],
    )
    def test_a_caption_in_a_tar(self, tmp_path: Path, suffix: str, before: str, after: bytes) -> None:
        (tmp_path / "a.tar").write_bytes(tar_bytes([before], suffix=suffix))
        settings = {} if suffix == "txt" else {"caption_field": "text", "select": "all"}
        reader, captions = reader_of(tmp_path, **settings)
        (tmp_path / "a.tar").write_bytes(tar_bytes([after], suffix=suffix))
        with pytest.raises(DataError, match=r"a\.tar: sample 0: .*changed since it was assigned"):
            reader.read([len(captions) - 1])

    @pytest.mark.parametrize("name", ["a.tar", "pairs.parquet"])
    def test_a_file_that_is_gone(self, folder: Location, tmp_path: Path, name: str) -> None:
        parquet = write_parquet(tmp_path, {"caption": ["a cat"], "image": [image(0)]}).read_bytes()
        (folder / "in" / name).write_bytes(tar_bytes(["a cat"]) if name == "a.tar" else parquet)
        reader, _ = reader_of(f"{folder}/in")
        (folder / "in" / name).delete()
        with pytest.raises(DataError, match=rf"{name}: no such file"):
            reader.read([0])

    @pytest.mark.parametrize(
        ("captions", "reason"),
        [
            (["a cat"], "row 2: the file has fewer rows; it changed"),
            ([], "row 2: the file has fewer rows; it changed"),
            (["a cat", "a dog", None], "row 2: the caption is missing"),
            ([["a"], ["b"], []], "row 2: the caption is missing"),
            ([b"a", b"b", b"\xff"], "row 2: its caption is not UTF-8"),
        ],
        ids=["rows", "no rows", "null", "list", "bytes"],
    )
    def test_a_parquet_file(self, tmp_path: Path, captions: list[object], reason: str) -> None:
        file = write_parquet(tmp_path, {"caption": ["a cat", "a dog", "a bird"], "image": [b"x", b"y", b"z"]})
        reader, _ = reader_of(file)
        write_parquet(tmp_path, {"caption": captions, "image": [b"x"] * len(captions)})
        with pytest.raises(DataError, match=rf"pairs\.parquet: {reason}"):
            reader.read([2])

    def test_a_parquet_file_without_its_caption_column(self, tmp_path: Path) -> None:
        reader, _ = reader_of(write_parquet(tmp_path, {"caption": ["a cat"], "image": [b"x"]}))
        write_parquet(tmp_path, {"text": ["a cat"], "image": [b"x"]})
        with pytest.raises(DataError, match=r"pairs\.parquet: no column 'caption'; set captions\.caption_field"):
            reader.read([0])

    def test_a_damaged_row_group(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path, {"caption": ["a cat"] * 4, "image": [b"image" * 200] * 4})
        reader, _ = reader_of(file)
        content = bytearray(file.read_bytes())
        content[4:300] = bytes(296)
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"pairs\.parquet: damaged parquet data in row group 0"):
            reader.read([0])
