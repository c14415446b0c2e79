"""`python -m mode_ray`: the command line."""

import sys

from mode_ray.cli import main

sys.exit(main())
