"""Task files: their fields, the messages about mistakes, and the defaults from the data."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mode_ray.errors import UsageError
from mode_ray.evaluate.metrics.metric_table import METRICS
from mode_ray.evaluate.tasks.task import Task, load_task, load_tasks

CLASSIFICATION = {"name": "pets", "kind": "classification", "paths": ["pets.parquet"], "classes": ["cat", "sea_lion"]}
RETRIEVAL = {"name": "captions", "kind": "retrieval", "paths": ["pairs.parquet"]}


def write_task(folder: Path, values: Any) -> str:  # noqa: ANN401
    file = folder / "task.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)


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
            ({"kind": "detection"}, "kind", "'classification', 'multilabel' or 'retrieval'"),
            ({"colour": "red"}, "colour", "not permitted"),
            ({"metric": "top7"}, "metric", "'top7' is not a metric of classification tasks; there are top1, top5, "),
            ({"metric": "text_to_image_r1"}, "metric", "not a metric of classification tasks"),
            ({"metric": "top5"}, "metric", "top5 needs at least 6 classes; this task has 2"),
            ({"metric": "roc_auc", "classes": ["a", "b", "c"]}, "metric", "is defined for 2 classes; this task has 3"),
            ({"classes": []}, "classes", "at least two classes, not 0"),
            ({"classes": ["cat"]}, "classes", "at least two classes, not 1"),
            ({"classes": ["cat", "cat"]}, "classes", "names one class twice: 'cat'"),
            ({"classes": ["caf\u00e9", "cafe\u0301"]}, "classes", "names one class twice"),
            ({"classes": ["cat", ""]}, "classes", "class 1, '', has an empty name"),
            ({"classes": ["cat", "_-"]}, "classes", "class 1, '_-', has an empty name"),
            ({"class_names": {"cat": " "}}, "class_names", "class 0, 'cat', has an empty name"),
            ({"class_names": {"cow": "cow"}}, "class_names", "'cow' is not one of classes"),
            ({"class_names": {"cat": "sea lion"}}, "class_names", "two classes are called 'sea lion'"),
            ({"classes": "imagenet"}, "classes", "must be a list or a name such as builtin:NAME, not 'imagenet'"),
            ({"classes": "builtin:pets"}, "classes", "unknown classes; there are builtin:imagenet1k"),
            ({"templates": "builtin:pets"}, "templates", "there are builtin:openai-imagenet, builtin:simple-imagenet"),
            ({"templates": []}, "templates", "is empty"),
            ({"kind": "retrieval", "format": "folder"}, "format", "kind must be classification"),
            ({"kind": "multilabel", "format": "folder"}, "format", "kind must be classification"),
            ({"kind": "multilabel", "linear_probe": True}, "linear_probe", "kind must be classification"),
            ({"linear_probe": True}, "train_paths", "learns from a training split"),
            ({"classes": [1, 2]}, "classes.0", "valid string"),
            ({"templates": ["{}", "a photo"]}, "templates", "template 1, 'a photo', has no {} for the class name"),
            ({"paths": []}, "paths", "is empty"),
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

    def test_task_files_by_wildcards_and_braces(self, tmp_path: Path) -> None:
        for name, values in (("a", CLASSIFICATION), ("b", RETRIEVAL)):
            (tmp_path / name).mkdir()
            write_task(tmp_path / name, values)
        for text in (f"{tmp_path}/*/task.yaml", f"{tmp_path}/{{a,b}}/task.yaml"):
            assert [task.name for task in load_tasks([text])] == ["pets", "captions"]
        with pytest.raises(UsageError, match=r"evaluate\.tasks: .*/x\*\.yaml: nothing matches it"):
            load_tasks([f"{tmp_path}/x*.yaml"])
        with pytest.raises(UsageError, match=r"evaluate\.tasks: https://host/a\.yaml: .*download it"):
            load_tasks(["https://host/a.yaml"])

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

    @pytest.mark.parametrize("given", ["/data/pets.parquet", "s3://bucket/pets.parquet", "/data/pets/"])
    def test_absolute_ones_and_uris_stay(self, tmp_path: Path, given: str) -> None:
        assert load_task(write_task(tmp_path, CLASSIFICATION | {"paths": [given]})).paths == (given,)


class TestMetrics:
    @pytest.mark.parametrize("kind", list(METRICS))
    def test_every_kind_has_a_main_metric_and_may_choose_another(self, kind: str) -> None:
        base = {"name": "t", "kind": kind, "paths": ("x",), "classes": tuple("abcdefg")}
        names = list(METRICS[kind])  # type: ignore[index]
        assert Task.model_validate(base).metric == names[0]
        assert Task.model_validate({**base, "metric": names[1]}).metric == names[1]

    def test_two_classes_may_be_measured_by_the_area_under_the_curve(self, tmp_path: Path) -> None:
        assert load_task(write_task(tmp_path, CLASSIFICATION | {"metric": "roc_auc"})).metric == "roc_auc"


class TestNames:
    def test_names_of_any_language_stand_as_they_are(self, tmp_path: Path) -> None:
        names = ["猫", "собака", "شجرة", "caf\u00e9", "🐧"]
        task = load_task(write_task(tmp_path, CLASSIFICATION | {"classes": names, "templates": ["{}の写真", "{c}"]}))
        assert task.class_texts() == [[f"{name}の写真", name] for name in names]

    def test_classes_by_number_keep_their_names_and_may_share_one(self, tmp_path: Path) -> None:
        more = {"labels": "index", "classes": ["T-shirt", "snake_case", "T-shirt"]}
        assert load_task(write_task(tmp_path, CLASSIFICATION | more)).names() == ["T-shirt", "snake_case", "T-shirt"]

    def test_templates_may_make_a_text_of_an_empty_name(self, tmp_path: Path) -> None:
        more = {"labels": "index", "classes": ["near", "", "far"], "templates": ["{} shapes"]}
        assert load_task(write_task(tmp_path, CLASSIFICATION | more)).class_texts()[1] == [" shapes"]
        with pytest.raises(UsageError, match=r"task\.yaml: classes: class 1, '', has an empty name"):
            load_task(write_task(tmp_path, CLASSIFICATION | more | {"templates": ["{} shapes", "{}"]}))

    def test_ten_thousand_classes_are_read(self, tmp_path: Path) -> None:
        names = [f"class {number}" for number in range(10_000)]
        assert len(load_task(write_task(tmp_path, CLASSIFICATION | {"classes": names})).class_texts()) == 10_000

    def test_built_in_names_go_by_number(self, tmp_path: Path) -> None:
        more = {"classes": "builtin:imagenet1k", "templates": "builtin:simple-imagenet"}
        task = load_task(write_task(tmp_path, CLASSIFICATION | more))
        assert (task.labels, len(task.classes), len(task.templates)) == ("index", 1000, 7)
        assert task.class_texts()[0][0] == "itap of a tench."
        assert load_task(write_task(tmp_path, CLASSIFICATION | more | {"labels": "index"})).labels == "index"

    def test_what_a_task_says_is_part_of_what_the_run_compares(self, tmp_path: Path) -> None:
        # The stage is done anew when a built-in list changes with its package; where the file lies does not matter.
        task = load_task(write_task(tmp_path, CLASSIFICATION | {"templates": "builtin:simple-imagenet"}))
        assert "itap of a {}." in task.model_dump_json()
        assert "task.yaml" not in task.model_dump_json()
        assert task.place == str(tmp_path / "task.yaml")


class TestFolders:
    FOLDER = {"name": "pets", "kind": "classification", "format": "folder", "paths": ["images"]}  # noqa: RUF012

    def test_their_names_are_the_classes(self, tmp_path: Path) -> None:
        for name in ("sea_lion", "cat", ".hidden"):
            (tmp_path / "images" / name).mkdir(parents=True)
        task = load_task(write_task(tmp_path, self.FOLDER))
        assert task.classes == ("cat", "sea_lion")
        assert task.names() == ["cat", "sea lion"]

    def test_the_roots_may_be_a_range_or_a_wildcard(self, tmp_path: Path) -> None:
        for name in ("part0/cat", "part1/dog", "v[1]/lion"):
            (tmp_path / name).mkdir(parents=True)
        for paths in (["part{0..1}"], ["part*"], ["part0::part1"]):
            assert load_task(write_task(tmp_path, self.FOLDER | {"paths": paths})).classes == ("cat", "dog")
        two = self.FOLDER | {"paths": ["v[1]", "part0"]}
        assert load_task(write_task(tmp_path, two)).classes == ("cat", "lion")

    def test_a_task_may_name_some_of_them(self, tmp_path: Path) -> None:
        (tmp_path / "images" / "dog").mkdir(parents=True)
        assert load_task(write_task(tmp_path, self.FOLDER | {"classes": ["cat", "dog"]})).classes == ("cat", "dog")

    @pytest.mark.parametrize("prepare", ["nothing", "no folder"])
    def test_without_folders_there_are_no_classes(self, tmp_path: Path, prepare: str) -> None:
        if prepare == "no folder":
            (tmp_path / "images").mkdir()
            (tmp_path / "images" / "a.png").write_bytes(b"1")
        with pytest.raises(UsageError, match=r"task\.yaml: paths: .*/images: no folder in it"):
            load_task(write_task(tmp_path, self.FOLDER))


class TestBenchmarkLayout:
    SET = {"name": "pets", "kind": "classification", "format": "clip-benchmark", "paths": ["wds_pets"]}  # noqa: RUF012

    def write_set(self, tmp_path: Path, **files: str) -> None:
        defaults = {"classnames": "cat\nT-shirt\ncat\n", "zeroshot_classification_templates": "a photo of a {c}.\n{c}"}
        (tmp_path / "wds_pets").mkdir()
        for name, text in (defaults | files).items():
            (tmp_path / "wds_pets" / f"{name}.txt").write_text(text)

    def test_it_tells_classes_and_templates(self, tmp_path: Path) -> None:
        self.write_set(tmp_path)
        task = load_task(write_task(tmp_path, self.SET))
        assert (task.classes, task.labels) == (("cat", "T-shirt", "cat"), "index")
        assert task.class_texts()[1] == ["a photo of a T-shirt.", "T-shirt"]

    def test_what_the_task_says_wins(self, tmp_path: Path) -> None:
        self.write_set(tmp_path)
        task = load_task(write_task(tmp_path, self.SET | {"classes": ["a", "b", "c"], "templates": ["{}!"]}))
        assert task.class_texts() == [["a!"], ["b!"], ["c!"]]

    @pytest.mark.parametrize("kind", ["multilabel", "retrieval"])
    def test_its_type_must_be_that_of_the_task(self, tmp_path: Path, kind: str) -> None:
        self.write_set(tmp_path, dataset_type=f"{kind}\n")
        assert load_task(write_task(tmp_path, self.SET | {"kind": kind})).kind == kind
        with pytest.raises(UsageError, match=rf"task\.yaml: kind: is classification, but the set at .* is for {kind}"):
            load_task(write_task(tmp_path, self.SET))

    @pytest.mark.parametrize(
        ("files", "changes", "message"),
        [
            ({"classnames": "cat\n\ndog\n"}, {}, r"task\.yaml: classes: class 1, '', has an empty name"),
            (
                {"zeroshot_classification_templates": "a {c}\na photo\n"},
                {},
                r"task\.yaml: templates: template 1, 'a photo', has no {}",
            ),
            ({"dataset_type": "captioning"}, {}, r"wds_pets/dataset_type\.txt: 'captioning' is not one of "),
            ({}, {"labels": "name"}, r"task\.yaml: labels: must be index"),
            ({}, {"paths": ["wds_pets", "wds_cars"]}, r"task\.yaml: paths: names 2 places"),
            ({}, {"paths": ["wds_cars"]}, r"task\.yaml: .*/wds_cars/classnames\.txt: missing"),
        ],
    )
    def test_a_mistake_is_said_with_file_and_field(
        self, tmp_path: Path, files: dict[str, str], changes: dict[str, Any], message: str
    ) -> None:
        self.write_set(tmp_path, **files)
        with pytest.raises(UsageError, match=message) as caught:
            load_task(write_task(tmp_path, self.SET | changes))
        assert "\n" not in str(caught.value)

    def test_blanks_marks_and_capitals_do_not_matter(self, tmp_path: Path) -> None:
        self.write_set(
            tmp_path,
            classnames="\ufeffcat \r\nT-shirt\t\r\n  cat\r\n \r\n\r\n",
            zeroshot_classification_templates="\ufeff\n a photo of a {c}. \n\n{c}\n\n",
            dataset_type="\ufeff Classification\n\n",
        )
        task = load_task(write_task(tmp_path, self.SET))
        assert task.classes == ("cat", "T-shirt", "cat")
        assert task.class_texts()[0] == ["a photo of a cat.", "cat"]

    def test_an_empty_line_between_class_names_is_a_class_without_a_name(self, tmp_path: Path) -> None:
        self.write_set(tmp_path, classnames="near\n\nfar\n", zeroshot_classification_templates="{c} shapes")
        assert load_task(write_task(tmp_path, self.SET)).classes == ("near", "", "far")

    def test_text_that_is_not_utf8_is_refused(self, tmp_path: Path) -> None:
        self.write_set(tmp_path)
        (tmp_path / "wds_pets" / "classnames.txt").write_bytes(b"cat\nd\xff\n")
        with pytest.raises(UsageError, match=r"classnames\.txt: not UTF-8 text \(byte 5\)"):
            load_task(write_task(tmp_path, self.SET))

    def test_it_has_a_training_split_of_its_own(self, tmp_path: Path) -> None:
        self.write_set(tmp_path)
        assert load_task(write_task(tmp_path, self.SET | {"linear_probe": True})).linear_probe
