"""The way through the stages: topology, one link a stage, micro-batches in flight."""
