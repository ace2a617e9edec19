"""What an operator may choose for a stage, by name: for `stage-server`, and for who starts one."""

from stagecoach.contract.precision import DType

DTYPE_NAMES = ("auto", *DType)
ENGINE_NAMES = ("torch", "emulated")
