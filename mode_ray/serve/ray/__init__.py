"""The service as applications of Ray Serve."""
