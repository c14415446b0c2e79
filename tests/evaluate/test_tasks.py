"""Task files: what may stand in one, how a mistake is said, and which samples come out."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mode_ray.errors import DataError, UsageError
from mode_ray.evaluate.tasks import Task, load_task, load_tasks, read_samples

CLASSIFICATION = {"name": "pets", "kind": "classification", "paths": ["pets.parquet"], "classes": ["cat", "sea_lion"]}
RETRIEVAL = {"name": "captions", "kind": "retrieval", "paths": ["pairs.parquet"]}


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


class TestTaskFiles:
    def test_a_classification_task_with_its_defaults(self, tmp_path: Path) -> None:
        task = load_task(write_task(tmp_path, CLASSIFICATION))
        assert (task.image_field, task.label_field, task.templates) == ("image", "label", ("{}",))
        assert task.metric == "top1"
        assert task.class_texts() == [["cat"], ["sea lion"]]

    def test_names_go_into_every_template(self, tmp_path: Path) -> None:
        more = {"templates": ["a {}", "{} and {}"], "class_names": {"cat": "tom cat"}}
        task = load_task(write_task(tmp_path, CLASSIFICATION | more))
        assert task.class_texts() == [["a tom cat", "tom cat and tom cat"], ["a sea lion", "sea lion and sea lion"]]

    def test_braces_in_a_name_are_no_format(self, tmp_path: Path) -> None:
        more = {"templates": ["a {}"], "class_names": {"cat": "{0.__class__}"}}
        assert load_task(write_task(tmp_path, CLASSIFICATION | more)).class_texts()[0] == ["a {0.__class__}"]

    def test_a_retrieval_task(self, tmp_path: Path) -> None:
        assert load_task(write_task(tmp_path, RETRIEVAL)).metric == "text_to_image_r1"

    @pytest.mark.parametrize(
        ("changes", "field", "reason"),
        [
            ({"kind": "detection"}, "kind", "'classification' or 'retrieval'"),
            ({"metric": "top1"}, "metric", "not permitted"),
            ({"classes": []}, "(top level)", "at least two classes"),
            ({"classes": ["cat"]}, "(top level)", "at least two classes"),
            ({"classes": ["cat", "cat"]}, "(top level)", "names one class twice"),
            ({"classes": [1, 2]}, "classes.0", "valid string"),
            ({"templates": ["{}", "a photo"]}, "(top level)", "template 'a photo' has no {}"),
            ({"paths": []}, "(top level)", "paths is empty"),
            ({"paths": None}, "paths", "tuple"),
            ({"name": "../pets"}, "name", "pattern"),
            ({"name": None}, "name", "valid string"),
        ],
    )
    def test_a_mistake_is_said_with_file_and_field(
        self, tmp_path: Path, changes: dict[str, Any], field: str, reason: str
    ) -> None:
        path = write_task(tmp_path, CLASSIFICATION | changes)
        with pytest.raises(UsageError) as caught:
            load_task(path)
        assert str(caught.value).startswith(f"{path}: {field}: ")
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("missing", ["name", "kind", "paths"])
    def test_a_missing_key_is_named(self, tmp_path: Path, missing: str) -> None:
        values = {key: value for key, value in CLASSIFICATION.items() if key != missing}
        with pytest.raises(UsageError, match=f"{missing}: .*required"):
            load_task(write_task(tmp_path, values))

    @pytest.mark.parametrize("content", ["", "- a\n- b\n", "just text"])
    def test_a_file_that_is_no_mapping_is_refused(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "task.yaml").write_text(content)
        with pytest.raises(UsageError, match=r"task\.yaml: \(top level\): "):
            load_task(str(tmp_path / "task.yaml"))

    @pytest.mark.parametrize("content", [b"a: [", b"!!python/object:os.system x", b"\xff\xfe\x00"])
    def test_a_file_that_is_no_plain_yaml_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "task.yaml").write_bytes(content)
        with pytest.raises(UsageError, match=r"task\.yaml: not "):
            load_task(str(tmp_path / "task.yaml"))

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"evaluate\.tasks: .*nowhere\.yaml: no such file"):
            load_task(str(tmp_path / "nowhere.yaml"))

    def test_two_tasks_of_one_name_are_refused(self, tmp_path: Path) -> None:
        for folder in ("a", "b", "c"):
            (tmp_path / folder).mkdir()
        paths = [write_task(tmp_path / folder, CLASSIFICATION) for folder in ("a", "b")]
        other = write_task(tmp_path / "c", RETRIEVAL)
        assert [task.name for task in load_tasks([paths[0], other])] == ["pets", "captions"]
        with pytest.raises(UsageError, match=r"b/task\.yaml: name: another task .* called 'pets' too"):
            load_tasks([*paths, other])

    def test_a_directory_is_no_task_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"evaluate\.tasks: .*: cannot be read"):
            load_task(str(tmp_path))


class TestPaths:
    @pytest.mark.parametrize(
        ("given", "found"),
        [
            ("pets.parquet", "tasks/pets.parquet"),
            ("./pets.parquet", "tasks/pets.parquet"),
            ("../data/*.tar", "data/*.tar"),
            ("sub/../pets.parquet", "tasks/pets.parquet"),
            ("..", ""),
            (".", "tasks"),
        ],
    )
    def test_relative_ones_count_from_the_task_file(self, tmp_path: Path, given: str, found: str) -> None:
        (tmp_path / "tasks").mkdir()
        task = load_task(write_task(tmp_path / "tasks", CLASSIFICATION | {"paths": [given]}))
        assert task.paths == (str(tmp_path / found).rstrip("/"),)

    @pytest.mark.parametrize("given", ["/data/pets.parquet", "s3://bucket/pets.parquet"])
    def test_absolute_ones_and_uris_stay(self, tmp_path: Path, given: str) -> None:
        assert load_task(write_task(tmp_path, CLASSIFICATION | {"paths": [given]})).paths == (given,)


class TestSamples:
    def task(self, tmp_path: Path, file: str, **fields: Any) -> Task:  # noqa: ANN401
        base = CLASSIFICATION if "label_field" in fields or fields.get("kind") != "retrieval" else RETRIEVAL
        return load_task(write_task(tmp_path, base | {"paths": [file]} | fields))

    def read(self, task: Task) -> list[tuple[bytes | None, str | None]]:
        return [(sample.image, sample.text) for sample in read_samples(task)]

    def test_parquet_classification(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "p.parquet", image=[b"1", b"2", None], label=["cat", None, "dog"])
        task = self.task(tmp_path, "p.parquet")
        assert self.read(task) == [(b"1", "cat"), (b"2", None), (None, "dog")]
        assert [sample.place for sample in read_samples(task)][2] == f"{tmp_path}/p.parquet: row 2"

    def test_parquet_labels_may_be_numbers_and_columns_have_other_names(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "p.parquet", picture=[b"1"], fine_label=[3])
        task = self.task(tmp_path, "p.parquet", image_field="picture", label_field="fine_label", classes=["3", "4"])
        assert self.read(task) == [(b"1", "3")]

    def test_parquet_images_in_the_layout_of_hugging_face_data_sets(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "p.parquet", image=[{"bytes": b"1", "path": "x.png"}], label=["cat"])
        assert self.read(self.task(tmp_path, "p.parquet")) == [(b"1", "cat")]

    def test_a_column_without_bytes_is_named(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "p.parquet", image=["http://example.org/1.png"], label=["cat"])
        with pytest.raises(DataError, match=r"p\.parquet: row 0: column 'image' holds no image bytes"):
            self.read(self.task(tmp_path, "p.parquet"))

    def test_parquet_retrieval_takes_the_first_of_several_captions(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "p.parquet", image=[b"1", b"2"], caption=[["a cat", "tom"], []])
        task = self.task(tmp_path, "p.parquet", kind="retrieval")
        assert self.read(task) == [(b"1", "a cat"), (b"2", None)]

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
        assert self.read(task) == [(b"1", "cat"), (b"2", "dog"), (b"3", None), (None, None)]
        assert [sample.place for sample in read_samples(task)][1] == f"{tmp_path}/p.tar: sample 1 (b)"

    def test_tar_retrieval_reads_the_caption_from_txt_or_a_json_field(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "p.tar", {"a.png": b"1", "a.txt": b" a cat\n", "a.json": b'{"alt": "tom"}'})
        assert self.read(self.task(tmp_path, "p.tar", kind="retrieval")) == [(b"1", "a cat")]
        assert self.read(self.task(tmp_path, "p.tar", kind="retrieval", caption_field="alt")) == [(b"1", "tom")]

    @pytest.mark.parametrize("content", [b"{broken", b"[1]", b"\xff"])
    def test_a_broken_json_member_is_named(self, tmp_path: Path, content: bytes) -> None:
        write_tar(tmp_path / "p.tar", {"a.png": b"1", "a.json": content})
        with pytest.raises(DataError, match=r"p\.tar: sample 0 \(a\): its text or \.json member cannot be read"):
            self.read(self.task(tmp_path, "p.tar"))

    def test_files_follow_one_another_and_a_missing_one_is_named(self, tmp_path: Path) -> None:
        for name in ("b", "a"):
            write_parquet(tmp_path / f"{name}.parquet", image=[name.encode()], label=["cat"])
        assert [image for image, _ in self.read(self.task(tmp_path, "*.parquet"))] == [b"a", b"b"]
        with pytest.raises(DataError, match=r"absent\.parquet: no such file"):
            self.read(self.task(tmp_path, "absent.parquet"))
