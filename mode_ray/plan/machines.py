"""The machines to plan for: how many actors they have room for, and what they cost."""

import math
from dataclasses import dataclass

from mode_ray.errors import UsageError

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class ClusterShape:
    """The machines to plan for.

    Attributes:
        machines: Number of machines; 0 where only the GPUs are known.
        cores: Cores of each.
        gpus: GPUs of all machines together.
        capped: Whether the config's `max_actors` bounds the actors; else as many work as there is room for.
    """

    machines: int
    cores: int
    gpus: float
    capped: bool


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices in any one currency.

    Attributes:
        cpu_hour: One core for an hour.
        gpu_hour: One GPU, with the cores it comes with, for an hour.
        storage_month: A gigabyte (1e9 bytes) for a month.
    """

    cpu_hour: float = 0.0
    gpu_hour: float = 0.0
    storage_month: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage.

    Attributes:
        stage: Its name.
        actors: Actors (training: workers; evaluation: tasks) that work at the same time.
        core_hours: Cores reserved by them, times hours.
        gpu_hours: GPUs reserved by them, times hours.
        wall_hours: From the start of the stage to its end.
        read_bytes: Read from the run directory; the sources come on top.
        written_bytes: Written to the run directory.
        cost: Cost of the machines during the stage.
    """

    stage: str
    actors: int
    core_hours: float
    gpu_hours: float
    wall_hours: float
    read_bytes: float
    written_bytes: float
    cost: float


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """What the actors of a stage reserve.

    Attributes:
        actors: How many work at the same time.
        cpus: CPUs of each.
        gpus: GPUs of each.
    """

    actors: int
    cpus: float
    gpus: float = 0.0


def room_for(shape: ClusterShape, cpus: float, gpus: float, section: str) -> float:
    """Actors that the machines have room for; infinite where nothing is known of what they reserve.

    machines x floor(cores of a machine / cpus), and at most floor(gpus of the cluster / gpus).

    Args:
        shape: The machines.
        cpus: CPUs of an actor.
        gpus: GPUs of an actor.
        section: The config section of the two, for the message.

    Raises:
        UsageError: There is no room for a single one.
    """
    room = math.inf
    if shape.machines:
        room = shape.machines * int(shape.cores / cpus)
        if room == 0:
            raise UsageError(
                f"{section}.cpus_per_actor={cpus:g}: no room for an actor on a machine of {shape.cores} cores"
            )
    if gpus:
        room = min(room, int(shape.gpus / gpus))
        if room == 0:
            raise UsageError(f"{section}.gpus_per_actor={gpus:g}: no room for an actor on {shape.gpus:g} GPUs")
    return room


def stage_plan(
    stage: str,
    wall_seconds: float,
    reserved: Reserved,
    machines: tuple[ClusterShape, Prices],
    read_bytes: float = 0.0,
    written_bytes: float = 0.0,
) -> StagePlan:
    """A stage's plan from its wall time.

    All cores of the cluster are charged during the stage, or the reserved ones where the machines are not known and
    the stage uses no GPU. All GPUs of the cluster are charged in stages that use GPUs.
    """
    shape, prices = machines
    hours = wall_seconds / SECONDS_PER_HOUR
    cores, gpus = reserved.actors * reserved.cpus, reserved.actors * reserved.gpus
    charged_cores = float(shape.machines * shape.cores) or (0.0 if gpus else cores)
    charged_gpus = (shape.gpus or gpus) if gpus else 0.0
    return StagePlan(
        stage=stage,
        actors=reserved.actors,
        core_hours=cores * hours,
        gpu_hours=gpus * hours,
        wall_hours=hours,
        read_bytes=read_bytes,
        written_bytes=written_bytes,
        cost=hours * (charged_cores * prices.cpu_hour + charged_gpus * prices.gpu_hour),
    )
