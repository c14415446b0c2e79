"""The samples of every layout of the data, and the messages about damaged data."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml

from mode_ray.errors import DataError
from mode_ray.evaluate.tasks import samples
from mode_ray.evaluate.tasks.samples import read_samples
from mode_ray.evaluate.tasks.task import Task, load_task
from mode_ray.stages.work_unit import WorkUnit
from mode_ray.storage import Location

CLASSIFICATION = {"name": "pets", "kind": "classification", "classes": ["cat", "sea_lion"]}
RETRIEVAL = {"name": "captions", "kind": "retrieval"}


def write_task(folder: Path, values: Any) -> str:  # noqa: ANN401
    file = folder / "task.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)


def write_parquet(file: Path, **columns: list[Any]) -> None:
    pq.write_table(pa.table(columns), file)


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


class TestShards:
    def task(self, tmp_path: Path, file: str, **fields: Any) -> Task:  # noqa: ANN401
        base = CLASSIFICATION if "label_field" in fields or fields.get("kind") != "retrieval" else RETRIEVAL
        return load_task(write_task(tmp_path, base | {"paths": [file]} | fields))

    def read(self, task: Task) -> list[tuple[bytes | None, tuple[str, ...] | None]]:
        return [(sample.image, sample.texts) for sample in read_samples(task)]

    def test_parquet_classification(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "p.parquet", image=[b"1", b"2", None], label=["cat", None, "dog"])
        task = self.task(tmp_path, "p.parquet")
        assert self.read(task) == [(b"1", ("cat",)), (b"2", None), (None, ("dog",))]
        assert [sample.place for sample in read_samples(task)][2] == f"{tmp_path}/p.parquet: row 2"

    def test_parquet_labels_may_be_numbers_and_columns_have_other_names(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "p.parquet", picture=[b"1"], fine_label=[3])
        task = self.task(tmp_path, "p.parquet", image_field="picture", label_field="fine_label", classes=["3", "4"])
        assert self.read(task) == [(b"1", ("3",))]

    def test_parquet_images_in_the_layout_of_hugging_face_data_sets(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "p.parquet", image=[{"bytes": b"1", "path": "x.png"}], label=["cat"])
        assert self.read(self.task(tmp_path, "p.parquet")) == [(b"1", ("cat",))]

    def test_a_column_without_bytes_is_named(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "p.parquet", image=["http://example.org/1.png"], label=["cat"])
        with pytest.raises(
            DataError, match=r"p\.parquet: row 0: column 'image' holds no image bytes but text .task pets"
        ):
            self.read(self.task(tmp_path, "p.parquet"))

    def test_an_image_may_have_several_captions_or_none(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "p.parquet", image=[b"1", b"2"], caption=[["a cat", "tom"], []])
        task = self.task(tmp_path, "p.parquet", kind="retrieval")
        assert self.read(task) == [(b"1", ("a cat", "tom")), (b"2", ())]

    @pytest.mark.parametrize("column", ["image", "label"])
    def test_a_missing_column_is_named(self, tmp_path: Path, column: str) -> None:
        columns: dict[str, list[Any]] = {"image": [b"1"], "label": ["cat"]}
        columns["other"] = columns.pop(column)
        write_parquet(tmp_path / "p.parquet", **columns)
        with pytest.raises(DataError, match=f"p.parquet: no column '{column}' .task pets.; it has .*other"):
            self.read(self.task(tmp_path, "p.parquet"))

    def test_tar_classification_reads_the_label_from_json(self, tmp_path: Path) -> None:
        members = {
            "a.png": b"1",
            "a.json": json.dumps({"label": "cat"}).encode(),
            "b.json": json.dumps({"label": ["dog", "pup"]}).encode(),
            "b.JPG": b"2",
            "c.png": b"3",
            "d.json": b"{}",
        }
        write_tar(tmp_path / "p.tar", members)
        task = self.task(tmp_path, "p.tar")
        assert self.read(task) == [(b"1", ("cat",)), (b"2", ("dog", "pup")), (b"3", None), (None, None)]
        assert [sample.place for sample in read_samples(task)][1] == f"{tmp_path}/p.tar: sample 1 (b)"

    def test_tar_retrieval_reads_the_caption_from_txt_or_a_json_field(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "p.tar", {"a.png": b"1", "a.txt": b" a cat\n", "a.json": b'{"alt": "tom"}'})
        assert self.read(self.task(tmp_path, "p.tar", kind="retrieval")) == [(b"1", ("a cat",))]
        assert self.read(self.task(tmp_path, "p.tar", kind="retrieval", caption_field="alt")) == [(b"1", ("tom",))]

    @pytest.mark.parametrize("content", [b"{broken", b"[1]", b"\xff"])
    def test_a_broken_json_member_is_named(self, tmp_path: Path, content: bytes) -> None:
        write_tar(tmp_path / "p.tar", {"a.png": b"1", "a.json": content})
        with pytest.raises(DataError, match=r"p\.tar: sample 0 \(a\): its text or \.json member cannot be read"):
            self.read(self.task(tmp_path, "p.tar"))

    def test_files_follow_one_another_and_a_missing_one_is_named(self, tmp_path: Path) -> None:
        for name in ("b", "a"):
            write_parquet(tmp_path / f"{name}.parquet", image=[name.encode()], label=["cat"])
        assert [image for image, _ in self.read(self.task(tmp_path, "*.parquet"))] == [b"a", b"b"]
        with pytest.raises(DataError, match=r"task\.yaml: paths: .*absent\.parquet: no such file"):
            self.read(self.task(tmp_path, "absent.parquet"))

    def test_the_parts_of_a_split_file_hold_every_row_once(self, tmp_path: Path) -> None:
        table = pa.table({"image": [b"0", b"1", b"2", b"3"], "label": ["cat"] * 4})
        pq.write_table(table, tmp_path / "p.parquet", row_group_size=1)
        task = self.task(tmp_path, "p.parquet")
        part = WorkUnit(unit="p", uri=f"{tmp_path}/p.parquet", format="parquet", row_groups=(1, 3), first_row=1)
        found = list(samples._rows(task, part))
        assert [sample.image for sample in found] == [b"1", b"2"]
        assert [sample.place.rsplit(" ", 1)[1] for sample in found] == ["1", "2"]


class TestFolders:
    def task(self, root: str, tmp_path: Path, **fields: Any) -> Task:  # noqa: ANN401
        values = {"name": "pets", "kind": "classification", "format": "folder", "paths": [root]}
        return load_task(write_task(tmp_path, values | fields))

    @pytest.fixture(params=["local", "s3"])
    def root(self, request: pytest.FixtureRequest, tmp_path: Path) -> Location:
        if request.param == "local":
            return Location.parse(str(tmp_path / "images"))
        return Location.parse(f"{request.getfixturevalue('bucket')}/images")

    def write(self, root: Location, *names: str) -> None:
        for name in names:
            (root / name).write_bytes(name.encode())

    def test_the_folder_of_an_image_is_its_class(self, root: Location, tmp_path: Path) -> None:
        self.write(root, "cat/1.png", "cat/old/2.JPG", "sea_lion/1.webp", "cat/notes.txt", "readme.png")
        found = list(read_samples(self.task(root.uri, tmp_path)))
        assert [(sample.place.removeprefix(f"{root.uri}/"), sample.image, sample.texts) for sample in found] == [
            ("cat/1.png", b"cat/1.png", ("cat",)),
            ("cat/notes.txt", None, ("cat",)),
            ("cat/old/2.JPG", b"cat/old/2.JPG", ("cat",)),
            ("readme.png", b"readme.png", None),
            ("sea_lion/1.webp", b"sea_lion/1.webp", ("sea_lion",)),
        ]

    def test_or_its_number_among_the_sorted_folders(self, root: Location, tmp_path: Path) -> None:
        self.write(root, "n02/a.png", "n01/a.png")
        task = self.task(root.uri, tmp_path, classes=["tench", "goldfish"], labels="index")
        assert [sample.texts for sample in read_samples(task)] == [("0",), ("1",)]

    def test_by_number_every_class_needs_its_folder(self, tmp_path: Path) -> None:
        self.write(Location.parse(str(tmp_path / "images")), "n01/a.png", "n02/a.png")
        task = self.task("images", tmp_path, classes="builtin:imagenet1k")
        with pytest.raises(DataError, match=r"images: has 2 folders, but .*task\.yaml has 1000 classes"):
            list(read_samples(task))

    def test_a_class_without_a_folder_is_named(self, tmp_path: Path) -> None:
        self.write(Location.parse(str(tmp_path / "images")), "cat/1.png")
        task = self.task("images", tmp_path, classes=["cat", "dog"])
        with pytest.raises(DataError, match=r"images: has no folder 'dog', which .*task\.yaml names in classes"):
            list(read_samples(task))

    def test_the_training_split_lies_in_folders_of_its_own(self, tmp_path: Path) -> None:
        for split in ("train", "test"):
            self.write(Location.parse(str(tmp_path / split)), f"cat/{split}.png", "dog/1.png")
        task = self.task("test", tmp_path, train_paths=["train"], linear_probe=True)
        assert next(iter(read_samples(task))).image == b"cat/test.png"
        assert next(iter(read_samples(task, "train"))).image == b"cat/train.png"


class TestBenchmarkLayout:
    """Sets as clip-benchmark publishes them, written with the webdataset package, as by its own tool."""

    def write(self, root: Path, split: str, work_units: list[list[dict[str, Any]]]) -> None:
        (root / split).mkdir(parents=True)
        for number, rows in enumerate(work_units):
            with webdataset.TarWriter(str(root / split / f"{number}.tar")) as writer:
                for row, members in enumerate(rows):
                    writer.write({"__key__": f"s{row:07d}", **members})
        (root / split / "nshards.txt").write_text(f"{len(work_units)}\n")

    def task(self, tmp_path: Path, kind: str = "classification", classes: int = 3) -> Task:
        if kind != "classification":
            (tmp_path / "dataset_type.txt").write_text(kind)
        (tmp_path / "classnames.txt").write_text("".join(f"class {number}\n" for number in range(classes)))
        (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}\n")
        values = {"name": "t", "kind": kind, "format": "clip-benchmark", "paths": ["."]}
        return load_task(write_task(tmp_path, values))

    def test_classes_by_number_in_the_order_of_the_shards(self, tmp_path: Path) -> None:
        work_units = [[{"webp": f"image {number}".encode(), "cls": number % 3}] for number in range(11)]
        self.write(tmp_path, "test", work_units)
        found = list(read_samples(self.task(tmp_path)))
        assert [(sample.image, sample.texts) for sample in found] == [
            (f"image {number}".encode(), (str(number % 3),)) for number in range(11)
        ]

    def test_every_line_of_a_retrieval_set_is_a_caption(self, tmp_path: Path) -> None:
        self.write(tmp_path, "test", [[{"jpg": b"1", "txt": "a cat\na tom cat\n"}, {"png": b"2", "txt": "犬"}]])
        found = list(read_samples(self.task(tmp_path, "retrieval")))
        assert [(sample.image, sample.texts) for sample in found] == [(b"1", ("a cat", "a tom cat")), (b"2", ("犬",))]

    def test_blanks_and_marks_in_the_members_do_not_matter(self, tmp_path: Path) -> None:
        self.write(tmp_path, "test", [[{"jpg": b"1", "cls": "\ufeff1 \n".encode()}]])
        (tmp_path / "test" / "nshards.txt").write_text("\ufeff 01\n\n")
        assert [sample.texts for sample in read_samples(self.task(tmp_path))] == [("1",)]
        (tmp_path / "captions").mkdir()
        self.write(tmp_path / "captions", "test", [[{"jpg": b"1", "txt": "\ufeffa cat \r\n a tom cat\r\n\r\n"}]])
        found = list(read_samples(self.task(tmp_path / "captions", "retrieval")))
        assert [sample.texts for sample in found] == [("a cat", "a tom cat")]

    def test_equal_captions_count_apart_as_clip_benchmark_has_it(self, tmp_path: Path) -> None:
        assert self.task(tmp_path, "retrieval").equal_captions == "apart"
        values = {"name": "t", "kind": "retrieval", "format": "clip-benchmark", "paths": ["."]}
        assert load_task(write_task(tmp_path, values | {"equal_captions": "one"})).equal_captions == "one"

    def test_the_vector_of_a_multilabel_set_marks_its_classes(self, tmp_path: Path) -> None:
        rows = [{"jpg": b"1", "npy": np.array([1.0, 0.0, 1.0])}, {"jpg": b"2", "npy": np.zeros(3, np.int64)}]
        self.write(tmp_path, "test", [rows])
        assert [sample.texts for sample in read_samples(self.task(tmp_path, "multilabel"))] == [("0", "2"), ()]

    @pytest.mark.parametrize("content", [b"no array", b"", np.array([1, 2]), np.eye(2), np.array(["a"])])
    def test_another_array_is_refused_with_its_place(self, tmp_path: Path, content: Any) -> None:  # noqa: ANN401
        if isinstance(content, np.ndarray):
            stream = io.BytesIO()
            np.save(stream, content)
            content = stream.getvalue()
        (tmp_path / "test").mkdir()
        write_tar(tmp_path / "test" / "0.tar", {"a.jpg": b"1", "a.npy": content})
        with pytest.raises(DataError, match=r"0\.tar: sample 0 \(a\): its \.npy member is not a vector"):
            list(read_samples(self.task(tmp_path, "multilabel")))

    def test_a_pickled_array_is_not_loaded(self, tmp_path: Path) -> None:
        stream = io.BytesIO()
        np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        (tmp_path / "test").mkdir()
        write_tar(tmp_path / "test" / "0.tar", {"a.jpg": b"1", "a.npy": stream.getvalue()})
        with pytest.raises(DataError, match="not a vector of zeros and ones"):
            list(read_samples(self.task(tmp_path, "multilabel")))

    def test_a_missing_shard_is_noticed(self, tmp_path: Path) -> None:
        self.write(tmp_path, "test", [[{"jpg": b"1", "cls": 0}], [{"jpg": b"2", "cls": 1}]])
        (tmp_path / "test" / "1.tar").unlink()
        with pytest.raises(DataError, match=r"test/nshards\.txt: says '2', but there are 1 tars"):
            list(read_samples(self.task(tmp_path)))

    def test_splits_lie_in_their_own_folders_and_a_missing_one_is_named(self, tmp_path: Path) -> None:
        self.write(tmp_path, "test", [[{"jpg": b"test", "cls": 0}]])
        task = self.task(tmp_path)
        with pytest.raises(DataError, match=r"/train: no tar named 0\.tar, 1\.tar, …: not a train split"):
            list(read_samples(task, "train"))
        self.write(tmp_path, "train", [[{"jpg": b"train", "cls": 0}]])
        assert [[sample.image for sample in read_samples(task, split)] for split in ("test", "train")] == [
            [b"test"],
            [b"train"],
        ]

    def test_it_is_read_over_s3(self, tmp_path: Path, bucket: str) -> None:
        local, far = tmp_path / "set", Location.parse(f"{bucket}/set")
        self.write(local, "test", [[{"jpg": b"1", "cls": 1}], [{"jpg": b"2", "cls": 0}]])
        self.task(local)
        for file in local.rglob("*.*"):
            if file.is_file():
                (far / file.relative_to(local).as_posix()).write_bytes(file.read_bytes())
        values = {"name": "t", "kind": "classification", "format": "clip-benchmark", "paths": [far.uri]}
        task = load_task(write_task(tmp_path, values))
        assert task.classes == ("class 0", "class 1", "class 2")
        assert [(sample.image, sample.texts) for sample in read_samples(task)] == [(b"1", ("1",)), (b"2", ("0",))]
