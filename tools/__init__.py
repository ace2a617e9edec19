"""What builds the repository; not part of what is installed."""
