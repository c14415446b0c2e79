"""The ensemble as a service, without HTTP and without Ray."""
