"""How commands call a model."""

from stagecoach.client import ModelStatus


def model_title(model: ModelStatus) -> str:
    """What requests call a model, and what its operator does where that is another name."""
    name = next(iter(model.names), model.model_id)
    return name if name == model.model_id else f"{name} ({model.model_id})"
