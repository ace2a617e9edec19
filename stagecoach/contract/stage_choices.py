"""What an operator may choose for a stage, by name: for `stage-server`, and for who starts one."""

from stagecoach.contract.precision import FEW_BITS, DType, KvFormat

DTYPE_NAMES = ("auto", *DType)
WEIGHTS_NAMES = (*DTYPE_NAMES, *FEW_BITS)
KV_DTYPE_NAMES = ("auto", *KvFormat)
ENGINE_NAMES = ("torch", "emulated")
