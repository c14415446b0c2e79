"""The state of a fit on disk: it is read as it was written, and an interrupted fit ends like an undisturbed one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mode_ray.cluster import both_steps as fit
from mode_ray.cluster.both_steps import fit_clustering
from mode_ray.cluster.fit.sample_rows import LocalRows
from mode_ray.cluster.fit.state import FitState, IterationReport, delete_fit_state, read_fit_state, write_fit_state
from mode_ray.config.cluster import ClusterConfig, CoarseConfig, FineConfig
from mode_ray.errors import DataError
from mode_ray.run_directory import FIT_PROGRESS, FIT_STATE
from mode_ray.storage import Location

CONFIG = ClusterConfig(
    sample_rows=1_000,
    fine=FineConfig(centers=16, iterations=5, price_updates=8, tolerance=0.0),
    coarse=CoarseConfig(experts=(2, 4)),
)


@pytest.fixture
def directory(tmp_path: Path) -> Location:
    return Location(str(tmp_path / "clusters"))


def state_of(m: int = 3, d: int = 4) -> FitState:
    generator = np.random.default_rng(0)
    reports = tuple(IterationReport(number, 1 / 3 / number, 1.5, 1.01, 0.7, 0) for number in (1, 2))
    return FitState(generator.normal(size=(m, d)).astype(np.float32), generator.normal(size=m), reports, "kmeans++")


def rows_of_a_mixture() -> LocalRows:
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(10, 24))[generator.integers(10, size=1_000)] + generator.normal(size=(1_000, 24))
    return LocalRows(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def files(directory: Location) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.files()}


def test_what_was_written_is_read_to_the_last_bit(directory: Location) -> None:
    assert read_fit_state(directory) is None
    state = state_of()
    write_fit_state(directory, state)
    read = read_fit_state(directory)
    assert read is not None
    np.testing.assert_array_equal(read.centers_md, state.centers_md)
    np.testing.assert_array_equal(read.prices_m, state.prices_m)
    assert read.centers_md.dtype == np.dtype(np.float32)
    assert read.prices_m.dtype == np.dtype(np.float64)
    assert (read.history, read.init) == (state.history, state.init)


def test_a_fit_that_continues_for_its_balance_is_read_as_one(directory: Location) -> None:
    write_fit_state(directory, replace(state_of(), extended_from=1))
    read = read_fit_state(directory)
    assert read is not None
    assert (read.extended_from, read.most_iterations(5)) == (1, 6)
    assert json.loads((directory / FIT_PROGRESS).read_text())["extended_from"] == 1


def test_the_newest_report_is_written_too(directory: Location) -> None:
    write_fit_state(directory, state_of())
    assert json.loads((directory / FIT_PROGRESS).read_text())["iteration"] == 2
    delete_fit_state(directory)
    assert files(directory) == {}


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "no history", "another report"])
def test_a_damaged_state_is_one_sentence_that_says_how_to_fix_it(directory: Location, damage: str) -> None:
    write_fit_state(directory, state_of())
    file = directory / FIT_STATE
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut": whole[:-20],
            "empty": b"",
            "garbage": bytes(range(256)) * 4,
            "no history": whole.replace(b'"history"', b'"histori"'),
            "another report": whole.replace(b"max_over_mean", b"max_over_meen"),
        }[damage]
    )
    with pytest.raises(DataError, match=rf"{FIT_STATE}: damaged \(.*\); remove it to start the fit again$"):
        read_fit_state(directory)


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_an_interrupted_fit_ends_with_the_same_bytes_and_leaves_no_state(
    directory: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iterations: int
) -> None:
    def write_and_break(where: Location, state: FitState) -> None:
        write_fit_state(where, state)
        if len(state.history) == iterations:
            raise InterruptedError

    monkeypatch.setattr(fit, "write_fit_state", write_and_break)
    with pytest.raises(InterruptedError):
        fit_clustering(rows_of_a_mixture(), CONFIG, "encoder", directory)
    assert set(files(directory)) == {FIT_STATE, FIT_PROGRESS}
    begun: list[int] = []

    def write_and_note(where: Location, state: FitState) -> None:
        begun.append(len(state.history))
        write_fit_state(where, state)

    monkeypatch.setattr(fit, "write_fit_state", write_and_note)
    figures = fit_clustering(rows_of_a_mixture(), CONFIG, "encoder", directory)
    assert begun == list(range(iterations + 1, 6)), "only what was left is done"
    undisturbed = Location(str(tmp_path / "undisturbed"))
    assert fit_clustering(rows_of_a_mixture(), CONFIG, "encoder", undisturbed) == figures
    assert files(directory) == files(undisturbed)
    assert FIT_STATE not in files(directory)
