"""Launch files of clusters rendered from one file of values, the watcher of spot machines, and checks of a cluster."""
