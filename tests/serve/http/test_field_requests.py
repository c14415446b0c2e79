"""Inputs that similar services failed on, from the folder shared/field beside the repository, where there is one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

GENERATOR = Path(__file__).resolve().parents[4] / "shared" / "field" / "cases_serving.py"
LABELS = ["house", "sun", "cat", "a red disc", "meadow"]
TOLERANCE = 0.02
DEADLINE_SECONDS = 60.0
PLAIN = {"/v1/classify": "labels-plain", "/": "hf-plain"}

Case = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not GENERATOR.is_file():
        pytest.skip(f"no {GENERATOR}")
    out = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, str(GENERATOR), str(out)], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def cases(folder: Path) -> list[Case]:
    found: list[Case] = json.loads((folder / "cases.json").read_text())
    assert len(found) > 100
    assert {case["kind"] for case in found} == {"image", "json"}, "a kind that this test does not send"
    return found


def scores_of(answer: httpx.Response) -> dict[str, float]:
    """The scores by label, or the probabilities of Hugging Face's form."""
    found = answer.json()
    if isinstance(found, list):
        return {entry["label"]: entry["score"] for entry in found}
    (result,) = found["results"]
    return dict(zip(result["labels"], result["scores"], strict=True))


def distance(one: httpx.Response, other: httpx.Response) -> float:
    first, second = scores_of(one), scores_of(other)
    assert first.keys() == second.keys()
    return float(np.max([abs(first[label] - second[label]) for label in first]))


def problem(case: Case, answers: dict[str, httpx.Response]) -> str | None:
    """What is not as the case expects."""
    answer = answers[case["name"]]
    if answer.status_code != 200 and set(answer.json()) != {"error"}:
        return f"an error of another form: {answer.text[:200]}"
    if case["expected"].startswith("same_as "):
        if answer.status_code != 200:
            return f"status {answer.status_code}: {answer.text[:200]}"
        away = distance(answer, answers[case["expected"].removeprefix("same_as ")])
        return None if away <= case.get("tolerance", TOLERANCE) else f"{away:.3f} away from {case['expected']}"
    for allowed in case["expected"].removeprefix("status ").replace("same_answer", "same").split(","):
        kind = allowed.removeprefix("status ")
        if kind == "same" and answer.status_code == 200:
            away = distance(answer, answers[PLAIN[case["path"]]])
            return None if away <= 1e-5 else f"{away:.3f} away from the plain form"
        if kind == str(answer.status_code):
            return None
    return f"status {answer.status_code}, expected {case['expected']}: {answer.text[:200]}"


def test_every_case_ends_as_it_should(plain_url: str, folder: Path, cases: list[Case]) -> None:
    answers: dict[str, httpx.Response] = {}
    with httpx.Client(base_url=plain_url, timeout=DEADLINE_SECONDS) as client:
        for case in cases:
            data = (folder / case["file"]).read_bytes()
            if case["kind"] == "image":
                headers = {"Content-Type": "application/octet-stream"}
                answers[case["name"]] = client.post(
                    "/v1/classify", content=data, params={"labels": LABELS}, headers=headers
                )
            else:
                headers = {"Content-Type": "application/json"}
                answers[case["name"]] = client.post(case["path"], content=data, headers=headers)
        assert client.get("/v1/ready").json()["ready"]
    problems = {case["name"]: found for case in cases if (found := problem(case, answers))}
    assert problems == {}
