"""Shows people how far models are on their way into memory: bars in a terminal, else lines.

For stage servers and for the coordinator, which share nothing else.
"""

from load_display.display import Display, Entry, load_display

__all__ = ["Display", "Entry", "load_display"]
