"""docs/config.md names every field, and is what the config's source says today."""

from pathlib import Path

from mode_ray.config.base import Settings
from mode_ray.config.reference import config_reference
from mode_ray.config.run import RunConfig

PAGE = Path(__file__).resolve().parents[2] / "docs/config.md"


def leaf_names(model: type[Settings]) -> set[str]:
    """The last name of every field that is no section."""
    names: set[str] = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            names |= leaf_names(kind)
        else:
            names.add(name)
    return names


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == config_reference(), (
        "run: .venv/bin/python -m mode_ray.config.reference > docs/config.md"
    )


def test_every_field_has_a_row() -> None:
    page = config_reference()
    missing = {name for name in leaf_names(RunConfig) if f"\n| `{name}` | " not in page}
    assert not missing


def test_a_row_tells_type_limits_default_and_meaning() -> None:
    page = config_reference()
    assert "| `seed_share` | float ≥ 0, ≤ 1 | `0.84375` | Share of `dense_samples`" in page
    assert "| `dense_samples` | int > 0 or null | `null` | " in page
    assert "| `paths` | list of str | **required** | " in page
    assert "| `gradient_norm_clip` | float > 0 or null | `null` |" in page
    assert "| `experts` | list of int | `[4]` | " in page
    assert "## `embed.pool` (placement)" in page
    routers = page.split("## `serve.router_replicas`")[1].split("##")[0]
    assert "| `min` | int > 0 | `2` |" in routers, "the default of this section, not of its type"
