"""How a checkpoint says that it is quantized: one entry for each tool whose files are served."""

from collections.abc import Callable, Collection, Mapping

from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.frozen_json import shown
from stagecoach.model_files.packed_awq import awq
from stagecoach.model_files.packed_bitsandbytes import bitsandbytes
from stagecoach.model_files.packed_compressed import compressed_tensors
from stagecoach.model_files.packed_form import Quantization
from stagecoach.model_files.packed_gptq import gptq, gptq_like
from stagecoach.model_files.packed_mxfp4 import mxfp4
from stagecoach.model_files.packed_scaled import fbgemm_fp8, fp8, modelopt
from stagecoach.model_files.quantization_settings import QuantizationSettings

KEYS = ("quantization_config", "compression_config")
"""Where config.json says how weights are quantized."""

_MLX_KEY = "quantization"
"""Where config.json of MLX says it; copies of it elsewhere name no method."""

FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files beside a config.json that does not say it, and the tools that first wrote them."""

_OLD_ENDS = (".qweight", ".B")
"""Ends of names of tensors with codes; the latter is that of AutoGPTQ for Marlin."""

_PLAIN_BITS = 16


def quantization_in(raw: Mapping[str, object]) -> Quantization | None:
    """Reads what config.json says.

    Args:
        raw: Its content.

    Returns:
        None if it says nothing.

    Raises:
        UnsupportedModelError: The weights are in a form that is not served; names it.
        ModelFilesError: A value is of no use.
    """
    of_mlx = raw.get(_MLX_KEY)
    if isinstance(of_mlx, Mapping) and {"bits", "group_size"} <= of_mlx.keys():
        raise QuantizationSettings(of_mlx, f"config.json: {_MLX_KEY}").refused("mlx")
    for key in KEYS:
        settings = raw.get(key)
        if settings:
            if not isinstance(settings, Mapping):
                raise ModelFilesError(f"config.json: {key} is {shown(settings)}, must be an object")
            return _read(QuantizationSettings(settings, f"config.json: {key}"), method=None)
    return None


def has_old_names(stored: Collection[str]) -> bool:
    """Whether stored tensors are those of tools that wrote a file beside config.json.

    Args:
        stored: Names of the tensors.
    """
    return any(name.endswith(_OLD_ENDS) for name in stored)


def quantization_beside(settings: Mapping[str, object], file_name: str) -> Quantization:
    """Reads a file beside config.json; see `FILES`.

    Raises:
        UnsupportedModelError: As `quantization_in`.
        ModelFilesError: As `quantization_in`.
    """
    return _read(QuantizationSettings(settings, file_name), method=FILES[file_name])


def _read(settings: QuantizationSettings, method: str | None) -> Quantization:
    named = settings.text("quant_method", "method", default=method or "")
    if not named and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        named = "bitsandbytes"
    read = _METHODS.get(named)
    if read is None:
        raise settings.refused(named or "a method that has no name")
    return read(settings)


def _auto_round(settings: QuantizationSettings) -> Quantization:
    """Reads the settings of AutoRound, which packs as other tools do."""
    packing = settings.text("packing_format", "backend", default="auto")
    settings.choice("auto-round packing_format", packing, *_AUTO_ROUND)
    kind = settings.text("data_type", default="int")
    settings.choice("auto-round data_type", kind, "int", "int_sym", "int_asym")
    extra = settings.within("extra_config")
    each = [extra.within(module) for module in extra.values]
    packed = [one for one in each if one.whole("bits", default=0) < _PLAIN_BITS]
    zero_offset = _AUTO_ROUND[packing]
    if zero_offset is None:
        found = awq(settings, packed)
    else:
        found = gptq_like(settings, packed, zero_offset=zero_offset)
    if settings.whole("act_bits", default=_PLAIN_BITS) < _PLAIN_BITS:
        return found._replace(not_applied=settings.said("act_bits"))
    return found


_AUTO_ROUND = {
    "auto": 1,
    "auto_awq": None,
    "auto_gptq": 1,
    "auto_round": 0,
    "auto_round:auto_awq": None,
    "auto_round:auto_gptq": 1,
    "auto_round:awq": None,
    "auto_round:gptq": 1,
    "auto_round:gptq:exllamav2": 1,
    "auto_round:gptqmodel": 0,
}
"""Packings of AutoRound: how much less than the code of 0 is stored for it; None: AWQ's."""

_METHODS: Mapping[str, Callable[[QuantizationSettings], Quantization]] = {
    "auto-round": _auto_round,
    "awq": awq,
    "bitsandbytes": bitsandbytes,
    "compressed-tensors": compressed_tensors,
    "fbgemm_fp8": fbgemm_fp8,
    "fp8": fp8,
    "gptq": gptq,
    "intel/auto-round": _auto_round,
    "modelopt": modelopt,
    "mxfp4": mxfp4,
}
