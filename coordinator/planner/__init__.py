"""Plans a cluster before anything is loaded: layer split, memory, speed. Pure arithmetic."""
