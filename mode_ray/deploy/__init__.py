"""Launch files of clusters, rendered from one file of values, and jobs submitted to clusters."""
