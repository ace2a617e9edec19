"""What several commands share: their console, connection, flags and failures."""
