"""The nouns of a stage server: its configuration, a micro-batch, and what an engine is."""
