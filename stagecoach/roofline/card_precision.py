"""What `--dtype` stands for on a card: the checkpoint's dtype, if the card and the family have it.

Decided from the configuration and the card alone, so that every box decides alike.
"""

from collections.abc import Sequence

from stagecoach.contract.errors import IncompatibleError
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files.config import ModelConfig
from stagecoach.model_files.families import FAMILIES
from stagecoach.roofline.capability import MIN_BFLOAT16, Capability
from stagecoach.roofline.devices import Gpu

AUTO = "auto"


def automatic_dtype(config: ModelConfig) -> DType:
    """Returns the dtype that `auto` stands for on cards.

    That of a checkpoint in bfloat16 or float16; float16 for one in float32, or one that does not
    say; bfloat16 for families that float16 cannot hold.

    Args:
        config: The model.
    """
    if overflows_in_float16(config):
        return DType.BFLOAT16
    return DType.BFLOAT16 if config.checkpoint_dtype is DType.BFLOAT16 else DType.FLOAT16


def overflows_in_float16(config: ModelConfig) -> bool:
    """Whether hidden states of the model's family exceed what float16 can hold."""
    family = FAMILIES.get(config.model_type)
    return family is not None and family.overflows_in_float16


def card_precision(
    dtype: str, config: ModelConfig, *, card: str, capability: Capability
) -> Precision:
    """Returns the formats in which a card keeps, computes and sends numbers.

    Args:
        dtype: What was asked for: `auto`, or the name of a `DType`.
        config: The model.
        card: Name of the card, for the error.
        capability: Compute capability of the card.

    Raises:
        IncompatibleError: The card has no such arithmetic, or the family overflows in it; says
            which dtype to give to every box.
    """
    chosen = automatic_dtype(config) if dtype == AUTO else DType.named(dtype)
    asked = f"dtype {dtype}" + (f" is {chosen} for this model" if dtype == AUTO else "")
    if chosen is DType.BFLOAT16 and not capability.has_bfloat16:
        raise _lacks_bfloat16(asked, config, card, capability)
    if chosen is DType.FLOAT16 and overflows_in_float16(config):
        other = DType.BFLOAT16 if capability.has_bfloat16 else DType.FLOAT32
        raise IncompatibleError(
            f"{asked}, in which {config.model_type} models overflow: their hidden states exceed "
            f"65504, and logits become NaN; give --dtype {other} to every box",
            dtype=chosen,
            model_type=config.model_type,
        )
    return Precision.of(chosen, on_cpu=False)


def dtype_of_all(config: ModelConfig, gpus: Sequence[Gpu]) -> DType:
    """Returns the dtype of 16 bits that all of several GPUs can compute a model in.

    That of `auto` where every GPU has it, else the other one, which is to be asked for.

    Raises:
        IncompatibleError: There is none.
    """
    automatic = automatic_dtype(config)
    for gpu in gpus:
        if automatic is DType.BFLOAT16 and not gpu.capability.has_bfloat16:
            if overflows_in_float16(config):
                asked = f"{config.model_type} models need bfloat16"
                raise _lacks_bfloat16(asked, config, gpu.name, gpu.capability)
            return DType.FLOAT16
    return automatic


def _lacks_bfloat16(
    asked: str, config: ModelConfig, card: str, capability: Capability
) -> IncompatibleError:
    other = DType.FLOAT32 if overflows_in_float16(config) else DType.FLOAT16
    return IncompatibleError(
        f"{asked}, which {card} of compute capability {capability} does not have: it begins with "
        f"{MIN_BFLOAT16}; give --dtype {other} to every box",
        dtype=DType.BFLOAT16,
        capability=capability,
    )
