"""Class names and prompt templates of installed packages, by name: open_clip's, and those of clip-benchmark.

`builtin:NAME` is one of open_clip. `builtin:clip-benchmark/DATASET` is one of the optional package clip-benchmark, in
English; `builtin:clip-benchmark/LANGUAGE/DATASET` in another of its languages.
"""

from mode_ray.evaluate.tasks.clip_benchmark_texts import PACKAGE, Texts, clip_benchmark_texts

PREFIX = "builtin:"
# By name, the name in open_clip.zero_shot_metadata.
_OPEN_CLIP = {
    "classes": {"imagenet1k": "IMAGENET_CLASSNAMES"},
    "templates": {
        "openai-imagenet": "OPENAI_IMAGENET_TEMPLATES",
        "simple-imagenet": "SIMPLE_IMAGENET_TEMPLATES",
    },
}


def builtin_texts(texts: Texts, name: str) -> tuple[str, ...]:
    """Class names in the order of their numbers, or templates with {} for the name.

    Args:
        texts: Which of the two.
        name: With `builtin:` before it.

    Raises:
        ValueError: There is none of this name, or the package that has it is not installed; says what to do.
    """
    given = name.removeprefix(PREFIX)
    source, _, dataset = given.partition("/")
    if source == PACKAGE:
        return clip_benchmark_texts(texts, name, dataset)
    known = _OPEN_CLIP[texts]
    if given not in known:
        raise ValueError(
            f"{name}: no such {texts}; there are {', '.join(PREFIX + one for one in known)} and, with that package "
            f"installed, {PREFIX}{PACKAGE}/DATASET"
        )
    # Imported here: it takes torch along, which a driver without such a task has no use for.
    from open_clip import zero_shot_metadata

    found = getattr(zero_shot_metadata, known[given])
    return tuple(one("{}") if callable(one) else str(one) for one in found)
