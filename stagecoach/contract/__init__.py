"""What both ends of a connection agree on: errors, statuses, tensors, layer ranges and limits."""
