"""Shows people how far models are on their way into memory: bars in a terminal, else lines.

For stage servers and for the coordinator, alike.
"""

from stagecoach.process.load_display.display import Display, load_display
from stagecoach.process.load_display.entry import Entry
from stagecoach.process.load_display.lines import Lines

__all__ = ["Display", "Entry", "Lines", "load_display"]
