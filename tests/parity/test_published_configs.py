"""Every form of `config.json` is understood as transformers understands the same file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from stage_server.model.layer_stack import load_layer_stack
from stagecoach.model_files import open_model
from tests.layer_ranges import split_evenly
from tests.parity.test_layer_stack import CPU, FLOAT32, NUM_GENERATED, PROMPT, generate
from tests.published_configs import PUBLISHED
from tests.tiny_models import reference_model, unsplit_tokens

TRANSFORMERS_REFUSES: dict[str, dict[str, object]] = {
    "architectures null, dtype auto": {"torch_dtype": "float32"},
    "phi-3-mini-128k, su": {"rope_scaling": PUBLISHED["phi-3-mini-128k, longrope"]["rope_scaling"]},
}
"""Forms that transformers does not read, and what it is asked instead, which means the same."""

STORED_OTHERWISE: dict[object, dict[str, str]] = {
    "gpt_neox": {"lm_head.weight": "embed_out.weight"},
}
"""Tensors that have another name in files, by family."""


def published_model(config: dict[str, object], folder: Path) -> Path:
    """Writes `config.json` as it is given, and random weights of the model that it describes."""
    (folder / "config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model: Any = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder), dtype=torch.float32
        )
        with torch.no_grad():
            for parameter in model.parameters():
                spread = torch.randn_like(parameter) * 0.2
                parameter.copy_(spread if parameter.dim() > 1 else parameter + spread)
    if "n_routed_experts" in config:  # whose matrices files name one by one
        model.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps(config))
        return folder
    tensors = {
        STORED_OTHERWISE.get(config["model_type"], {}).get(name, name): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def expected_tokens(path: Path) -> list[int]:
    """What transformers generates from the same folder."""
    return unsplit_tokens(reference_model(path), PROMPT, NUM_GENERATED)


@pytest.mark.parametrize("form", PUBLISHED)
def test_a_published_form_generates_what_transformers_generates(form: str, tmp_path: Path) -> None:
    as_judged = {**PUBLISHED[form], **TRANSFORMERS_REFUSES.get(form, {})}
    path = published_model(as_judged, tmp_path)
    expected = expected_tokens(path)
    (path / "config.json").write_text(json.dumps(PUBLISHED[form]))
    files = open_model(str(path))
    fingerprint = open_model(str(path)).fingerprint
    stacks = [
        load_layer_stack(files, layers, precision=FLOAT32, device=CPU)
        for layers in split_evenly(files.config.num_layers, 2)
    ]
    assert generate(stacks)[0] == expected
    assert files.fingerprint == fingerprint, "loading a stage changed what its model is called"
