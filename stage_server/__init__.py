"""The stage server: one process that owns one layer range of a model and its KV cache."""
