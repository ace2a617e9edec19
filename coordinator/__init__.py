"""The coordinator: tokenizes, batches, routes activations through the stages and samples."""
