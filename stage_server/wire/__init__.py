"""The wire of a stage: from the bytes of a stream to a checked micro-batch and back."""
