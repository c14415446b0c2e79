"""All unfinished stages of a run as a Ray job.

ray job submit --working-dir . -- python jobs/pipeline.py --config my.yaml [key=value …]
"""

import sys

from mode_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
