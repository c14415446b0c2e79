import base64
import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import ServeUrl, as_json, half_a_request, picture

LABELS = ["cat", "dog"]


def body(image: bytes | None = None, **fields: object) -> dict[str, object]:
    data = base64.b64encode(picture(1) if image is None else image).decode()
    return {"images": [{"base64": data}], "labels": LABELS, **fields}


def error_of(answer: httpx.Response) -> dict[str, object]:
    """The error, which has the one shape."""
    (name,) = answer.json()
    error: dict[str, object] = answer.json()[name]
    assert name == "error"
    assert set(error) == {"code", "message", "field", "request_id"}
    assert error["request_id"] == answer.headers["X-Request-ID"]
    return error


class TestTokens:
    def test_only_known_tokens_are_let_in_and_health_is_open(self, serve_url: ServeUrl) -> None:
        hashes = [hashlib.sha256(token).hexdigest() for token in (b"first", b"second")]
        with serve_url(token_hashes=hashes) as url, httpx.Client(base_url=url) as client:
            for headers in ({}, {"Authorization": "Bearer third"}, {"Authorization": "Basic first"}):
                answer = client.get("/v1/experts", headers=headers)
                assert (answer.status_code, error_of(answer)["code"]) == (401, "unauthorized")
            for token in ("first", "second"):
                assert client.get("/v1/experts", headers={"Authorization": f"Bearer {token}"}).status_code == 200
            assert client.get("/v1/health").status_code == client.get("/v1/ready").status_code == 200
            assert client.get("/openapi.json").status_code == 401
            assert client.post("/", json={}).status_code == 401


class TestLimits:
    def test_every_limit_refuses_with_its_name(self, serve_url: ServeUrl) -> None:
        limits = {"body_bytes": 8000, "image_pixels": 1300, "images": 2, "labels": 3, "text_characters": 20}
        with serve_url(limits=limits) as url, httpx.Client(base_url=url) as client:

            def refusal(**fields: Any) -> tuple[int, object]:  # noqa: ANN401 - any field may be wrong
                answer = client.post("/v1/classify", json=body(**fields))
                return answer.status_code, error_of(answer)["code"]

            assert client.post("/v1/classify", json=body()).status_code == 200
            assert refusal(labels=["x"] * 4) == (422, "limit_exceeded")
            assert refusal(labels=["x" * 21]) == (422, "limit_exceeded")
            assert refusal(labels=[" "]) == (422, "empty_text")
            assert refusal(templates=["no place"]) == (422, "bad_template")
            assert refusal(image=picture(1, "GIF", (40, 40))) == (422, "bad_image")
            assert refusal(images=as_json([picture(1, "GIF", (9, 9))] * 3)) == (422, "limit_exceeded")
            assert refusal(image=b"GIF89a, or so it says") == (422, "bad_image")
            assert refusal(labels=["x" * 8000]) == (413, "body_too_large")

            def chunks() -> Iterator[bytes]:
                yield from [b"x" * 1000] * 9

            headers = {"Content-Type": "application/json"}
            answer = client.post("/v1/classify", content=chunks(), headers=headers)
            assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")

    def test_too_many_requests_at_a_time_get_503_with_retry_after(self, serve_url: ServeUrl) -> None:
        with (
            serve_url(max_queued_requests=1) as url,
            httpx.Client(base_url=url) as client,
            half_a_request(url),
        ):
            answer = client.post("/v1/classify", json=body())
            assert (answer.status_code, error_of(answer)["code"]) == (503, "overloaded")
            assert int(answer.headers["Retry-After"]) >= 1
            assert client.get("/v1/health").status_code == 200

    def test_a_request_that_takes_too_long_gets_503(self, serve_url: ServeUrl) -> None:
        with serve_url(request_deadline_seconds=0.3) as url, half_a_request(url) as connection:
            assert connection.recv(64).startswith(b"HTTP/1.1 503")


class TestErrors:
    @pytest.mark.parametrize(
        ("method", "path", "fields", "expected"),
        [
            ("GET", "/v1/nothing", {}, (404, "not_found")),
            ("DELETE", "/v1/classify", {}, (405, "method_not_allowed")),
            ("POST", "/v1/classify", {"content": b"x"}, (415, "unsupported_media_type")),
            (
                "POST",
                "/v1/classify",
                {"content": b"{", "headers": {"Content-Type": "application/json"}},
                (400, "invalid_json"),
            ),
            ("POST", "/v1/tasks", {"json": {"labels": "cat"}}, (422, "invalid_request")),
            ("POST", "/v1/classify", {"json": {"image": "x"}}, (422, "invalid_request")),
            ("POST", "/v1/classify", {"json": body(labels=[])}, (422, "no_texts")),
            ("POST", "/v1/classify", {"json": body(task="0" * 32)}, (422, "ambiguous_task")),
            ("GET", "/v1/clusters?limit=0", {}, (422, "invalid_request")),
        ],
    )
    def test_all_have_one_shape(
        self, plain_url: str, method: str, path: str, fields: dict[str, object], expected: tuple[int, str]
    ) -> None:
        answer = httpx.request(method, plain_url + path, **fields)  # type: ignore[arg-type]
        assert (answer.status_code, error_of(answer)["code"]) == expected


