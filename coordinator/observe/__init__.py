"""What others may see of the engine: steps, requests, metrics and traces."""
