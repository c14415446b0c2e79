"""Where `mode_ray.load` reads an ensemble from: a run, an export, an object store, the cache of the hub."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from python_process import python_command
from run_of_before import COLOURS, TEMPLATES, HeldOut

import mode_ray
from mode_ray.ensemble.ensemble import Ensemble
from mode_ray.errors import DataError, UsageError
from mode_ray.storage import Location

REVISION = "0123456789abcdef0123456789abcdef01234567"  # pragma: allowlist secret
OFFLINE_HUB = """
import sys
import mode_ray
print(mode_ray.load("hf-hub:some-lab/colours", device="cpu").classify(sys.argv[1], sys.argv[2:]).scores.tolist())
"""
IMPORT = """
import sys, time
start = time.perf_counter()
import mode_ray
print(time.perf_counter() - start, *(name for name in ("ray", "torch", "numpy", "scipy") if name in sys.modules))
"""


def copy_to(folder: Path, target: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            (Location.parse(target) / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


def scores(ensemble: Ensemble, held_out: HeldOut) -> np.ndarray:
    return ensemble.classify(held_out.images, COLOURS, TEMPLATES, rule="released").scores


def test_a_run_by_path_text_location_or_uri(run: Path, ensemble: Ensemble, held_out: HeldOut) -> None:
    for source in (str(run), Location.parse(str(run)), f"file://{run}"):
        np.testing.assert_array_equal(
            scores(mode_ray.load(source, device="cpu"), held_out), scores(ensemble, held_out)
        )


def test_an_export_is_the_same_ensemble(exported: Path, ensemble: Ensemble, held_out: HeldOut) -> None:
    described = json.loads((exported / "mode_ray.json").read_text())
    assert (described["experts"], described["encoder"]["model"]) == (2, "package:wordllama")
    assert described["routing"]["rule"] == "calibrated"
    loaded = mode_ray.load(exported, device="cpu")
    np.testing.assert_array_equal(scores(loaded, held_out), scores(ensemble, held_out))
    np.testing.assert_array_equal(loaded.task(COLOURS).weights, ensemble.task(COLOURS).weights)
    assert loaded.task(COLOURS).why()[0]["captions"] == []


def test_so_is_one_of_version_0_1_0_which_has_no_description(
    exported: Path, ensemble: Ensemble, held_out: HeldOut, tmp_path: Path
) -> None:
    old = shutil.copytree(exported, tmp_path / "old", ignore=shutil.ignore_patterns("mode_ray.json"))
    np.testing.assert_array_equal(scores(mode_ray.load(old, device="cpu"), held_out), scores(ensemble, held_out))


def test_a_copy_on_an_object_store(
    run: Path, exported: Path, ensemble: Ensemble, held_out: HeldOut, bucket: str
) -> None:
    copy_to(exported, f"{bucket}/colours")
    for part in ("config.yaml", "clusters", "experts/n2"):
        source = run / part
        if source.is_dir():
            copy_to(source, f"{bucket}/run/{part}")
        else:
            Location.parse(f"{bucket}/run/{part}").write_bytes(source.read_bytes())
    for uri in (f"{bucket}/colours", f"{bucket}/run"):
        np.testing.assert_array_equal(scores(mode_ray.load(uri, device="cpu"), held_out), scores(ensemble, held_out))


def test_a_model_of_the_hub_without_a_network(
    exported: Path, ensemble: Ensemble, held_out: HeldOut, tmp_path: Path
) -> None:
    repository = tmp_path / "hub" / "models--some-lab--colours"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    shutil.copytree(exported, repository / "snapshots" / REVISION)
    image = tmp_path / "image.png"
    held_out.images[0].save(image)
    done = subprocess.run(
        python_command(OFFLINE_HUB, image, *COLOURS),
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = ensemble.classify(image, COLOURS).scores
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected, atol=1e-6)


def test_a_model_that_the_hub_does_not_have() -> None:
    with pytest.raises(UsageError, match=r"^hf-hub:some-lab/none: cannot be read from the Hugging Face hub: "):
        mode_ray.load("hf-hub:some-lab/none")
    with pytest.raises(UsageError, match="write hf-hub:ORG/NAME"):
        mode_ray.load("hf-hub:../../etc")


def test_the_cards_python_runs_as_it_is_printed(
    exported: Path, ensemble: Ensemble, held_out: HeldOut, tmp_path: Path
) -> None:
    held_out.images[0].save(tmp_path / "IMAGE.png")
    code = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    script = code[0].replace("FOLDER", str(exported))
    done = subprocess.run(python_command(script), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = ensemble.classify(held_out.images[0], ["cat", "dog"], ["a photo of a {}."])
    answers = [f"{answer['label']}: {answer['score']:.1%}" for answer in found.to_list()[0]]
    assert len(answers) == 2
    assert done.stdout.splitlines() == [f"weights of the experts: {found.weights}", *answers]


class TestWhatIsNoEnsemble:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="absent: no such directory; name a run"):
            mode_ray.load(tmp_path / "absent")

    def test_another_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"neither a run \(no config\.yaml\) nor an exported ensemble"):
            mode_ray.load(tmp_path)

    def test_one_exported_expert(self, exported: Path) -> None:
        with pytest.raises(UsageError, match=r"a single expert, not an ensemble .* open_clip loads it as local-dir:"):
            mode_ray.load(exported / "expert-00")

    def test_a_run_that_is_not_clustered(self, run: Path, tmp_path: Path) -> None:
        shutil.copy(run / "config.yaml", tmp_path)
        with pytest.raises(UsageError, match="clusters: the cluster stage is not done: run `mode-ray cluster` first"):
            mode_ray.load(tmp_path)

    def test_an_expert_that_is_missing_or_cut_off(self, exported: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(exported, tmp_path / "copy")
        weights = copy / "expert-01" / "open_clip_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
        with pytest.raises(DataError, match=r"expert-01/open_clip_model\.safetensors: .*leave_out=\[1\]$"):
            mode_ray.load(copy)
        assert mode_ray.load(copy, leave_out=[1]).task(COLOURS).weights.tolist() == [1.0, 0.0]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "not a description of an ensemble"),
            ('{"experts": 0}', "not a description of an ensemble"),
            ('{"experts": 1000000000}', r"1000000000 experts, but its clustering has maps for \[2\] experts"),
        ],
    )
    def test_a_damaged_description(self, exported: Path, tmp_path: Path, content: str, message: str) -> None:
        copy = shutil.copytree(exported, tmp_path / "copy")
        (copy / "mode_ray.json").write_text(content)
        with pytest.raises(DataError, match=message):
            mode_ray.load(copy)


class TestImport:
    def test_it_is_fast_and_imports_nothing_heavy(self) -> None:
        done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
        seconds, *heavy = done.stdout.split()
        assert heavy == []
        assert float(seconds) < 0.3

    def test_every_public_name_exists(self) -> None:
        assert set(mode_ray.__all__) <= {*dir(mode_ray)}
        for name in mode_ray.__all__:
            assert getattr(mode_ray, name) is not None
        with pytest.raises(AttributeError, match="module 'mode_ray' has no attribute 'Emsemble'"):
            mode_ray.Emsemble  # noqa: B018
