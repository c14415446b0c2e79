"""A second report under another routing rule, computed from the files of a finished evaluation."""

import gc
import json
import shutil
import weakref
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mode_ray.captions.listing import list_work_units
from mode_ray.cli import main
from mode_ray.config.base import Settings
from mode_ray.config.load import dump_config
from mode_ray.config.run import RunConfig
from mode_ray.errors import DataError, UsageError
from mode_ray.evaluate.measure.measurements import TaskCosines, load_cosines, save_array
from mode_ray.evaluate.report.sources import ReportSources
from mode_ray.evaluate.rescore import rescore
from mode_ray.evaluate.stage import load_report, run_evaluate, write_report
from mode_ray.pipeline import build_stages, open_run
from mode_ray.run_directory import FINE_FILE, LABELS_FILE, MANIFEST, PLAN_FILE, ROUTING_FILE, TASK_SUMMARY, cosine_file
from mode_ray.stages.run import Quiet, Run
from mode_ray.storage import Location
from mode_ray.train.runs.status import TrialState, TrialStatus, write_status
from mode_ray.train.runs.trial import training_summary


@pytest.fixture
def run(sources: ReportSources) -> ReportSources:
    """The small run with its clustering, training and evaluation on disk as their stages leave them."""
    places = sources.directories
    sources.clustering.save(places["cluster"])
    stages = build_stages(Run(sources.config, list_work_units(sources.config.captions)))
    stages["train"].begin(1)
    summary = {
        "trials": [asdict(trial) for trial in sources.trials],
        "pairs_by_expert": sources.pairs_n.tolist(),
    }
    stages["train"].finish([], summary)
    measured, directory = sources.measured["pets"], places["evaluate"] / "tasks" / "pets"
    for name, cosines_il in measured.cosines.items():
        save_array(cosine_file(directory, name), cosines_il)
    save_array(directory / LABELS_FILE, measured.labels)
    save_array(directory / ROUTING_FILE, measured.routing_texts_ld)
    (directory / TASK_SUMMARY).write_text(json.dumps(asdict(measured.summary)))
    stages["evaluate"].begin(1)
    write_report(Run(sources.config, sources.work_units), places["evaluate"])
    stages["evaluate"].finish([], {})
    return sources


def rescored(config: RunConfig) -> Location:
    run = open_run(config)
    return rescore(run, build_stages(run)["evaluate"])


def changed(config: RunConfig, section: str, **values: object) -> RunConfig:
    part: Settings = getattr(config, section)
    return config.model_copy(update={section: part.model_copy(update=values)})


def models(directory: Location) -> list[str]:
    return [row["name"] for row in load_report(directory)["models"] if row["kind"] == "mode"]


def test_a_new_rule_is_compared_beside_the_evaluations_own(run: ReportSources) -> None:
    config = changed(changed(run.config, "routing", rule="paper"), "evaluate", rules=("paper", "calibrated"))
    folder = rescored(config)
    assert models(folder) == ["MoDE-2 (paper)", "MoDE-2 (calibrated)"]
    assert models(run.directories["evaluate"]) == ["MoDE-2 (soft)", "MoDE-2 (uniform)"]
    assert (folder / "report.html").exists()
    assert rescored(config) == folder
    assert rescored(changed(config, "routing", paper_lambda=0.3)) != folder


def test_what_would_need_new_measurements_is_refused(run: ReportSources) -> None:
    other = changed(run.config, "captions", max_caption_bytes=7)
    with pytest.raises(UsageError, match=r"inputs.train was .* only routing.\* and evaluate.rules can change"):
        rescored(other)


def test_before_the_evaluation_there_is_nothing_to_score(sources: ReportSources) -> None:
    with pytest.raises(UsageError, match="the evaluate stage is not done"):
        rescored(sources.config)


