"""What an emulated stage does in place of arithmetic: it hashes, makes logits of it, and waits."""
