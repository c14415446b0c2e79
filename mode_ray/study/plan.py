"""The runs of a study: every point with every seed, each in a separate directory."""

import json
import re
from dataclasses import dataclass

from mode_ray.config.load import load_config
from mode_ray.config.run import RunConfig
from mode_ray.config.study import StudyConfig
from mode_ray.errors import UsageError
from mode_ray.study.reuse import with_shared_seeds

POINTS = "points"


@dataclass(frozen=True, kw_only=True)
class StudyPoint:
    """One run of a study.

    Attributes:
        label: The label of its point.
        seed: Its training seed.
        config: Its config.
    """

    label: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """Its name in messages and tables."""
        return f"{self.label}, seed {self.seed}"


def plan_study(study: StudyConfig) -> list[StudyPoint]:
    """All runs, seed by seed. Runs with equal seed models share the first one's.

    Raises:
        UsageError: The base or a point is not a valid config, or two labels give one directory.
    """
    folders = {label: _folder(label) for label in study.labels}
    if len(set(folders.values())) < len(folders):
        raise UsageError("points: two labels differ only in punctuation: give them different letters or digits")
    keys, configs = [], []
    for seed in study.seeds:
        for label, own in study.changes_by_label.items():
            run = study.directory / POINTS / f"{folders[label]}-seed{seed}"
            seeds = dict.fromkeys(study.seeded_fields, seed)
            overrides = [
                f"{name}={json.dumps(value)}"
                for name, value in {**study.changes, **own, **seeds, "run": run.uri}.items()
            ]
            configs.append(load_config(study.base, overrides))
            keys.append((label, seed))
    return [
        StudyPoint(label=label, seed=seed, config=config)
        for (label, seed), config in zip(keys, with_shared_seeds(configs), strict=True)
    ]


def _folder(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-.") or "point"
