"""The project's public files agree: one version, one address, and a README whose links work on PyPI too."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from mode_ray import __version__

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
ADDRESS: str = PROJECT["urls"]["Source"]
OWNER = ADDRESS.rsplit("/", 1)[0]
PUBLIC_FILES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CITATION.cff",
    *sorted(str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / ".github").rglob("*") if file.is_file()),
)
LINK = re.compile(r"\]\(([^)\s]+)|(?:href|src)=\"([^\"]+)\"")
PACKAGE_HOSTS = {"https://pypi.org", "https://files.pythonhosted.org"}


def links(text: str) -> list[str]:
    """The targets of links and images in Markdown, fenced code left out."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [markdown or html for markdown, html in LINK.findall(prose)]


def test_links_of_every_form_are_found() -> None:
    text = 'A [page](docs/a.md), ![picture](b.png) and <img src="c.png">.\n```\n[code](d)\n```\n'
    assert links(text) == ["docs/a.md", "b.png", "c.png"]


def test_readme_links_work_on_pypi() -> None:
    assert PROJECT["readme"] == "README.md"
    relative = [link for link in links((REPOSITORY / "README.md").read_text()) if not re.match(r"https://|#", link)]
    assert relative == [], f"PyPI shows README.md without the repository: write {ADDRESS}/blob/main/…"


@pytest.mark.parametrize("name", PUBLIC_FILES)
def test_links_to_the_repository_have_its_address_and_an_existing_target(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    own = re.findall(rf"{re.escape(OWNER)}[^\s)\"'>]*", text)
    assert [link for link in own if not link.startswith(ADDRESS)] == []
    files = [re.split(r"[#?]", link)[0] for link in own]
    for kind in ("/blob/main/", "/tree/main/", "/raw/main/"):
        missing = [file for file in files if kind in file and not (REPOSITORY / file.split(kind)[1]).exists()]
        assert missing == []
    for link in links(text) if name.endswith(".md") else []:
        if "://" not in link and not link.startswith("#"):
            assert (REPOSITORY / name).parent.joinpath(link.split("#")[0]).exists(), link


def test_all_project_urls_are_of_one_address() -> None:
    others = {key for key, url in PROJECT["urls"].items() if not url.startswith(ADDRESS)}
    assert others == {"Paper"}


def test_the_version_has_one_owner() -> None:
    assert "version" in PROJECT["dynamic"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["repository-code"] == ADDRESS
    assert f"## [{__version__}]" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_lock_names_public_package_hosts_only() -> None:
    hosts = set(re.findall(r"https?://[^/\"]+", (REPOSITORY / "uv.lock").read_text()))
    assert hosts == PACKAGE_HOSTS
