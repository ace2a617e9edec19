"""The status page and playground: static files that a browser loads from the coordinator alone."""
