"""Who may use the doors: API keys, and what each of them may have at once."""
