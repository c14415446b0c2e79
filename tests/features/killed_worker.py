"""Computes the features of the units of a config, `FILE DIRECTORY`, until it is killed; run as a script."""

import sys

from mode_ray.captions.listing import list_work_units
from mode_ray.config.load import load_config
from mode_ray.features.worker import FeatureWorker
from mode_ray.stages.actor import UnitActor
from mode_ray.storage import Location

if __name__ == "__main__":
    config = load_config(sys.argv[1])
    actor = UnitActor(FeatureWorker(config), Location.parse(sys.argv[2]), "first", 0)
    for record in actor.process(list_work_units(config.captions)):
        sys.stdout.write(f"{record.unit}\n")
        sys.stdout.flush()
