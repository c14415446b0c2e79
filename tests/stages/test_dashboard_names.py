import pytest

from mode_ray.stages.dashboard_names import shown_name
from mode_ray.storage import Location


@pytest.mark.parametrize(
    ("uri", "parts", "name"),
    [
        ("/data/my-run/embeddings", 2, "my-run.embeddings"),
        ("s3://bucket/mode/run1", 1, "run1"),
        ("/data/猫 run", 1, "__run"),
        ("/data/猫", 1, "_"),
    ],
)
def test_a_run_is_shown_by_its_directory_in_ascii(uri: str, parts: int, name: str) -> None:
    assert shown_name(Location(uri), parts) == name
