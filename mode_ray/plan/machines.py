"""The machines of a plan: the number of actors that fit on them, and their cost."""

import math
from dataclasses import dataclass

from mode_ray.errors import UsageError

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class ClusterShape:
    """The machines to plan for.

    Attributes:
        machines: Number of machines; 0 if only the GPUs are known.
        cores: Cores of each machine.
        gpus: GPUs of all machines together.
        capped: Whether `max_actors` of the config limits the actors. Otherwise only the machines limit them.
    """

    machines: int
    cores: int
    gpus: float
    capped: bool


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Prices in one currency.

    Attributes:
        cpu_hour: One core for an hour.
        gpu_hour: One GPU with its cores for an hour.
        storage_month: A gigabyte (1e9 bytes) for a month.
    """

    cpu_hour: float = 0.0
    gpu_hour: float = 0.0
    storage_month: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The plan of one stage.

    Attributes:
        stage: Name of the stage.
        actors: Concurrent actors (training: workers; evaluation: tasks).
        core_hours: Reserved cores times hours.
        gpu_hours: Reserved GPUs times hours.
        wall_hours: Duration of the stage.
        read_bytes: Bytes read from the run directory, without the source data.
        written_bytes: Bytes written to the run directory.
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
    """The resources that the actors of a stage reserve.

    Attributes:
        actors: Concurrent actors.
        cpus: CPUs of each actor.
        gpus: GPUs of each actor.
    """

    actors: int
    cpus: float
    gpus: float = 0.0


def room_for(shape: ClusterShape, cpus: float, gpus: float, section: str) -> float:
    """Actors with `cpus` and `gpus` each that fit on the machines; infinite if neither is known.

    machines x floor(cores of a machine / cpus), and at most floor(gpus of the cluster / gpus).

    Raises:
        UsageError: Not a single actor fits; the message names the config `section`.
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
    """The plan of a stage from its wall time.

    All cores of the cluster are charged during the stage. If the machines are unknown and the stage uses no GPU, only
    the reserved cores are charged. All GPUs of the cluster are charged in stages that use GPUs.
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
