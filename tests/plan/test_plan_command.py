"""`mode-ray plan`: its tables and its usage errors."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from planned import config_of, inventory_of, rates_of
from rich.console import Console, RenderableType

from mode_ray.cli import main
from mode_ray.plan.estimate import PlanOptions, make_plan
from mode_ray.plan.machines import ClusterShape, Prices
from mode_ray.plan.rates import EvaluateRates, TrainRates
from mode_ray.plan.report import plan_tables, rates_table, size

COLUMNS = 80


def shown(renderable: RenderableType, width: int = COLUMNS) -> str:
    output = io.StringIO()
    Console(width=width, file=output).print(renderable, highlight=False)
    return output.getvalue()


class TestMistakes:
    @pytest.fixture
    def arguments(self, tmp_path: Path) -> list[str]:
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(config_of().model_dump(mode="json")))
        return ["plan", "--config", str(tmp_path / "my.yaml")]

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (["--calibrate"], "then `mode-ray plan --config my.yaml --from SMALL`"),
            (["--calibrate", "--step-seconds", "2", "--rows", "1e9"], "--calibrate and --rates were removed"),
            (["--rates", "mode-ray-rates.json"], "make a small run with your config"),
            (
                ["--rows", "1e9"],
                "--from RUN is missing: name a finished or partly finished run to read the rates from",
            ),
            (["--from", "/nowhere/run"], "/nowhere/run: no run here (no config.yaml)"),
        ],
    )
    def test_one_sentence_and_exit_code_2(
        self, arguments: list[str], more: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*arguments, *more]) == 2
        message = capsys.readouterr().err.strip()
        assert said in message
        assert "\n" not in message


class TestTables:
    def test_a_large_plan_fits_80_columns_without_a_cut(self) -> None:
        config = config_of(evaluate={"tasks": ["a.yaml"]})
        rates = replace(
            rates_of(config, on_gpu=True),
            train=TrainRates(trials=6, samples=64_000, samples_per_second=332.0, launch_seconds=12.0),
            evaluate=EvaluateRates(seconds=30.0, tasks=1, images=50_000, models=5, written_bytes=1e6),
        )
        options = PlanOptions(
            shape=ClusterShape(machines=40, cores=16, gpus=256.0, capped=False),
            prices=Prices(cpu_hour=0.04, gpu_hour=2.0),
        )
        plan = make_plan(config, rates, inventory_of(2.5e9, 250_000), options)
        for text in (shown(plan_tables(plan)), shown(rates_table(rates))):
            assert "…" not in text
            assert max(len(line) for line in text.splitlines()) <= COLUMNS
        lines = shown(plan_tables(plan), 1000)
        for expected in ("2,500,000,000 captions", "assumptions:", "embed.pool.max_actors=256", "85%"):
            assert expected in lines
        for name in ("embed", "cluster", "assign", "train", "evaluate"):
            assert sum(line.split()[:1] == [name] for line in shown(plan_tables(plan)).splitlines()) == 1


def test_text_from_outside_is_not_taken_for_markup() -> None:
    config = config_of()
    rates = replace(rates_of(config), source="[red]x", run="runs/[red]y")
    plan = make_plan(config, rates, inventory_of(1e6))
    assert "[red]x" in shown(plan_tables(plan))
    assert "[red]y" in shown(rates_table(rates))
    assert "40,000 rows/s" in shown(rates_table(rates))  # 25 microseconds a row


def test_sizes_in_fitting_units() -> None:
    assert [size(count) for count in (12, 1.5e6, 2.5e12)] == ["12 B", "1.5 MB", "2.5 TB"]
