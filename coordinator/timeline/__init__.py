"""The timeline of a run: which micro-batch was where, and when, as a picture to look at."""
