"""The page: bounded, safe with hostile captions, and working in a real browser at two widths."""

import html.parser
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mode_ray.atlas.data import AtlasFacts, atlas_data
from mode_ray.atlas.page import EXPERT_COLORS, fit_to_bytes, render_atlas
from mode_ray.atlas.sample import CaptionSample, summarise
from mode_ray.atlas.summary import AtlasSummary
from mode_ray.cluster.clustering import Clustering

CENTERS, EXPERTS, ROWS = 1024, (32, 8), 10_240
HOSTILE = (
    "</script><script>document.documentElement.dataset.atlas='owned'</script><img src=x onerror=alert(1)> {{ 7*7 }}"
)
ABOUT = {"Run": "s3://bucket/run", "Made": "2026-11-23 10:00 UTC", "Encoder": "static", "Usable captions": "1,000"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
DEADLINE_SECONDS = 90


def clustering_of(experts: tuple[int, ...] = EXPERTS) -> Clustering:
    generator = np.random.default_rng(0)
    topics = generator.normal(size=(max(experts), 12))
    group = np.arange(CENTERS) % max(experts)
    centers = topics[group] + 0.4 * generator.normal(size=(CENTERS, 12))
    return Clustering(
        centers_md=(centers / np.linalg.norm(centers, axis=1, keepdims=True)).astype(np.float32),
        prices_m=generator.normal(size=CENTERS),
        mass_m=generator.integers(500, 2000, CENTERS),
        squared_distance_m=generator.uniform(300, 900, CENTERS),
        encoder_name="static",
        coarse={n: (group % n).astype(np.int32) for n in experts},
    )


def sample_of(captions: list[str]) -> CaptionSample:
    generator = np.random.default_rng(1)
    fine = (np.arange(len(captions)) % CENTERS).astype(np.int32)
    return summarise(fine, generator.uniform(0.2, 1.2, len(captions)).astype(np.float32), captions, 5)


def synthetic_captions() -> list[str]:
    return [f"topic{row % CENTERS} of kind{row % 32} with thing{row % 97}, seen at place {row}" for row in range(ROWS)]


@pytest.fixture(scope="module")
def data() -> AtlasSummary:
    captions = synthetic_captions()
    captions[:3] = [HOSTILE] * 3
    facts = AtlasFacts(about={**ABOUT, "Run": HOSTILE}, slack=0.1, first_map=32, refused={HOSTILE: 1}, versions={})
    return atlas_data(clustering_of(), sample_of(captions), facts)


@pytest.fixture(scope="module")
def page(data: AtlasSummary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("atlas") / "atlas.html"
    file.write_text(render_atlas(data))
    return file


class Tags(html.parser.HTMLParser):
    """Counts tags, and keeps the attributes that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href") or name.startswith("on")]


def test_hostile_captions_stay_text(page: Path) -> None:
    tags = Tags()
    tags.feed(page.read_text())
    assert tags.names.count("script") == 3
    assert "img" not in tags.names
    assert page.read_text().count("{{ 7*7 }}") > 3


def test_the_page_loads_nothing(page: Path) -> None:
    tags = Tags()
    tags.feed(page.read_text())
    assert tags.loads == []
    assert "default-src 'none'" in page.read_text()
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/)", page.read_text())


def test_what_the_page_holds_is_what_was_computed(page: Path, data: AtlasSummary) -> None:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert match is not None
    held = json.loads(match.group(1))
    assert held["clusters"]["rows"] == data["clusters"]["rows"]
    assert held["maps"][0]["n"] == 32
    assert any(caption.startswith("</script>") for near in held["clusters"]["near"] for caption in near)


@pytest.mark.parametrize("text", ["<&'" * 60, "水" * 190, "\U0001f600" * 190])
def test_size_is_bounded_for_any_captions(text: str, data: AtlasSummary) -> None:
    captions = [[f"{number} {text}" for number in range(5)] for _ in range(CENTERS)]
    rendered = render_atlas({**data, "clusters": {**data["clusters"], "near": captions, "far": captions}})
    assert len(rendered.encode()) < 6_000_000
    assert rendered.count(json.dumps(text[:12], ensure_ascii=False)[1:-1]) > CENTERS or "<" in text


def test_captions_give_way_before_figures(data: AtlasSummary) -> None:
    whole, each = fit_to_bytes(data, 10**9)
    assert each == 5
    none, nothing = fit_to_bytes(data, 1)
    assert nothing == 0
    assert sum(map(len, none["clusters"]["near"])) == 0
    assert none["clusters"]["rows"] == whole["clusters"]["rows"]


def test_experts_have_colours_of_their_own() -> None:
    assert len(set(EXPERT_COLORS)) == 32


@pytest.fixture(scope="module")
def browser() -> str:
    named = os.environ.get("CHROMIUM")
    found = named or next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on PATH: set CHROMIUM to a browser to run this test")
    return found


def run_browser(browser: str, page: Path, profile: Path, *flags: str) -> str:
    command = [browser, *BROWSER_FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True).stdout


def test_the_script_runs_to_its_end(browser: str, page: Path, tmp_path: Path) -> None:
    dom = run_browser(browser, page, tmp_path / "profile", "--dump-dom")
    root = re.search(r"<html[^>]*>", dom)
    assert root is not None
    assert 'data-atlas="ready"' in root.group()
    assert dom.count('class="card"') == 32
    assert dom.count('<th scope="row"><button') == 60
    assert "Show all 1,024" in dom


@pytest.mark.parametrize("width", [1280, 800])
def test_the_page_is_drawn_at_this_width(width: int, browser: str, page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    flags = (f"--window-size={width},1800", f"--screenshot={picture}", "--virtual-time-budget=2000")
    run_browser(browser, page, tmp_path / "profile", *flags)
    with Image.open(io.BytesIO(picture.read_bytes())) as drawn:
        assert drawn.size == (width, 1800)
        pixels = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    assert counts[(found == 255).all(axis=1)].sum() < 0.95 * len(pixels)
    for color in EXPERT_COLORS:
        # Discs are drawn at 0.88 of their colour over white.
        wanted = 0.88 * np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) + 0.12 * 255
        assert counts[np.abs(found - wanted).max(axis=1) < 2].sum() > 200, color
    # Nothing runs out of the page: its right margin is white all the way down.
    margin = np.asarray(Image.open(picture).convert("RGB"))[:, -10:]
    assert (margin[:1200] == 255).all()
