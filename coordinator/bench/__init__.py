"""Measures a cluster as its clients see it: speed by batch size, and where the time goes."""
