"""Runs requests: takes them in, places them on lanes, and takes each step there and back."""
