"""Inputs as people bring them, from the generator beside the shared data: read rightly, or refused with a sentence.

Skipped where there is no generator. Its cases say how many pairs are usable, or what an error must contain.
"""

import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import count_captions, read_captions
from mode_ray.config.captions import CaptionsConfig
from mode_ray.errors import ModeRayError
from mode_ray.pairs.images import decode_image
from mode_ray.pairs.index import SHARD, PairIndex
from mode_ray.pairs.reader import PairReader
from mode_ray.storage import Location

GENERATOR = Path(__file__).resolve().parents[3] / "shared" / "field" / "cases_data.py"
# Checked in tests/captions/test_field_formats.py and tests/models/test_checkpoint.py.
LEFT_OUT = (
    "string_views",
    "stray_quotes",
    "no_header",
    "tabs_in_csv",
    "odd_pictures",
    "benchmark_text_files",
    "checkpoint_of_another_width",
    "checkpoint_with_a_bias",
    "checkpoint_by_relative_path",
)
ANY_SENTENCE = "a sentence"
CASES = (
    "img2dataset_folder",
    "brace",
    "double_colon",
    "spark_star",
    "spark_leftovers",
    "file_uri",
    "brackets",
    "path_without_list",
    "run_directory_not_ascii",
    "s3_double_slash",
    "mac_tar",
    "members_not_adjacent",
    "json_alone",
    "dots_in_keys",
    "gzipped_tar",
    "other_image_suffixes",
)


@cache
def generator() -> Any:  # noqa: ANN401  (a module that is not in the repository)
    """The generator's module."""
    if not GENERATOR.is_file():
        pytest.skip(f"no generator at {GENERATOR}")
    spec = importlib.util.spec_from_file_location("cases_data", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def usable_pairs(values: Mapping[str, object]) -> int:
    """List, count and read all pairs of a config; each picture must have the colour of its caption's number."""
    config = CaptionsConfig.model_validate(values)
    work_units = list_work_units(config)
    tables = []
    for number, work_unit in enumerate(work_units):
        found = read_captions(work_unit, config)
        assert count_captions(work_unit, config) == found.rows_in
        assert not found.refused
        tables.append(found.table.add_column(0, SHARD, pa.array(np.full(found.table.num_rows, number, np.int32))))
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    reader = PairReader(PairIndex.of(work_units, table.drop_columns(["key", "caption"])), config)
    for pair in reader.read(np.arange(table.num_rows)):
        numbers = re.search(r"in picture (\d+)$", pair.caption)
        assert numbers is not None
        image = decode_image(pair.image, 10_000, pair.place)
        colour = image.getpixel((20, 20))
        assert colour == pytest.approx(generator().colour(int(numbers[1])), abs=8), pair.place
    return int(table.num_rows)


def test_every_case_is_checked_or_left_out() -> None:
    assert sorted(generator().CASES) == sorted([*CASES, *LEFT_OUT])


@pytest.mark.parametrize("name", CASES)
def test_a_case_ends_as_expected(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / name).mkdir()
    case: dict[str, Any] = generator().CASES[name](tmp_path / name)
    expected = case.pop("expect")
    case.pop("run", None)  # only captions are read here
    if name == "s3_double_slash":
        bucket = request.getfixturevalue("bucket")
        Location.parse(f"{bucket}/data/0.tar").write_bytes((tmp_path / name / "0.tar").read_bytes())
        case["paths"] = [path.replace("s3://BUCKET", bucket) for path in case["paths"]]
    if isinstance(expected, int):
        assert usable_pairs(case) == expected
        return
    with pytest.raises((ModeRayError, ValidationError)) as caught:
        usable_pairs(case)
    assert expected in str(caught.value) or expected == ANY_SENTENCE
