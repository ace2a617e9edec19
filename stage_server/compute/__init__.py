"""Computes micro-batches: the model thread, the engine of real layers, and the logits."""
