"""The formats of calls that are known, one module for each family of models."""

from coordinator.dialogue.formats import (
    deepseek,
    gemma,
    glm,
    harmony,
    hermes,
    json_lists,
    llama,
    marked_names,
    minicpm,
    minimax,
    mistral,
    muse,
    python_calls,
    qwen_xml,
    seed_oss,
)
from coordinator.dialogue.formats.call_format import CallFormat
from coordinator.dialogue.formats.generic import GENERIC

FORMATS: tuple[CallFormat, ...] = (
    deepseek.DEEPSEEK_V32,
    deepseek.DEEPSEEK_V4,
    deepseek.DEEPSEEK_V3,
    deepseek.DEEPSEEK_V31,
    harmony.HARMONY,
    mistral.MISTRAL_IDS,
    mistral.MISTRAL_NAMES,
    mistral.MISTRAL_LIST,
    seed_oss.SEED_OSS,
    minimax.MINIMAX_M3,
    minimax.MINIMAX_M2,
    minimax.MINIMAX_M1,
    json_lists.APRIEL,
    json_lists.NEMOTRON_NANO,
    json_lists.APERTUS,
    json_lists.COMMAND,
    json_lists.COMMAND_R_PLUS,
    json_lists.FIREFUNCTION_2,
    json_lists.PHI_4,
    json_lists.GRANITE_3,
    marked_names.KIMI_K2,
    marked_names.KIMI_K3,
    marked_names.SOLAR_OPEN,
    marked_names.GIGACHAT_31,
    marked_names.GIGACHAT_3,
    muse.MUSE,
    minicpm.MINICPM_5,
    glm.HUNYUAN,
    glm.GLM_LINES,
    glm.GLM_DENSE,
    qwen_xml.QWEN_XML,
    marked_names.FUNCTIONARY_31,
    marked_names.FUNCTIONARY_32,
    python_calls.LFM2,
    python_calls.LFM2_5,
    python_calls.LFM2_5_INSTRUCT,
    gemma.GEMMA_4,
    python_calls.LLAMA_PYTHON,
    llama.LLAMA_JSON,
    hermes.HERMES,
)
"""The more particular ones first: the first whose signs are all in a template is taken."""


def format_of(template: str) -> CallFormat | None:
    """The format of the calls that a chat template speaks of; None when it knows no tools.

    Args:
        template: Its source.
    """
    source = template.replace("\\n", "\n")
    for one in FORMATS:
        if all(sign in source for sign in one.signs):
            return one
    return None


__all__ = ["FORMATS", "GENERIC", "format_of"]
