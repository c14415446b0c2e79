"""`mode-ray plan`: its tables, and a user's mistakes."""

import json
from pathlib import Path

import pytest
import yaml
from planned import HOUR, config_of, inventory_of, rates_of
from terminal import require_words, shown_at_80_columns

from mode_ray.cli import main
from mode_ray.plan.estimate import Plan, make_plan
from mode_ray.plan.rates import (
    write_rates,
)
from mode_ray.plan.report import duration, plan_tables, rates_table, size
from mode_ray.storage import Location


class TestCommand:
    @pytest.fixture
    def arguments(self, tmp_path: Path) -> list[str]:
        config = config_of()
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        write_rates(Location.parse(str(tmp_path / "rates.json")), rates_of(config))
        return ["plan", "--config", str(tmp_path / "my.yaml"), "--rates", str(tmp_path / "rates.json")]

    def test_a_table_for_people(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        more = ["--rows", "2.5e9", "--machines", "40", "--cores", "16", "--cpu-hour-cost", "0.04"]
        assert main([*arguments, *more]) == 0
        shown = capsys.readouterr().out
        for expected in ("2,500,000,000 captions", "640", "assumptions:", "embed.pool.max_actors=640", "85%"):
            assert expected in shown

    def test_json_for_programs_has_the_same_numbers(
        self, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*arguments, "--rows", "1e9", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        config = config_of()
        expected = make_plan(config, rates_of(config), inventory_of(1e9, 100_000))
        assert shown["stages"][2]["wall_hours"] == expected.stages[2].wall_hours
        assert shown["inventory"]["units"] == 100_000

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (["--rows", "0"], "--rows must be above 0, not 0"),
            (["--rows", "1e9", "--rates", "absent.json"], "absent.json: no such rates file"),
            (["--rows", "1e9", "cluster.fine.centers=64"], "cluster.fine.centers=100 (the config has 64)"),
            (["--rows", "1e9", "--gpus", "8"], "GPUs are asked for in embed"),
            (["--rows", "1e9", "--machines", "4"], "machines and cores go together"),
            ([], "give the number of captions with --rows"),
            (["--calibrate", "--step-seconds", "0"], "--step-seconds must be above 0, not 0"),
        ],
    )
    def test_a_mistake_is_one_sentence_and_exit_code_2(
        self, arguments: list[str], more: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*arguments, *more]) == 2
        message = capsys.readouterr().err.strip()
        assert said in message
        assert "\n" not in message


def test_plan_and_rates_fit_80_columns() -> None:
    config = config_of()
    rates = rates_of(config)
    plan = make_plan(config, rates, inventory_of(2.5e9, 250_000))
    require_words(shown_at_80_columns(plan_tables(plan)), ["2,500,000,000 captions", "core-hours", "writes", "assign"])
    require_words(shown_at_80_columns(rates_table(rates)), [rates.machine.host, "assign: rows/s an actor"])


def test_text_from_outside_is_not_taken_for_markup() -> None:
    config = config_of()
    rates = rates_of(config)
    rates = rates.model_copy(update={"captions": rates.captions.model_copy(update={"source": "captions of [red]x"})})
    plan: Plan = make_plan(config, rates, inventory_of(1e6))
    assert "[red]x" in shown_at_80_columns(plan_tables(plan))
    assert "50,000" in shown_at_80_columns(rates_table(rates))  # 20 microseconds a row


def test_sizes_and_durations_in_fitting_units() -> None:
    assert [size(count) for count in (12, 1.5e6, 2.5e12)] == ["12 B", "1.5 MB", "2.5 TB"]
    assert [duration(seconds / HOUR) for seconds in (30, 1800, 36_000)] == ["30 s", "30 min", "10.0 h"]
