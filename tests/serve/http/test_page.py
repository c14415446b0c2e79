"""The page in a real browser, Debian's Chromium (on PATH, or named by CHROMIUM), over the service in this process."""

import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from serving import ServeUrl

from mode_ray.serve.http.page import PAGE_POLICY, page_routes
from mode_ray.serve.service.served_run import ServedRun
from mode_ray.storage import Location

STATIC = Path(str(resources.files("mode_ray.serve"))) / "static"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
PHONE = {"width": 360, "height": 740}
ANSWER_MILLISECONDS = 60_000  # on a machine that does other things besides
UNTRUSTED = "<img src=x onerror=document.title='broken'>"
TOKEN = "a-token"  # noqa: S105
HAND_OVER = """([gesture, content]) => {
  const given = new DataTransfer();
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  given.items.add(new File([bytes], "given.png", { type: "image/png" }));
  const shared = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(
    gesture === "drop"
      ? new DragEvent("drop", { ...shared, dataTransfer: given })
      : new ClipboardEvent("paste", { ...shared, clipboardData: given }),
  );
}"""
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root has no other
        yield chromium
        chromium.close()


@contextlib.contextmanager
def opened(browser: Browser, url: str, **context: object) -> Iterator[Page]:
    """The page, on which no script may fail and from which no request may leave the origin."""
    failures: list[str] = []
    requests: list[str] = []
    said: list[str] = []
    with contextlib.closing(browser.new_context(**context)) as own:  # type: ignore[arg-type]
        own.set_default_timeout(ANSWER_MILLISECONDS)
        page = own.new_page()
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url)
        yield page
    assert failures == []
    assert [text for text in said if "Content Security Policy" in text] == []
    assert [request for request in requests if not request.startswith(url.partition("#")[0])] == []


def png(folder: Path, name: str = "red.png") -> Path:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    (folder / name).write_bytes(buffer.getvalue())
    return folder / name


def asked(url: str, **request: object) -> dict[str, list[dict[str, list[Any]]]]:
    """What the API itself answers."""
    body = json.dumps(request).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}v1/classify", body, headers), timeout=60) as answer:  # noqa: S310
        found: dict[str, list[dict[str, list[Any]]]] = json.load(answer)
    return found


def base_of(url: str) -> str:
    return f"{url.rstrip('/')}/"


def ranked(page: Page) -> list[str]:
    expect(page.locator(".ranking").first).to_be_visible(timeout=ANSWER_MILLISECONDS)
    return page.locator(".ranking").first.locator(".name").all_text_contents()


@pytest.fixture(scope="module")
def atlas_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("atlas") / "atlas.html"
    file.write_text("<title>Atlas</title><script>document.title += ` of ${self.origin}`</script>")
    return file


@pytest.fixture(scope="module")
def client(atlas_file: Path) -> TestClient:
    """Of the page alone."""
    app = FastAPI()
    app.include_router(page_routes(lambda: Location.parse(str(atlas_file))))
    return TestClient(app)


