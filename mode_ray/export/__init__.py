"""Models of a finished run as folders to hand on: experts, all of them with their clustering, or their average."""
