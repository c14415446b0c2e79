"""`mode-ray init`: what it finds in the data is what the stages then read."""

import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mode_ray.captions.listing import list_work_units
from mode_ray.captions.read import read_captions
from mode_ray.cli import main
from mode_ray.config.load import load_config
from mode_ray.config.run import RunConfig
from mode_ray.starter.look import look_at
from mode_ray.starter.write import config_text

PAIRS = 80
CAPTIONS = [f"a picture of thing {number}" for number in range(PAIRS)]
STATIC = ["encoder.kind=static", "encoder.model=package:wordllama", "embed.pool.max_actors=1"]


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(file: Path, members: Sequence[Mapping[str, bytes]]) -> Path:
    with tarfile.open(file, "w") as archive:
        for number, sample in enumerate(members):
            for suffix, content in sample.items():
                info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file


def write_parquet(file: Path, columns: Mapping[str, Sequence[object]]) -> Path:
    pq.write_table(pa.table(dict(columns)), file)
    return file


def made(paths: Sequence[Path], folder: Path, preset: str | None = None) -> tuple[RunConfig, str]:
    """The config that init writes for these paths, as it is read again, and its text."""
    text = config_text(look_at([str(path) for path in paths]), str(folder / "run"), preset)
    file = folder / "made.yaml"
    file.write_text(text)
    return load_config(str(file)), text


def captions_read(config: RunConfig) -> list[str]:
    units = list_work_units(config.captions)
    return [text for unit in units for text in read_captions(unit, config.captions).table["caption"].to_pylist()]


