"""The demo's data set: complete, reproducible, readable by others, with nothing held out seen in training."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import yaml
from PIL import Image

from mode_ray.demo.build import DemoData, build_demo_data, draw_all
from mode_ray.demo.emoji import draw_svg
from mode_ray.demo.icons import draw_png
from mode_ray.demo.pairs import Pair
from mode_ray.errors import UsageError
from mode_ray.storage import Location

LIMIT = 300


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return build_demo_data(Location.parse(str(tmp_path_factory.mktemp("demo"))), limit=LIMIT)


def _records(*tars: Location) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    for location in tars:
        with tarfile.open(location.path) as tar:
            for member in tar:
                key, suffix = member.name.split(".")
                content = tar.extractfile(member)
                assert content is not None
                assert suffix not in records.setdefault(key, {})
                records[key][suffix] = content.read()
    for record in records.values():
        record["json"] = json.loads(record["json"])
    return records


def _pair_of(file: Path) -> Pair:
    return Pair(
        key=file.stem,
        domain="icon",
        captions=(f"icon of {file.stem}",),
        labels={"name": file.stem},
        concept=file.stem,
        stratum="acme/compute",
        draw=lambda: draw_png(file),
    )


def _held_out(data: DemoData) -> tuple[Location, Location]:
    return data.directory / "heldout" / "emoji.tar", data.directory / "heldout" / "icons.tar"


def _bytes(directory: Location) -> dict[str, bytes]:
    return {file.uri.removeprefix(directory.uri): file.read_bytes() for file in directory.files(recursive=True)}


def test_a_pair_is_an_image_its_first_caption_and_its_record(data: DemoData) -> None:
    for record in _records(*data.train_shards, *_held_out(data)).values():
        assert set(record) == {"png", "txt", "json"}
        image = Image.open(io.BytesIO(record["png"]))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
        assert np.asarray(image).min() < 225
        assert record["json"]["captions"][0] == record["txt"].decode()
        expected = {"emoji": {"group", "subgroup"}, "icon": {"provider", "category"}}[record["json"]["domain"]]
        assert expected | {"name"} <= set(record["json"])


def test_no_concept_and_no_picture_is_both_trained_on_and_held_out(data: DemoData) -> None:
    train, held_out = _records(*data.train_shards), _records(*_held_out(data))
    for identity in (
        lambda record: (record["json"]["domain"], record["json"]["concept"]),
        lambda record: np.asarray(Image.open(io.BytesIO(record["png"]))).tobytes(),
    ):
        assert not {identity(record) for record in train.values()} & {identity(record) for record in held_out.values()}


def test_held_out_pictures_and_captions_are_all_different(data: DemoData) -> None:
    held_out = _records(*_held_out(data)).values()
    assert len({record["png"] for record in held_out}) == len(held_out)
    assert len({record["txt"] for record in held_out}) == len(held_out)


def test_every_pair_is_counted(data: DemoData) -> None:
    records = _records(*data.train_shards)
    by_domain = Counter(record["json"]["domain"] for record in records.values())
    assert by_domain == {"emoji": data.counts["train_emoji"], "icon": data.counts["train_icon"]}
    after_drawing = (
        "undecodable",
        "blank_on_white",
        "same_picture_and_name",
        "held_out_with_the_same_picture",
    )
    sides = sum(data.counts[f"{side}_{domain}"] for side in ("train", "heldout") for domain in ("emoji", "icon"))
    assert sides + sum(data.counts[f"left_out_{reason}"] for reason in after_drawing) == 2 * LIMIT


def test_shards_are_equal_in_size_and_mix_the_domains(data: DemoData) -> None:
    shards = [_records(shard) for shard in data.train_shards]
    assert len(shards) == 8
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert all({record["json"]["domain"] for record in shard.values()} == {"emoji", "icon"} for shard in shards)


def test_webdataset_reads_the_shards(data: DemoData) -> None:
    samples = list(webdataset.WebDataset([shard.path for shard in data.train_shards], shardshuffle=False))
    assert len(samples) == data.counts["train_emoji"] + data.counts["train_icon"]
    assert {"__key__", "png", "txt", "json"} <= set(samples[0])


def test_tasks_name_tars_beside_them_and_classes_seen_on_both_sides(data: DemoData) -> None:
    train = _records(*data.train_shards).values()
    assert {"emoji-group", "icon-provider", "emoji-retrieval", "icon-retrieval"} <= {
        file.name.removesuffix(".yaml") for file in data.task_files
    }
    for file in data.task_files:
        task = yaml.safe_load(file.read_text())
        assert task["name"] == file.name.removesuffix(".yaml")
        tars = [Location.parse(str((Path(file.parent.path) / path).resolve())) for path in task["paths"]]
        held_out = _records(*tars).values()
        assert held_out
        if task["kind"] == "retrieval":
            continue
        images = Counter(record["json"][task["label_field"]] for record in held_out)
        trained = {record["json"].get(task["label_field"]) for record in train}
        assert len(task["classes"]) == len(set(task["classes"])) > 1
        assert set(task["class_names"]) == set(task["classes"])
        assert all("{}" in template for template in task["templates"])
        assert all(images[label] >= 3 and label in trained for label in task["classes"])


def test_licences_stand_beside_the_data(data: DemoData) -> None:
    text = (data.directory / "ATTRIBUTION.txt").read_text()
    assert "OpenMoji" in text
    assert "CC BY-SA 4.0" in text


def test_the_same_seed_gives_the_same_bytes_and_another_seed_replaces_them(data: DemoData, tmp_path: Path) -> None:
    again = build_demo_data(Location.parse(str(tmp_path)), limit=60)
    first = _bytes(again.directory)
    (again.directory / "manifest.json").delete()
    build_demo_data(again.directory, limit=60)
    assert _bytes(again.directory) == first
    build_demo_data(again.directory, limit=60, seed=1)
    changed = _bytes(again.directory)
    assert changed["/train/pairs-00000.tar"] != first["/train/pairs-00000.tar"]
    assert json.loads(changed["/manifest.json"])["made_from"]["seed"] == 1


def test_a_standing_data_set_is_returned_without_drawing_anything(data: DemoData) -> None:
    progress: list[tuple[str, int, int]] = []
    again = build_demo_data(data.directory, limit=LIMIT, on_progress=lambda *step: progress.append(step))
    assert again == data
    assert progress == []


def test_progress_ends_at_the_last_drawing_and_the_last_shard(tmp_path: Path) -> None:
    progress: list[tuple[str, int, int]] = []
    build_demo_data(Location.parse(str(tmp_path)), limit=30, on_progress=lambda *step: progress.append(step))
    assert ("drawings", 60, 60) in progress
    assert progress[-1] == ("shards", 8, 8)


def test_files_that_cannot_be_decoded_or_seen_are_left_out_by_name(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    (tmp_path / "text.png").write_text("not an image")
    Image.new("RGBA", (32, 32), "white").save(tmp_path / "white.png")
    Image.new("RGBA", (32, 32), "navy").save(tmp_path / "navy.png")
    pairs = [_pair_of(tmp_path / f"{name}.png") for name in ("cut", "text", "white", "navy")]
    drawings, unusable = draw_all([*pairs, replace(pairs[0], key="svg", draw=lambda: draw_svg("<svg"))])
    assert [drawing.pair.key for drawing in drawings] == ["navy"]
    assert [line.split(":")[0] for line in unusable["undecodable"]] == ["cut", "text", "svg"]
    assert unusable["blank_on_white"] == ["white"]


def test_a_directory_that_belongs_to_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"stage": "embed"}')
    with pytest.raises(UsageError, match="choose an empty directory"):
        build_demo_data(Location.parse(str(tmp_path)), limit=10)
