"""The train stage as a Ray job.

ray job submit --working-dir . -- python jobs/train.py --config my.yaml [key=value …]
"""

import sys

from mode_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
