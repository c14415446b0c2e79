"""What benchmarks share: arguments, alternating measurement against named peers, one JSON line at the end."""

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mode_ray.util.versions import package_versions

OURS = "mode_ray"


@dataclass(frozen=True)
class Timings:
    """Wall times of one alternating measurement.

    Attributes:
        seconds: By name of the contender, one figure a round; the rounds of all names correspond.
    """

    seconds: Mapping[str, tuple[float, ...]]

    @property
    def median_seconds(self) -> dict[str, float]:
        """Median over the rounds, by name."""
        return {name: statistics.median(rounds) for name, rounds in self.seconds.items()}

    def speed_up(self, peer: str, of: str = OURS) -> float:
        """The peer's time over ours (or that of another contender), median over the rounds: above 1, we are faster."""
        pairs = zip(self.seconds[peer], self.seconds[of], strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def fastest(self, *names: str) -> str:
        """Which of these has the lowest median."""
        return min(names, key=self.median_seconds.__getitem__)


def arguments(description: str) -> argparse.ArgumentParser:
    """The arguments every benchmark takes: `--quick` (seconds, for a first look) and `--repeats`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds in all")
    parser.add_argument("--repeats", type=_positive, help="measured rounds (default: the benchmark's own)")
    return parser


def alternate(
    ours: Callable[[], object], peers: Mapping[str, Callable[[], object]], repeats: int, *, warm_up: bool = True
) -> Timings:
    """Measure us and every peer in turn: `alternate_all` with our name for `ours`.

    Raises:
        ValueError: No rounds, or a peer has our name.
    """
    if OURS in peers:
        raise ValueError(f"a peer cannot be called {OURS!r}")
    return alternate_all({OURS: ours, **peers}, repeats, warm_up=warm_up)


def alternate_all(contenders: Mapping[str, Callable[[], object]], repeats: int, *, warm_up: bool = True) -> Timings:
    """Measure all contenders in turn, round by round, after one unmeasured round (`warm_up`).

    A contender that returns a float has taken its own time: that many seconds count instead of its whole call.

    What slows the machine for a while then slows all alike. The order turns by one place each round, so that
    nobody always runs on another's warm caches.

    Raises:
        ValueError: No rounds.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: at least one round is needed")
    if warm_up:
        for run in contenders.values():
            run()
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            own = contenders[name]()
            seconds[name].append(own if isinstance(own, float) else time.perf_counter() - began)
    return Timings({name: tuple(rounds) for name, rounds in seconds.items()})


def finish(name: str, results: Mapping[str, float], details: Mapping[str, object] | None = None) -> None:
    """Print the result as one JSON object, the last line of a benchmark.

    Args:
        name: The benchmark's file name without `.py`.
        results: The figures that the benchmark is about, by name.
        details: Anything else that belongs to them: sizes, settings, timings.

    Raises:
        ValueError: A result is not a finite number.
    """
    for key, value in results.items():
        if not math.isfinite(value):
            raise ValueError(f"benchmark {name}: result {key} is {value}")
    line = {
        "benchmark": name,
        "results": dict(results),
        "machine": machine(),
        "versions": package_versions(),
        "details": dict(details or {}),
    }
    print(json.dumps(line), flush=True)


def machine() -> dict[str, object]:
    """The machine's processor, the cores this process may use, memory and operating system."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value
