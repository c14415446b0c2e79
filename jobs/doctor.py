"""Checks of a cluster as a Ray job: every node, its GPUs, clocks and access to the bucket.

ray job submit --working-dir . -- python jobs/doctor.py --bucket s3://my-bucket/mode
"""

import sys

from mode_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