class TestFields:
    """An error names the field as the request has it, and people count from 1."""

    @pytest.mark.parametrize(
        ("form", "field", "says"),
        [
            ([], "image", "image: Field required"),
            ([("image", "cat.jpg")], "image", "write -F image=@cat.jpg"),
            ([("images", picture(1))], "image", "the files are called image"),
            ([("image", picture(1)), ("labels", b"cat")], "labels", "a file instead of a text"),
            ([("image", b"x")], "image", "image 1"),
            ([("image", picture(1)), ("image", b"x")], "image", "image 2"),
            ([("image", b"x")] * 65, "image", "65 images: at most 64"),
            ([("image", b"x")] * 70, "image", "more than 64 images"),
            ([("image", picture(1)), ("top", "x")], "top", "top: "),
            ([("image", picture(1)), ("labels", " ")], "labels", "label 1 is empty"),
            ([("image", picture(1)), ("templates", "[1]")], "templates.0", "template 1: "),
            ([("image", picture(1)), ("task", "0" * 32)], "task", "not both"),
        ],
    )
    def test_of_a_form(self, plain_url: str, form: list[tuple[str, str | bytes]], field: str, says: str) -> None:
        fields = [*form, *(("labels", label) for label in LABELS)]
        parts = [(name, ("x", value) if isinstance(value, bytes) else (None, value)) for name, value in fields]
        answer = httpx.post(f"{plain_url}/v1/classify", files=parts)
        error = error_of(answer)
        assert answer.status_code == 422
        assert says in str(error["message"])
        assert error["field"] == field

    def test_of_a_form_without_labels(self, plain_url: str) -> None:
        error = error_of(httpx.post(f"{plain_url}/v1/classify", files={"image": picture(1)}))
        assert (error["field"], error["message"]) == ("labels", "labels: give at least one")

    @pytest.mark.parametrize(
        ("path", "fields", "field", "says"),
        [
            (
                "/v1/classify",
                {"images": [{"base64": "@@"}], "labels": LABELS},
                "images.0.base64",
                "image 1, base64: not",
            ),
            ("/v1/classify", {"images": as_json([b"x"]), "labels": LABELS}, "images", "image 1"),
            ("/v1/score", {"images": as_json([picture(1)])}, "texts", "texts: give at least one"),
            ("/v1/score", {"images": as_json([picture(1)]), "texts": ["a", ""]}, "texts", "text 2 is empty"),
            ("/v1/tasks", {}, "labels", "labels: give at least one"),
        ],
    )
    def test_of_json(self, plain_url: str, path: str, fields: dict[str, object], field: str, says: str) -> None:
        error = error_of(httpx.post(plain_url + path, json=fields))
        assert says in str(error["message"])
        assert error["field"] == field

    def test_of_an_image_as_the_body(self, plain_url: str) -> None:
        headers = {"Content-Type": "image/png"}
        answer = httpx.post(f"{plain_url}/v1/classify", params={"labels": LABELS}, content=b"x", headers=headers)
        assert error_of(answer)["field"] == "body"


class TestBase64:
    def test_all_spellings_have_the_same_answer(self, plain_url: str) -> None:
        data = picture(3)
        plain, url_safe = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
        assert {"+", "/"} & set(plain)
        wrapped = "\n".join(plain[start : start + 76] for start in range(0, len(plain), 76))
        spellings = [plain, url_safe, url_safe.rstrip("="), wrapped, f"data:image/png;base64,{plain}"]
        answers = []
        for spelling in spellings:
            fields = {"images": [{"base64": spelling}], "labels": LABELS}
            answers.append(httpx.post(f"{plain_url}/v1/classify", json=fields).json()["results"])
        assert answers == [answers[0]] * len(spellings)

    @pytest.mark.parametrize(
        ("text", "says"),
        [("https://example.org/x", "fetches no addresses"), ("data:image/png,x", "must contain base64"), ("é", "not")],
    )
    def test_anything_else_is_refused_with_the_reason(self, plain_url: str, text: str, says: str) -> None:
        fields = {"images": [{"base64": text}], "labels": LABELS}
        assert says in str(error_of(httpx.post(f"{plain_url}/v1/classify", json=fields))["message"])


class TestHeadersAndLogs:
    def test_answers_carry_security_headers(self, plain_url: str) -> None:
        answer = httpx.get(f"{plain_url}/v1/health")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "server" not in answer.headers

    def test_nothing_of_a_request_reaches_the_log(self, serve_url: ServeUrl, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "mode_ray")
        caplog.set_level(logging.DEBUG, "uvicorn")
        with serve_url() as url:
            headers = {"Content-Type": "image/png"}
            query = {"labels": ["secret-cat", "secret-dog"]}
            assert httpx.post(f"{url}/v1/classify", params=query, content=picture(1), headers=headers).is_success
            assert httpx.post(f"{url}/v1/classify", params=query, content=b"x", headers=headers).status_code == 422
        assert "/v1/classify" in caplog.text
        assert "secret" not in caplog.text
