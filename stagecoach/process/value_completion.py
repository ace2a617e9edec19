"""Values that Tab completes after a flag of our commands, once completion is installed."""

from collections.abc import Iterable

from stagecoach.contract.stage_choices import (
    DTYPE_NAMES,
    ENGINE_NAMES,
    KV_DTYPE_NAMES,
    WEIGHTS_NAMES,
)
from stagecoach.telemetry.log_config import LOG_LEVELS


def models(incomplete: str) -> list[str]:
    """The demo model and shapes; what else begins so is completed as a path by the shell."""
    from stagecoach.model_files.open_model import known_models

    return _beginning_with(incomplete, known_models())


def gpus(incomplete: str) -> list[str]:
    """Names of GPUs that are known."""
    from stagecoach.roofline.devices import GPUS

    return _beginning_with(incomplete, GPUS)


def networks(incomplete: str) -> list[str]:
    """Names of networks that are known."""
    from stagecoach.roofline.networks import NETWORKS

    return _beginning_with(incomplete, NETWORKS)


def dtypes(incomplete: str) -> list[str]:
    """Values of `--dtype`."""
    return _beginning_with(incomplete, DTYPE_NAMES)


def weights(incomplete: str) -> list[str]:
    """Values of `--weights`."""
    return _beginning_with(incomplete, WEIGHTS_NAMES)


def planned_weights(incomplete: str) -> list[str]:
    """Values of the planner's `--weights`."""
    from stagecoach.roofline.few_bits import PLANNED

    return _beginning_with(incomplete, ("auto", *PLANNED))


def kv_dtypes(incomplete: str) -> list[str]:
    """Values of `--kv-dtype`."""
    return _beginning_with(incomplete, KV_DTYPE_NAMES)


def engines(incomplete: str) -> list[str]:
    """Values of `--engine`."""
    return _beginning_with(incomplete, ENGINE_NAMES)


def devices(incomplete: str) -> list[str]:
    """Values of `--device`; that of one card is typed."""
    return _beginning_with(incomplete, ("auto", "cpu", "cuda"))


def log_levels(incomplete: str) -> list[str]:
    """Values of `--log-level`."""
    return _beginning_with(incomplete, LOG_LEVELS)


def _beginning_with(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