def test_the_command_line_takes_the_rule_as_overrides(
    run: ReportSources, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(dump_config(run.config))
    file = str(tmp_path / "run.yaml")
    assert main(["evaluate", "rules", "--config", file, "routing.rule=uniform"]) == 0
    assert "report: " in capsys.readouterr().out


def test_an_expert_that_was_left_out_is_told_in_the_report(run: ReportSources) -> None:
    config = changed(run.config, "evaluate", leave_out_experts=(0,))
    target = run.directories["evaluate"] / "without"
    write_report(Run(config, run.work_units), target)
    data = load_report(target)
    assert data["missing_experts"] == [0]
    assert [row["name"] for row in data["models"] if row["kind"] == "single"] == ["expert 1 alone"]
    assert [row["weights"] for row in data["routing"]] == [[0.0, 1.0], [0.0, 1.0]]
    assert "Experts left out by the config: 0" in (target / "report.html").read_text()


def test_an_expert_may_be_left_out_after_the_evaluation_and_come_back(
    run: ReportSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(*left_out: int) -> list[object]:
        config = changed(run.config, "evaluate", leave_out_experts=left_out)
        stage = build_stages(Run(config, list_work_units(config.captions)))["evaluate"]
        before = stage.state()
        run_evaluate(Run(config, run.work_units), stage, Quiet())
        return [before, stage.state(), load_report(stage.directory)["missing_experts"]]

    monkeypatch.setattr("mode_ray.evaluate.stage.check_models", lambda *_: None)  # the run has no models, only cosines
    assert evaluate() == ["done", "done", []]
    assert evaluate(0) == ["started", "done", [0]]
    assert evaluate() == ["started", "done", []]


def test_an_expert_that_failed_to_train_needs_no_manifest_to_be_left_out(run: ReportSources) -> None:
    train = run.directories["train"]
    (train / PLAN_FILE).write_text(json.dumps(dict(training_summary(train) or {})))
    (train / MANIFEST).delete()
    for trial in run.trials:
        state: TrialState = "failed" if trial.name == "n2/00" else "finished"
        write_status(train / trial.name, TrialStatus(trial=trial.name, state=state, samples=trial.samples))
    target = run.directories["evaluate"] / "without"
    with pytest.raises(UsageError, match=rf"{train}/n2/00: failed: .*leave_out_experts=\[0\]"):
        write_report(Run(run.config, run.work_units), target)
    write_report(Run(changed(run.config, "evaluate", leave_out_experts=(0,)), run.work_units), target)
    assert [row["weights"] for row in load_report(target)["routing"]] == [[0.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize("left_out", [(2,), (-1,), (0, 1)])
def test_only_some_of_the_experts_can_be_left_out(run: ReportSources, left_out: tuple[int, ...]) -> None:
    config = changed(run.config, "evaluate", leave_out_experts=left_out)
    with pytest.raises(UsageError, match="the experts are 0 to 1, and at least one must remain"):
        write_report(Run(config, run.work_units), run.directories["evaluate"])


def test_the_cosines_of_one_task_are_gone_before_those_of_the_next_come(
    run: ReportSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counting(directory: Location) -> TaskCosines:
        gc.collect()
        standing.append(sum(array() is not None for array in arrays))
        found = load_cosines(directory)
        arrays.extend(weakref.ref(array) for array in found.cosines.values())
        return found

    arrays: list[weakref.ref[np.ndarray]] = []
    standing: list[int] = []
    task, measured = (tmp_path / "pets.yaml"), tmp_path / "run" / "evaluation" / "tasks" / "pets"
    for copy in ("pets-2", "pets-3"):
        (tmp_path / f"{copy}.yaml").write_text(task.read_text().replace("name: pets", f"name: {copy}"))
        shutil.copytree(measured, measured.with_name(copy))
    monkeypatch.setattr("mode_ray.evaluate.stage.load_cosines", counting)
    config = changed(
        run.config, "evaluate", tasks=tuple(str(tmp_path / f"{name}.yaml") for name in ("pets", "pets-2", "pets-3"))
    )
    write_report(Run(config, run.work_units), run.directories["evaluate"] / "three")
    assert standing == [0, 0, 0]
    assert len(arrays) == 3 * len(run.measured["pets"].cosines)


def test_a_clustering_of_another_encoder_is_named(run: ReportSources) -> None:
    config = changed(run.config, "encoder", model="another/model")
    file = run.directories["cluster"] / FINE_FILE
    with pytest.raises(DataError, match=f"{file}: the clustering was made with encoder .*another/model"):
        write_report(Run(config, run.work_units), run.directories["evaluate"])


def test_text_embeddings_of_another_dimension_are_named(run: ReportSources) -> None:
    texts = run.directories["evaluate"] / "tasks" / "pets" / ROUTING_FILE
    save_array(texts, np.eye(3, 5, dtype=np.float32))
    with pytest.raises(DataError, match=f"{texts}: text embeddings of 5 dimensions.* have 4"):
        rescored(run.config)