class TestFormats:
    """The written config finds every caption, and training its images."""

    @pytest.fixture
    def data(self, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
        kind, numbers = str(request.param), range(PAIRS)
        images: list[object] = [png(i) for i in numbers]
        rows: dict[str, Mapping[str, Sequence[object]]] = {
            "parquet": {"URL": ["http://x y z/a b"] * PAIRS, "TEXT": CAPTIONS, "jpg": images},
            "parquet-lists": {"captions": [[caption, "another"] for caption in CAPTIONS], "image": images},
            "parquet-unknown-names": {"sample_id": [f"k {i}" for i in numbers], "beschreibung": CAPTIONS},
        }
        tars = {
            "tars-txt": [
                {"jpg": png(i), "json": b'{"url": "http://a b"}', "txt": CAPTIONS[i].encode()} for i in numbers
            ],
            "tars-json": [{"png": png(i), "json": json.dumps({"alt": CAPTIONS[i], "n": i}).encode()} for i in numbers],
        }
        texts = {
            "a.jsonl.gz": "".join(json.dumps({"title": text, "key": i}) + "\n" for i, text in enumerate(CAPTIONS)),
            "a.tsv": "filepath\ttitle\n" + "".join(f"/img/{i}.jpg\t{text}\n" for i, text in enumerate(CAPTIONS)),
            # As CC12M and CC3M are.
            "b.tsv": "".join(f"http://x.y/{i}.jpg\t{text}\n" for i, text in enumerate(CAPTIONS)),
            "c.tsv": "".join(f"{text}\thttp://x.y/{i}.jpg\n" for i, text in enumerate(CAPTIONS)),
            "d.csv": "Bild;Beschreibung\n" + "".join(f"{i}.jpg;{text}\n" for i, text in enumerate(CAPTIONS)),
        }
        if kind in rows:
            return write_parquet(tmp_path / "a.parquet", rows[kind])
        if kind in tars:
            return write_tar(tmp_path / "00000.tar", tars[kind])
        content = texts[kind].encode()
        (tmp_path / kind).write_bytes(gzip.compress(content) if kind.endswith(".gz") else content)
        return tmp_path / kind

    @pytest.mark.parametrize(
        ("data", "field", "image"),
        [
            ("tars-txt", None, "image"),
            ("tars-json", "alt", "image"),
            ("parquet", "TEXT", "jpg"),
            ("parquet-lists", "captions", "image"),
            ("parquet-unknown-names", "beschreibung", None),
            ("a.jsonl.gz", "title", None),
            ("a.tsv", "title", None),
            ("b.tsv", "1", None),
            ("c.tsv", "0", None),
            ("d.csv", "Beschreibung", None),
        ],
        indirect=["data"],
    )
    def test_fields_and_images_are_found(
        self, data: Path, tmp_path: Path, field: str | None, image: str | None
    ) -> None:
        config, text = made([data], tmp_path)
        assert config.captions.caption_field == field
        assert captions_read(config) == CAPTIONS
        assert config.trains == (image is not None)
        assert "thing 0" in text
        if image is not None:
            assert config.captions.image_field == image
            assert "24 x 16 pixels" in text
            assert config.train.budget_samples == pytest.approx(32 * PAIRS, rel=0.1)
            assert config.train.batch_size <= PAIRS

    def test_a_directory_counts_in_proportion_to_its_bytes(self, tmp_path: Path) -> None:
        for shard in range(5):
            write_parquet(tmp_path / f"{shard}.parquet", {"caption": CAPTIONS})
        look = look_at([str(tmp_path)])
        assert (look.shards, look.captions, look.format) == (5, 5 * PAIRS, "parquet")

    def test_only_the_beginning_of_a_tar_is_read(self, tmp_path: Path) -> None:
        members = [{"jpg": png(0), "txt": b"a caption"} for _ in range(1000)]
        look = look_at([str(write_tar(tmp_path / "a.tar", members))])
        assert look.captions == pytest.approx(1000, rel=0.05)

    @pytest.mark.parametrize("pairs", [1, 3, 20, 31, 5000, 32, 48, 49])
    def test_any_number_of_captions_gives_a_valid_config(self, tmp_path: Path, pairs: int) -> None:
        file = write_parquet(tmp_path / "a.parquet", {"caption": ["a b"] * pairs, "image": [png(0)] * pairs})
        config, _ = made([file], tmp_path)
        assert config.cluster.fine.centers <= max(1, pairs)
        assert config.train.batch_size <= config.train.budget_samples


class TestPresets:
    def test_the_papers_settings_with_the_found_fields(self, tmp_path: Path) -> None:
        file = write_parquet(tmp_path / "a.parquet", {"text": CAPTIONS, "image": [png(1)] * PAIRS})
        config, _ = made([file], tmp_path, "paper")
        assert (config.train.batch_size, config.train.model.architecture) == (32768, "ViT-B-16")
        assert captions_read(config) == CAPTIONS


class TestTheCommand:
    @pytest.mark.usefixtures("ray_session")
    def test_what_it_writes_is_embedded_and_planned(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "données").mkdir()
        write_parquet(tmp_path / "données" / "a.parquet", {"text": CAPTIONS, "image": [png(1)] * PAIRS})
        monkeypatch.chdir(tmp_path)
        assert main(["init", "données", "--to", "my.yaml", "--run", "out"]) == 0
        assert "mode-ray run --config my.yaml --until assign" in capsys.readouterr().out
        assert main(["embed", "--config", "my.yaml", *STATIC]) == 0
        assert f"{PAIRS} rows of {PAIRS}, 0 refused" in capsys.readouterr().out
        assert main(["plan", "--config", "my.yaml", "--from", "out", *STATIC]) == 0
        assert main(["init", "données", "--to", "my.yaml"]) == 2
        assert "my.yaml: exists; remove it, or name another file with --to" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["nowhere"], "nowhere: no such file"),
            (["a.parquet", "--preset", "huge"], "--preset huge: no such preset; there are small and paper"),
            (["b.parquet"], "no field looks like captions; there are url, number"),
        ],
    )
    def test_what_it_cannot_use_is_said_and_nothing_is_written(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        words: list[str],
        said: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write_parquet(tmp_path / "a.parquet", {"caption": CAPTIONS})
        write_parquet(tmp_path / "b.parquet", {"url": ["http://a"], "number": [1]})
        assert main(["init", *words]) != 0
        assert said in capsys.readouterr().err
        assert not (tmp_path / "mode-ray.yaml").exists()
