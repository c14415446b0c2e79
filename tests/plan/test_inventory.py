"""The number of captions of a plan."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planned import config_of

from mode_ray.config.run import RunConfig
from mode_ray.errors import UsageError
from mode_ray.plan.inventory import take_inventory


class TestInventory:
    @pytest.fixture
    def config(self, tmp_path: Path) -> RunConfig:
        for number in range(3):
            pq.write_table(pa.table({"caption": ["a cat"] * (number + 1)}), tmp_path / f"{number}.parquet")
        return config_of(captions={"paths": [str(tmp_path)]})

    def test_parquet_rows_are_counted_in_the_footers(self, config: RunConfig) -> None:
        inventory = take_inventory(config, None, None)
        assert (inventory.rows, inventory.units, inventory.counts_by_reading) == (6.0, 3, False)
        assert "footers" in inventory.found

    def test_given_rows_come_in_units_like_the_shards(self, config: RunConfig) -> None:
        assert take_inventory(config, 2e9, None).units == 1e9
        assert take_inventory(config, 2e9, 1000).units == 2e6

    def test_without_shards_rows_must_be_given_and_the_size_of_units_is_said_to_be_assumed(self) -> None:
        with pytest.raises(UsageError, match="--rows"):
            take_inventory(config_of(), None, None)
        inventory = take_inventory(config_of(), 1e9, None)
        assert inventory.units == 1e5
        assert "assumed" in inventory.found
