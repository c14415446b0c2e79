"""The features stage as a Ray job.

ray job submit --working-dir . -- python jobs/features.py --config my.yaml [key=value …]
"""

import sys

from mode_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["features", *sys.argv[1:]]))
