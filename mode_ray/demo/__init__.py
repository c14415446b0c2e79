"""Real image-caption pairs for a first run, drawn here from Python packages (the extra `mode_ray[demo]`)."""
