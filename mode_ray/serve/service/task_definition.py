"""A task as requests describe it: labels with templates, or texts; its id is the hash of its content."""

import hashlib
import json
from functools import cached_property

from pydantic import BaseModel, ConfigDict

from mode_ray.config.evaluate import RoutingRule
from mode_ray.config.serve import ServeLimits
from mode_ray.serve.service.errors import ServiceError, over_limit

PLACEHOLDER = "{}"
_ID_DIGITS = 32


class TaskDefinition(BaseModel):
    """Labels with templates, or texts.

    Attributes:
        labels: Class names; empty for a task of texts.
        templates: Every label is put into each of them; empty for a task of texts.
        texts: Texts that are used as they are.
        rule: The routing rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    rule: RoutingRule

    @cached_property
    def id(self) -> str:
        """The first 32 hex digits of the SHA-256 of the content."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:_ID_DIGITS]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes: labels or texts."""
        return self.labels or self.texts

    def class_texts(self) -> list[list[str]]:
        """The texts of every class: its label in all templates, or the text itself."""
        if self.texts:
            return [[text] for text in self.texts]
        return [[template.replace(PLACEHOLDER, label) for template in self.templates] for label in self.labels]


def is_task_id(text: str) -> bool:
    """Whether a text has the form of a task's id."""
    return len(text) == _ID_DIGITS and set(text) <= set("0123456789abcdef")


def check_definition(task: TaskDefinition, limits: ServeLimits) -> None:
    """Check the limits and the form of a task.

    Raises:
        ServiceError: A limit is exceeded, there are no texts, one is empty, or a template has no place for the label.
    """
    if not task.names:
        raise ServiceError(
            "no_texts", "give at least one label or text", field="labels" if task.templates else "texts"
        )
    for field, values, limit in (
        ("labels", task.labels, limits.labels),
        ("templates", task.templates, limits.templates),
        ("texts", task.texts, limits.texts),
    ):
        if len(values) > limit:
            raise over_limit(field, len(values), limit, field, field)
        _check_texts(values, limits, field)
    total = len(task.labels) * len(task.templates)
    if total > limits.texts:
        raise over_limit("texts (labels times templates)", total, limits.texts, "templates", "texts")
    for template in task.templates:
        if PLACEHOLDER not in template:
            raise ServiceError(
                "bad_template",
                "a template needs {} for the label: a photo of a {}.",
                field="templates",
            )


def _check_texts(texts: tuple[str, ...], limits: ServeLimits, field: str) -> None:
    one = field.removesuffix("s")
    for number, text in enumerate(texts, start=1):
        if len(text) > limits.text_characters:
            raise over_limit(
                f"characters in {one} {number}", len(text), limits.text_characters, field, "text_characters"
            )
        if not text.strip():
            raise ServiceError("empty_text", f"{one} {number} is empty", field=field)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ServiceError("bad_text", f"{one} {number} is not valid Unicode", field=field) from None
