"""What a plain configuration consists of is what transformers makes of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stage_server.model.blueprint import Blueprint
from stage_server.model.lean_blueprint import LeanBlueprint, is_plain
from stage_server.model.lean_layers import is_lean
from stage_server.model.module_blueprint import ModuleBlueprint
from stagecoach.contract.errors import StagecoachError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files.config import ModelConfig, parse_config
from stagecoach.model_files.families import FAMILIES
from tests.published_configs import NUM_LAYERS, PUBLISHED
from tests.shapes_only import ShapesOnly
from tests.tiny_models import tiny_model

LEAN = {form: raw for form, raw in PUBLISHED.items() if FAMILIES[str(raw["model_type"])].lean}

NOT_PLAIN = {
    "dynamic by rope_type",
    "dynamic by type",
    "head_dim and kv heads null",
    "qwen2.5, saved by transformers 5",
    "qwen2.5, yarn of its model card",
    "qwen3, yarn by rope_type",
    "rope_parameters null",
    "rope_parameters without rope_theta",
    "rope_scaling beside rope_parameters",
    "yarn with attention_factor",
    "yarn with mscale",
    "yarn without its original length",
    "yarn without truncation",
    "yarn-llama-2",
}


def assert_alike(config: ModelConfig, layers: LayerRange) -> None:
    """Compares what both make of a configuration, bit by bit."""
    files = ShapesOnly("tests", config)
    lean, modules = LeanBlueprint(files, layers), ModuleBlueprint(files, layers)
    assert is_lean(lean)
    assert is_lean(modules)
    assert lean.layer_sources() == modules.layer_sources()
    assert lean.norm_sources() == modules.norm_sources()
    assert lean.traits == modules.traits
    assert (lean.hidden_act, lean.norm_eps) == (modules.hidden_act, modules.norm_eps)
    for dtype in (torch.float32, torch.bfloat16):
        for ours, theirs in zip(*(_tables(one, dtype) for one in (lean, modules)), strict=True):
            assert torch.equal(ours, theirs)


def _tables(blueprint: Blueprint, dtype: torch.dtype) -> list[torch.Tensor]:
    num_positions = min(blueprint.config.max_model_len, 5000)
    positions = torch.arange(num_positions)
    rows = blueprint.rotary.at(torch.zeros(1, dtype=dtype), positions, num_positions)
    return [table for one in rows for table in one]


@pytest.mark.parametrize("form", LEAN)
def test_a_published_form_has_the_layers_that_transformers_gives_it(form: str) -> None:
    config = parse_config(LEAN[form])
    assert is_plain(config) == (form not in NOT_PLAIN)
    if form not in NOT_PLAIN:
        assert_alike(config, LayerRange(0, NUM_LAYERS))
        assert_alike(config, LayerRange(1, 3))


ODD: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    0.5,
    1.0,
    1e-6,
    1e30,
    "",
    "silu",
    "gelu",
    "auto",
    [],
    {},
)
ROPES: list[object] = [
    *({"type": kind, "factor": 2.0} for kind in ("linear", "dynamic", "su", "yarn")),
    *({"rope_type": kind} for kind in ("default", "linear", "llama3")),
    {"rope_type": "default", "rope_theta": 5000.0},
    {"rope_type": "linear", "factor": 4, "rope_theta": 10000},
    {"rope_type": "linear", "factor": "2"},
    {"rope_theta": 1e6, "partial_rotary_factor": 0.5, "rope_type": "default"},
    *(
        {
            "factor": factor,
            "high_freq_factor": high,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": original,
            "rope_type": "llama3",
        }
        for factor in (8.0, 32, 0.5)
        for high in (4.0, 1.0)
        for original in (16, 8192)
    ),
]
NAMES = sorted({name for raw in LEAN.values() for name in raw} | {"head_dim", "mlp_bias", "extra"})


@given(
    form=st.sampled_from(sorted(LEAN)),
    odd=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(ODD), max_size=2),
    rope=st.dictionaries(
        st.sampled_from(("rope_scaling", "rope_parameters")), st.sampled_from(ROPES), max_size=1
    ),
    removed=st.sets(st.sampled_from(NAMES), max_size=2),
    layers=st.sampled_from((["full_attention"], ["sliding_attention", "full_attention"], None)),
)
@settings(max_examples=120)
def test_what_is_plain_is_read_alike(
    form: str,
    odd: dict[str, object],
    rope: dict[str, object],
    removed: set[str],
    layers: list[str] | None,
) -> None:
    raw = {**LEAN[form], **odd, **rope}
    if layers is not None:
        raw["layer_types"] = layers * (NUM_LAYERS // len(layers))
    raw = {name: value for name, value in raw.items() if name not in removed - {"model_type"}}
    try:
        config = parse_config(raw)
    except StagecoachError:
        return
    assume(is_plain(config) and config.num_layers == NUM_LAYERS)
    assume(config.hidden_size * config.vocab_size < 1 << 24)
    assert_alike(config, LayerRange(0, NUM_LAYERS))


def test_a_plain_model_is_loaded_without_transformers(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    program = f"""
import sys
import torch
from stage_server.model.layer_stack import load_layer_stack
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files import open_model
files = open_model({str(path)!r})
precision = Precision.of(DType.FLOAT32, on_cpu=True)
load_layer_stack(files, LayerRange(0, 2), precision=precision, device=torch.device("cpu"))
print([name for name in ("transformers", "sympy", "torch._dynamo") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.stdout, ran.returncode) == ("[]\n", 0), ran.stderr
