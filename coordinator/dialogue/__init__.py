"""What a model writes in a conversation, and how: content, thinking and calls of tools."""
