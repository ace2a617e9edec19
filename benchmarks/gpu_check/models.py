"""The models of checks that need only one."""

from pathlib import Path

from benchmarks.gpu_check.subject import Subject
from benchmarks.random_models import random_model
from tests.byte_models import byte_model


def large_model(subject: Subject) -> Path:
    """Folder of a model of 1.1 B in float16, with random weights; written once on a machine.

    A tiny one where the check is to be quick.
    """
    return byte_model(subject.folder) if subject.is_quick else random_model("llama-1b")


def text_model(subject: Subject) -> str:
    """The demo model, as `--model` takes it; a tiny random one where the check is to be quick."""
    return str(byte_model(subject.folder)) if subject.is_quick else "demo"
