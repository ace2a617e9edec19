"""Builds the engine that a configuration names, and imports that engine alone."""

from pathlib import Path

from stage_server.core.config import StageConfig
from stage_server.core.engine import StageEngine
from stage_server.core.load_board import Report, no_report
from stagecoach.model_files import ModelFiles
from stagecoach.process.lasting_objects import lasting_objects


def build_engine(config: StageConfig, files: ModelFiles, report: Report = no_report) -> StageEngine:
    """Makes the engine of a stage; loading layers takes seconds to minutes.

    Args:
        config: The stage's configuration.
        files: The model.
        report: Told how far it is.

    Raises:
        IncompatibleError: The model is not supported, its files are damaged, the layers do not
            exist, or weights or KV memory do not fit the device.
    """
    engine = _build_named(config, files, report)
    if config.unsafe_fault_hooks is None:
        return engine
    from stage_server.compute.fault_hooks import FaultHooks

    return FaultHooks(engine, Path(config.unsafe_fault_hooks))


def _build_named(config: StageConfig, files: ModelFiles, report: Report) -> StageEngine:
    if config.engine == "emulated":
        from stage_server.emulation.emulated_engine import EmulatedEngine

        return EmulatedEngine(config, files)
    with lasting_objects():
        from stage_server.compute.torch_engine import build_engine as build_torch_engine

    return build_torch_engine(config, files, report)
