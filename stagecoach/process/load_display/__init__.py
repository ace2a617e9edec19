"""Shows people how far models are on their way into memory: bars in a terminal, else lines.

For stage servers and for the coordinator, alike.
"""

from stagecoach.process.load_display.display import Display, load_display
from stagecoach.process.load_display.entry import Entry

__all__ = ["Display", "Entry", "load_display"]
