"""Class names and prompt templates of the packages open_clip and clip-benchmark, by name.

`builtin:NAME` comes from open_clip. `builtin:clip-benchmark/DATASET` comes from the optional package clip-benchmark in
English, `builtin:clip-benchmark/LANGUAGE/DATASET` in another language.
"""

from mode_ray.evaluate.tasks.clip_benchmark_texts import PACKAGE, Texts, clip_benchmark_texts

PREFIX = "builtin:"
# The variable in open_clip.zero_shot_metadata by name.
_OPEN_CLIP = {
    "classes": {"imagenet1k": "IMAGENET_CLASSNAMES"},
    "templates": {
        "openai-imagenet": "OPENAI_IMAGENET_TEMPLATES",
        "simple-imagenet": "SIMPLE_IMAGENET_TEMPLATES",
    },
}


def builtin_texts(texts: Texts, name: str) -> tuple[str, ...]:
    """Class names in the order of their numbers, or templates with {}, for a name that begins with `builtin:`.

    Raises:
        ValueError: The name is unknown, or its package is not installed; the message says what to do.
    """
    given = name.removeprefix(PREFIX)
    source, _, dataset = given.partition("/")
    if source == PACKAGE:
        return clip_benchmark_texts(texts, name, dataset)
    known = _OPEN_CLIP[texts]
    if given not in known:
        raise ValueError(
            f"{name}: unknown {texts}; there are {', '.join(PREFIX + one for one in known)} and, with that package "
            f"installed, {PREFIX}{PACKAGE}/DATASET"
        )
    # Imported here because it imports torch, which a driver without such a task does not need.
    from open_clip import zero_shot_metadata

    found = getattr(zero_shot_metadata, known[given])
    return tuple(one("{}") if callable(one) else str(one) for one in found)
