"""The embed stage as a Ray job.

ray job submit --working-dir . -- python jobs/embed.py --config my.yaml [key=value …]
"""

import sys

from mode_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
