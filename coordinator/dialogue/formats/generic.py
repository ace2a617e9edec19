"""The format that a model is told of whose chat template knows no tools: that of Hermes."""

from dataclasses import replace

from coordinator.dialogue.formats.hermes import HERMES

GENERIC = replace(HERMES, label="generic", signs=())
