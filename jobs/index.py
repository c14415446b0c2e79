"""The image index as a Ray job.

ray job submit --working-dir . -- python jobs/index.py --config my.yaml [key=value …]
"""

import sys

from mode_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["index", *sys.argv[1:]]))
