"""Where config.json and the files disagree: as transformers, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stage_server.model.layer_stack import load_layer_stack
from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files import open_model
from tests.layer_ranges import split_evenly
from tests.parity.test_layer_stack import CPU, FLOAT32, generate
from tests.parity.test_published_configs import expected_tokens
from tests.tiny_models import NUM_LAYERS, tiny_model

Tensors = dict[str, torch.Tensor]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def rewrite(path: Path, change: Callable[[Tensors], object], **config: object) -> None:
    """Changes the tensors of a model in one file, and keys of its config.json."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({k: v.clone() for k, v in tensors.items()}, file, metadata={"format": "pt"})
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, **config}))


def tokens_of(path: Path, num_stages: int) -> list[int]:
    files = open_model(str(path))
    return generate(
        [
            load_layer_stack(files, layers, precision=FLOAT32, device=CPU)
            for layers in split_evenly(files.config.num_layers, num_stages)
        ]
    )[0]


@pytest.mark.parametrize("num_stages", [1, 2])
class TestHead:
    def test_one_of_its_own_is_used_although_the_config_ties_it(
        self, tmp_path: Path, num_stages: int
    ) -> None:
        path = tiny_model("llama", tmp_path)
        rewrite(path, lambda _: None, tie_word_embeddings=True)
        expected = expected_tokens(path)
        assert tokens_of(path, num_stages) == expected
        rewrite(path, lambda tensors: tensors.pop(HEAD))
        assert tokens_of(path, num_stages) == expected_tokens(path) != expected

    def test_one_that_is_the_embedding_again_is_kept_once(
        self, tmp_path: Path, num_stages: int
    ) -> None:
        path = tiny_model("llama-gqa-tied", tmp_path)
        files = open_model(str(path))
        layers = split_evenly(NUM_LAYERS, num_stages)[-1]
        tied = load_layer_stack(files, layers, precision=FLOAT32, device=CPU).weight_bytes
        rewrite(path, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING]}))
        files = open_model(str(path))
        assert load_layer_stack(files, layers, precision=FLOAT32, device=CPU).weight_bytes == tied
        assert tokens_of(path, num_stages) == expected_tokens(path)

    def test_it_stands_for_the_embedding_where_that_is_missing(
        self, tmp_path: Path, num_stages: int
    ) -> None:
        path = tiny_model("llama-gqa-tied", tmp_path)
        expected = expected_tokens(path)
        rewrite(path, lambda tensors: tensors.update({HEAD: tensors.pop(EMBEDDING)}))
        assert expected_tokens(path) == expected
        assert tokens_of(path, num_stages) == expected

    def test_none_is_refused_unless_it_is_tied(self, tmp_path: Path, num_stages: int) -> None:
        path = tiny_model("llama", tmp_path)
        rewrite(path, lambda tensors: tensors.pop(HEAD))
        with pytest.raises(ModelFilesError, match=rf"no tensor {HEAD}.*tie_word_embeddings"):
            tokens_of(path, num_stages)


UNUSED = {
    "a bias": "model.layers.5.self_attn.q_proj.bias",
    "a bias of the MLP": "model.layers.0.mlp.up_proj.bias",
    "a norm of queries": "model.layers.2.self_attn.q_norm.weight",
    "a layer too many": "model.layers.6.mlp.up_proj.weight",
    "a bias of the head": "lm_head.bias",
    "a bias of the norm": "model.norm.bias",
    "an adapter": "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    "another head": "score.weight",
}


@pytest.mark.parametrize("name", UNUSED.values(), ids=UNUSED)
def test_tensors_that_the_config_does_not_account_for_are_named(tmp_path: Path, name: str) -> None:
    path = tiny_model("llama", tmp_path)
    rewrite(path, lambda tensors: tensors.update({name: torch.ones(48)}))
    with pytest.raises(ModelFilesError, match=f"does not use: {name}"):
        tokens_of(path, 1)


@pytest.mark.parametrize("name", ["inv_freq", "cos_cached"])
def test_what_follows_from_the_config_may_lie_there_too(tmp_path: Path, name: str) -> None:
    path = tiny_model("llama", tmp_path)
    expected = expected_tokens(path)
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.{name}": torch.ones(6) for i in range(6)}
    rewrite(path, lambda tensors: tensors.update(buffers))
    assert tokens_of(path, 2) == expected


@pytest.mark.parametrize(
    "name", ["qweight", "weight_packed", "weight_scale_inv", "SCB", "weight.absmax"]
)
def test_quantized_tensors_are_refused_as_such(tmp_path: Path, name: str) -> None:
    path = tiny_model("llama", tmp_path)
    stem = "model.layers.0.self_attn.q_proj"
    rewrite(path, lambda tensors: tensors.update({f"{stem}.{name}": torch.ones(4)}))
    with pytest.raises(UnsupportedModelError, match=rf"quantized weights \({stem}\.{name}\)"):
        tokens_of(path, 1)


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_a_vocabulary_of_another_size_than_the_configs_is_refused(
    tmp_path: Path, name: str
) -> None:
    path = tiny_model("llama", tmp_path)
    padded = torch.ones(192, 48)
    rewrite(path, lambda tensors: tensors.update({name: padded}))
    with pytest.raises(
        ModelFilesError, match=rf"{name} has shape \[192, 48\], must be \[128, 48\]"
    ):
        tokens_of(path, 1)


def test_a_padded_vocabulary_is_served_where_the_config_says_so(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    rows = torch.zeros(64, 48)
    rewrite(
        path,
        lambda tensors: tensors.update(
            {name: torch.cat((tensors[name], rows)) for name in (EMBEDDING, HEAD)}
        ),
        vocab_size=192,
    )
    assert tokens_of(path, 2) == expected_tokens(path)