class TestFiles:
    def test_they_are_sent_with_their_media_types(self, client: TestClient) -> None:
        for path, media_type in (
            ("/", "text/html; charset=utf-8"),
            ("/static/main.js", "text/javascript; charset=utf-8"),
            ("/static/page.css", "text/css; charset=utf-8"),
            ("/static/icon.svg", "image/svg+xml"),
        ):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["Content-Type"]) == (200, media_type)

    def test_none_names_another_host_or_holds_script_or_style_inside(self) -> None:
        files = sorted(STATIC.iterdir())
        assert {"index.html", "main.js", "page.css", "icon.svg"} <= {file.name for file in files}
        for file in files:
            content = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
            for unwanted in ("http://", "https://", "innerHTML", "<style", "style=", "onclick"):
                assert unwanted not in content, file.name

    def test_a_browser_that_has_one_is_told_so(self, client: TestClient) -> None:
        first = client.get("/static/main.js")
        assert first.headers["Content-Security-Policy"] == PAGE_POLICY
        again = client.get("/static/main.js", headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")

    @pytest.mark.parametrize("name", ["page.py", "..%2fpage.py", "%2e%2e/page.py", ""])
    def test_nothing_else_is_sent(self, client: TestClient, name: str) -> None:
        assert client.get(f"/static/{name}").status_code == 404


class TestAtlas:
    def test_it_is_sent_into_a_sandbox_of_no_origin(self, client: TestClient) -> None:
        answer = client.get("/atlas")
        assert "<title>Atlas" in answer.text
        assert answer.headers["Content-Security-Policy"].startswith("sandbox allow-scripts;")

    def test_a_run_without_one_says_how_to_make_it(self, plain_url: str) -> None:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{base_of(plain_url)}atlas", timeout=60)  # noqa: S310
        assert caught.value.code == 404
        assert "mode-ray atlas" in json.load(caught.value)["error"]["message"]


@needs_browser
class TestClassify:
    def test_the_ranking_is_the_answer_of_the_api(self, browser: Browser, plain_url: str, tmp_path: Path) -> None:
        labels = ["a dog", "a tram", "a plum", "a cat"]
        with opened(browser, base_of(plain_url)) as page:
            page.get_by_label("Choose images").set_input_files(png(tmp_path))
            page.locator("#labels").fill("\n".join(labels))
            page.get_by_role("button", name="Classify").click()
            shown = ranked(page)
            figures = page.locator(".ranking .figure").all_text_contents()
            experts = page.locator(".weights .name").all_text_contents()
            found = asked(
                base_of(plain_url),
                images=[{"base64": base64.b64encode(png(tmp_path).read_bytes()).decode()}],
                labels=labels,
            )
        (result,) = found["results"]
        assert shown == result["labels"]
        assert figures == [f"{share * 100:.1f} %" for share in result["probabilities"]]
        assert sorted(experts) == ["Expert 0", "Expert 1", "Expert 2"]

    @pytest.mark.parametrize("gesture", ["drop", "paste"])
    def test_an_image_may_be_dropped_or_pasted(
        self, browser: Browser, plain_url: str, tmp_path: Path, gesture: str
    ) -> None:
        content = base64.b64encode(png(tmp_path).read_bytes()).decode()
        with opened(browser, base_of(plain_url)) as page:
            page.evaluate(HAND_OVER, [gesture, content])
            expect(page.get_by_role("button", name="Remove given.png")).to_be_visible()
            page.locator("#labels").fill("a dog, a cat")
            page.get_by_role("button", name="Classify").click()
            assert sorted(ranked(page)) == ["a cat", "a dog"]

    def test_a_degraded_answer_says_who_is_missing(self, browser: Browser, plain_url: str, tmp_path: Path) -> None:
        def without_expert_1(route: Route) -> None:
            answer = route.fetch()
            route.fulfill(response=answer, json={**answer.json(), "degraded": True, "left_out": [1]})

        with opened(browser, base_of(plain_url)) as page:
            page.route("**/v1/classify", without_expert_1)
            page.get_by_label("Choose images").set_input_files(png(tmp_path))
            page.locator("#labels").fill("a dog, a cat")
            page.get_by_role("button", name="Classify").click()
            expect(page.get_by_role("alert")).to_contain_text(
                "Degraded answer: Expert 1 did not answer in time", timeout=ANSWER_MILLISECONDS
            )
            expect(page.locator(".weights .lost .name")).to_have_text(["Expert 1"])

    def test_an_example_is_one_click_away(self, browser: Browser, plain_url: str) -> None:
        with opened(browser, base_of(plain_url)) as page:
            page.get_by_role("button", name="heart", exact=True).click()
            assert "a red heart" in ranked(page)
            expect(page.get_by_role("heading", name="Nearest clusters")).to_be_visible()

    def test_it_works_by_keyboard_alone(self, browser: Browser, plain_url: str, tmp_path: Path) -> None:
        with opened(browser, base_of(plain_url)) as page:
            page.on("filechooser", lambda choice: choice.set_files(png(tmp_path)))
            for _ in range(20):
                page.keyboard.press("Tab")
                if page.evaluate("document.activeElement.id") == "files":
                    break
            page.keyboard.press("Enter")
            expect(page.get_by_role("button", name="Remove red.png")).to_be_visible()
            page.keyboard.press("Tab")
            page.keyboard.press("Tab")
            page.keyboard.type("a bus, a pear")
            page.keyboard.press("Control+Enter")
            assert sorted(ranked(page)) == ["a bus", "a pear"]
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"

    def test_a_label_or_file_name_is_never_markup(self, browser: Browser, plain_url: str, tmp_path: Path) -> None:
        with opened(browser, base_of(plain_url)) as page:
            page.get_by_label("Choose images").set_input_files(png(tmp_path, "<b>red.png"))
            page.locator("#labels").fill(f"{UNTRUSTED}\na dog")
            page.get_by_role("button", name="Classify").click()
            assert UNTRUSTED in ranked(page)
            assert page.locator("#answer-title ~ * img, #answer-title ~ * b").count() == 0
            assert page.title() != "broken"

    def test_a_file_that_is_no_image_does_not_keep_the_others_from_their_answer(
        self, browser: Browser, plain_url: str, tmp_path: Path
    ) -> None:
        (tmp_path / "no.png").write_bytes(b"not an image")
        with opened(browser, base_of(plain_url)) as page:
            page.get_by_label("Choose images").set_input_files([tmp_path / "no.png", png(tmp_path)])
            page.locator("#labels").fill("a dog\na cat")
            page.get_by_role("button", name="Classify").click()
            assert sorted(ranked(page)) == ["a cat", "a dog"]
            expect(page.locator(".result .problem")).to_have_count(1)

    def test_an_error_of_the_api_is_its_one_sentence(
        self, browser: Browser, serve_url: ServeUrl, tmp_path: Path
    ) -> None:
        with serve_url(limits={"labels": 2}) as address, opened(browser, base_of(address)) as page:
            page.get_by_label("Choose images").set_input_files(png(tmp_path))
            page.locator("#labels").fill("a dog\na cat\na bus")
            page.get_by_role("button", name="Classify").click()
            expect(page.locator("#problem")).to_contain_text("serve.limits.labels", timeout=ANSWER_MILLISECONDS)
            expect(page.locator(".ranking")).to_have_count(0)

    def test_it_asks_for_a_token_where_the_server_does(self, browser: Browser, serve_url: ServeUrl) -> None:
        hashes = [hashlib.sha256(TOKEN.encode()).hexdigest()]
        with serve_url(token_hashes=hashes) as address, opened(browser, base_of(address)) as page:
            field = page.get_by_label("Bearer token")
            field.fill("wrong")
            field.press("Enter")
            expect(page.get_by_text("does not know that token")).to_be_visible(timeout=ANSWER_MILLISECONDS)
            field.fill(TOKEN)
            field.press("Enter")
            expect(page.get_by_text("An ensemble of 3 CLIP data experts")).to_be_visible(timeout=ANSWER_MILLISECONDS)
            expect(field).to_be_hidden()


@needs_browser
class TestClusters:
    def test_they_are_found_by_expert_and_number(self, browser: Browser, plain_url: str) -> None:
        with opened(browser, f"{base_of(plain_url)}#clusters") as page:
            cards = page.locator("#cluster-list > li")
            expect(cards).to_have_count(9, timeout=ANSWER_MILLISECONDS)
            page.get_by_label("Expert").select_option("1")
            expect(cards).to_have_count(3, timeout=ANSWER_MILLISECONDS)
            page.get_by_label("Find").fill("#4")
            expect(page.get_by_role("heading", name="Cluster 4")).to_be_visible(timeout=ANSWER_MILLISECONDS)
            expect(cards).to_have_count(1)

    def test_the_atlas_runs_its_script_without_reaching_the_api(
        self,
        browser: Browser,
        serve_url: ServeUrl,
        served: ServedRun,
        atlas_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setitem(vars(served), "atlas", Location.parse(str(atlas_file)))
        with serve_url() as address, opened(browser, f"{base_of(address)}#clusters") as page:
            with page.expect_popup() as shown:
                page.get_by_role("link", name="Atlas").click()
            expect(shown.value).to_have_title("Atlas of null", timeout=ANSWER_MILLISECONDS)

    def test_they_are_turned_page_by_page(self, browser: Browser, plain_url: str) -> None:
        script = (STATIC / "clusters.js").read_text()
        assert "const PAGE = 24;" in script
        short = script.replace("const PAGE = 24;", "const PAGE = 4;")
        with opened(browser, f"{base_of(plain_url)}#clusters") as page:
            page.route(
                "**/static/clusters.js", lambda route: route.fulfill(body=short, content_type="text/javascript")
            )
            page.reload()
            page.get_by_text("1 to 4 of 9 clusters").wait_for()
            expect(page.get_by_role("button", name="Previous")).to_be_disabled()
            page.get_by_role("button", name="Next").click()
            page.get_by_text("5 to 8 of 9 clusters").wait_for()
            page.get_by_role("button", name="Next").click()
            page.get_by_text("9 to 9 of 9 clusters").wait_for()
            expect(page.get_by_role("button", name="Next")).to_be_disabled()


@needs_browser
class TestPhone:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_nothing_is_wider_than_the_screen(self, browser: Browser, plain_url: str, scheme: str) -> None:
        wide = "document.documentElement.scrollWidth > innerWidth"
        with opened(browser, base_of(plain_url), viewport=PHONE, color_scheme=scheme) as page:
            assert not page.evaluate(wide)
            page.get_by_role("button", name="house", exact=True).click()
            ranked(page)
            page.get_by_text("The first choice of each expert").click()
            assert not page.evaluate(wide)
            page.get_by_role("link", name="Clusters").click()
            page.locator("#cluster-list > li").first.wait_for()
            assert not page.evaluate(wide)
