"""Loading a range of layers: only its own weights, all of them, and clear refusals otherwise."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from stage_server.core.torch_dtypes import torch_dtype
from stage_server.model import weights
from stage_server.model.fbgemm_linear import FbgemmLinear
from stage_server.model.layer_stack import LayerStack, load_layer_stack
from stage_server.model.weight_plan import ParameterSource, WeightPlan
from stage_server.model.weights import WeightSource
from stagecoach.contract.errors import InvalidArgumentError, ModelFilesError, UnsupportedModelError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files import open_model
from tests.import_memory import STAGE_MODULES, import_bytes, peak_bytes
from tests.tiny_models import NUM_LAYERS, tiny_gguf, tiny_model

torch.set_num_threads(1)

CPU = torch.device("cpu")
MIDDLE = LayerRange(2, 4)
WHOLE = LayerRange(0, NUM_LAYERS)


def load(
    path: Path, layers: LayerRange = MIDDLE, dtype: str = "float32", *, lean: bool = True
) -> LayerStack:
    precision = Precision.of(dtype, on_cpu=True)
    return load_layer_stack(
        open_model(str(path)), layers, precision=precision, device=CPU, lean=lean
    )


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    """Changes tensors of a model in a single file; None removes."""
    tensors = {**load_file(path / "model.safetensors"), **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, path / "model.safetensors")


def reconfigure(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))


def is_of_layers(name: str, layers: LayerRange) -> bool:
    return name.startswith("model.layers.") and int(name.split(".")[2]) in layers


class MeanAttention:
    """Stands in where only the weights matter: every token attends to all equally."""

    def attend(
        self,
        layer_index: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        **_: object,
    ) -> torch.Tensor:
        group = query.shape[1] // key.shape[1]
        return value.mean(0, keepdim=True).repeat_interleave(group, 1).expand_as(query) + query


@torch.inference_mode()
def run(stack: LayerStack) -> torch.Tensor:
    hidden = torch.linspace(-1, 1, 3 * stack.config.hidden_size).view(3, -1)
    hidden = hidden.to(torch_dtype(stack.precision.compute))
    return stack.forward(hidden, torch.arange(3), 3, MeanAttention())


@pytest.mark.parametrize("case", ["llama", "gemma2"])
def test_layers_of_others_are_never_read(tmp_path: Path, case: str) -> None:
    path = tiny_model(case, tmp_path, max_shard_size="20KB")
    expected = run(load(path))
    index = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    own = {shard for name, shard in index.items() if is_of_layers(name, MIDDLE)}
    for position, shard in enumerate(sorted(set(index.values()) - own)):
        if position % 2:
            (path / shard).unlink()
        else:
            (path / shard).write_bytes(b"damaged")
    assert torch.equal(run(load(path)), expected)


def test_a_stage_holds_the_bytes_of_its_own_weights(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    tensors = load_file(path / "model.safetensors")
    for layers in (LayerRange(0, 1), MIDDLE, LayerRange(4, NUM_LAYERS)):
        own = [tensor for name, tensor in tensors.items() if is_of_layers(name, layers)]
        if layers.start == 0:
            own.append(tensors["model.embed_tokens.weight"])
        if layers.end == NUM_LAYERS:
            own += [tensors["lm_head.weight"], tensors["model.norm.weight"]]
        for lean in (True, False):
            assert load(path, layers, lean=lean).weight_bytes == sum(t.nbytes for t in own)
        assert load(path, layers, "bfloat16").weight_bytes == sum(t.nbytes // 2 for t in own)


MEASURE = """
import sys
import torch
from stagecoach.model_files import open_model
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import FEW_BITS, Precision
from stage_server.model.layer_stack import load_layer_stack
torch.set_num_threads(1)
path, layers, form = sys.argv[1:]
precision = Precision.of("float32" if form in FEW_BITS else form, on_cpu=True)
if form in FEW_BITS:
    precision = precision._replace(weights=FEW_BITS[form])
stack = load_layer_stack(
    open_model(path),
    LayerRange.parse(layers),
    precision=precision,
    device=torch.device("cpu"),
)
print(stack.weight_bytes)
# Not ru_maxrss: that begins with what the parent process had.
print(open("/proc/self/status").read())
"""


@pytest.mark.parametrize(
    ("layers", "form"),
    [("0:1", "float16"), ("2:4", "float32"), ("5:6", "float16"), ("0:4", "int4"), ("2:6", "int8")],
)
def test_loading_adds_little_more_than_a_stages_own_weights_to_its_imports(
    big_model: Path, layers: str, form: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(big_model), layers, form],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    first, _, status = result.stdout.partition("\n")
    weight_bytes = int(first)
    assert weight_bytes < 150e6
    assert peak_bytes(status) - import_bytes(*STAGE_MODULES) < 1.15 * weight_bytes + 50e6


@pytest.fixture(scope="module")
def big_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that would take 530 MB in float32 if it were loaded whole."""
    path = tmp_path_factory.mktemp("big")
    config = LlamaConfig(
        num_hidden_layers=6, hidden_size=1024, intermediate_size=4096, vocab_size=16384
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(path)
    tensors = {
        name: torch.full(tensor.shape, 0.01, dtype=torch.bfloat16)
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, path / "model.safetensors")
    return path


def test_a_tied_head_on_the_only_stage_shares_the_embedding(tmp_path: Path) -> None:
    tied = load(tiny_model("llama-gqa-tied", tmp_path), WHOLE)
    total = sum(t.nbytes for t in load_file(tmp_path / "llama-gqa-tied/model.safetensors").values())
    assert tied.weight_bytes == total


class TestDtypes:
    def test_float16_on_a_cpu_computes_in_float32(self, tmp_path: Path) -> None:
        stack = load(tiny_model("llama", tmp_path), WHOLE, "float16")
        assert stack.precision.weights.name == "float16"
        assert stack.precision.compute == stack.precision.kv.dtype == DType.FLOAT32
        assert stack.embed(torch.tensor([3]), torch.tensor([0])).dtype == torch.float32
        assert run(stack).dtype == torch.float32
        assert stack.logits(run(stack)).dtype == torch.float32

    def test_bfloat16_is_bfloat16_throughout(self, tmp_path: Path) -> None:
        stack = load(tiny_model("llama", tmp_path), WHOLE, "bfloat16")
        assert stack.precision.compute == stack.precision.kv.dtype == DType.BFLOAT16
        assert stack.embed(torch.tensor([3]), torch.tensor([0])).dtype == torch.bfloat16
        assert run(stack).dtype == torch.bfloat16
        assert stack.logits(run(stack)).dtype == torch.float32

    def test_an_unknown_dtype_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgumentError, match="int4"):
            load(tiny_model("llama", tmp_path), dtype="int4")

    def test_float16_without_fbgemm_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            type(torch.backends.quantized), "supported_engines", property(lambda _: ["none"])
        )
        with pytest.raises(InvalidArgumentError, match="FBGEMM") as caught:
            load(tiny_model("llama", tmp_path), dtype="float16")
        assert caught.value.field == "dtype"

    def test_checkpoints_of_any_dtype_load_alike(self, tmp_path: Path) -> None:
        path = tiny_model("llama", tmp_path)
        tensors = load_file(path / "model.safetensors")
        rewrite(path, **{name: t.bfloat16().float() for name, t in tensors.items()})
        expected = run(load(path))
        rewrite(path, **{name: t.bfloat16() for name, t in tensors.items()})
        assert torch.equal(run(load(path)), expected)


class TestLinear:
    @pytest.mark.parametrize("has_bias", [True, False])
    @pytest.mark.parametrize("max_elements", [1 << 20, 1000])
    def test_packed_pieces_equal_one_float16_matrix(
        self, tmp_path: Path, has_bias: bool, max_elements: int
    ) -> None:
        path = tiny_model("llama-biases", tmp_path)
        names = [f"model.layers.1.self_attn.{name}_proj" for name in "qkv"]
        tensors = load_file(path / "model.safetensors")
        weight = torch.cat([tensors[f"{name}.weight"] for name in names])
        bias = torch.cat([tensors[f"{name}.bias"] for name in names])
        plan = WeightPlan(
            {
                f"model.layers.1.qkv.{kind}": ParameterSource.rows(
                    ParameterSource.one(f"{name}.{kind}", tuple(tensors[f"{name}.{kind}"].shape))
                    for name in names
                )
                for kind in ("weight", "bias")
            }
        )
        files = open_model(str(path))
        with files.open_tensors(plan.tensor_names) as reader:
            source = WeightSource(reader, plan, max_peek_elements=max_elements)
            packed = FbgemmLinear(
                source.within("model.layers.1."), "qkv.weight", "qkv.bias" if has_bias else None
            )
        hidden = torch.randn(5, 48)
        expected = hidden @ weight.half().float().T + (bias if has_bias else 0)
        torch.testing.assert_close(packed(hidden), expected, rtol=1e-5, atol=1e-5)
        assert packed.packed_bytes >= 2 * weight.numel()

    def test_reading_few_rows_at_a_time_changes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tiny_model("llama", tmp_path)
        expected = run(load(path))
        monkeypatch.setattr(weights, "_MAX_CHUNK_BYTES", 1000)
        assert torch.equal(run(load(path)), expected)


class TestRefusals:
    def test_missing_tensors_are_listed(self, tmp_path: Path) -> None:
        path = tiny_model("llama", tmp_path)
        missing = "model.layers.2.mlp.up_proj.weight", "model.layers.3.input_layernorm.weight"
        rewrite(path, **dict.fromkeys(missing))
        with pytest.raises(ModelFilesError) as caught:
            load(path)
        assert all(name in str(caught.value) for name in missing)
        assert load(path, LayerRange(0, 2)).weight_bytes > 0

    @pytest.mark.parametrize(
        "name",
        [
            "model.layers.2.self_attn.q_proj.bias",
            "model.layers.6.mlp.up_proj.weight",
            "model.layers.new.weight",
            "model.vision.weight",
            "lm_head.bias",
        ],
    )
    def test_tensors_that_would_not_be_used_are_named(self, tmp_path: Path, name: str) -> None:
        path = tiny_model("llama", tmp_path)
        rewrite(path, **{name: torch.zeros(48)})
        with pytest.raises(ModelFilesError, match=name):
            load(path)

    def test_frequencies_in_old_checkpoints_are_ignored(self, tmp_path: Path) -> None:
        path = tiny_model("llama", tmp_path)
        rewrite(path, **{"model.layers.2.self_attn.rotary_emb.inv_freq": torch.zeros(6)})
        load(path)

    def test_a_tensor_of_another_shape_is_named_with_both(self, tmp_path: Path) -> None:
        path = tiny_model("llama", tmp_path)
        name = "model.layers.2.mlp.up_proj.weight"
        rewrite(path, **{name: torch.zeros(95, 48)})
        with pytest.raises(ModelFilesError, match=r"up_proj.*\[95, 48\].*\[96, 48\]"):
            load(path)

    def test_layers_beyond_the_model_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFilesError, match=r"5:7.*6 layers"):
            load(tiny_model("llama", tmp_path), LayerRange(5, 7))

    @pytest.mark.parametrize("model_type", ["bloom", "gptj", "mamba", "gemma3", "nonsense"])
    def test_a_family_that_is_not_served_is_named(self, tmp_path: Path, model_type: str) -> None:
        path = tiny_model("llama", tmp_path)
        reconfigure(path, model_type=model_type)
        (path / "model.safetensors").unlink()  # refused before any weight is looked at
        with pytest.raises(UnsupportedModelError, match=model_type):
            load(path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("quantization_config", {"quant_method": "aqlm"}),
            ("use_bidirectional_attention", True),
            ("layer_types", ["chunked_attention"] * NUM_LAYERS),
            ("num_kv_shared_layers", 2),
            ("per_layer_config", {"0": {"num_key_value_heads": 1}}),
            ("rope_scaling", {"rope_type": "mrope", "mrope_section": [2, 2, 2]}),
        ],
    )
    def test_a_layout_that_is_not_served_is_named(
        self, tmp_path: Path, key: str, value: object
    ) -> None:
        path = tiny_model("llama", tmp_path)
        reconfigure(path, rope_parameters=None, **{key: value})
        name = "rope_type" if key == "rope_scaling" else key
        with pytest.raises((UnsupportedModelError, ModelFilesError), match=name):
            load(path)

    def test_a_rope_that_changes_within_the_context_ends_the_context(self, tmp_path: Path) -> None:
        path = tiny_model("phi3-longrope", tmp_path)
        assert open_model(str(path)).config.max_model_len == 64
        file = path / "config.json"
        changed = json.loads(file.read_text())
        one = {**changed["rope_parameters"], "original_max_position_embeddings": 32}
        by_type = {"full_attention": one, "sliding_attention": {"rope_type": "default"}}
        file.write_text(
            json.dumps({**changed, "model_type": "gemma3_text", "rope_parameters": by_type})
        )
        assert open_model(str(path)).config.max_model_len == 32
        # Two places that differ.
        file.write_text(json.dumps({**changed, "model_type": "llama", "rope_parameters": one}))
        with pytest.raises(UnsupportedModelError, match="original_max_position_embeddings"):
            load(path)

    def test_a_configuration_that_makes_no_sense_is_refused(self, tmp_path: Path) -> None:
        path = tiny_model("llama", tmp_path)
        reconfigure(path, hidden_act="nonsense")
        with pytest.raises(ModelFilesError, match="nonsense"):
            load(path)
        reconfigure(path, hidden_act="silu", rms_norm_eps="small")
        with pytest.raises(ModelFilesError, match="rms_norm_eps") as caught:
            load(path)
        assert "\n" not in str(caught.value)

    def test_an_absent_key_means_what_it_means_to_transformers(self, tmp_path: Path) -> None:
        path = tiny_model("mistral", tmp_path)
        config = json.loads((path / "config.json").read_text())
        del config["num_key_value_heads"]  # 8 of every Mistral, here of 4 heads
        (path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedModelError, match=r"num_key_value_heads.* 8.* 4"):
            load(path)


class TestGguf:
    @pytest.mark.parametrize("case", ["llama", "llama-gqa-tied", "qwen2", "qwen3"])
    @pytest.mark.parametrize("kind", ["F16", "Q8_0"])
    def test_logits_equal_those_of_transformers_reading_the_same_file(
        self, tmp_path: Path, case: str, kind: str
    ) -> None:
        quantization = gguf.GGMLQuantizationType[kind]
        path = tiny_gguf(case, tmp_path, quantization=quantization, hidden_size=64)
        reference = _transformers_reading(path)
        stack = load(path, WHOLE)
        with torch.inference_mode():
            token_ids = torch.tensor([3, 1, 4])
            hidden = stack.embed(token_ids, torch.arange(3))
            last = stack.forward(hidden, torch.arange(3), 3, _CausalAttention())
            expected = reference(token_ids.unsqueeze(0)).logits[0]
            torch.testing.assert_close(stack.logits(last), expected, rtol=1e-4, atol=1e-4)

    def test_factors_of_the_frequencies_are_applied(self, tmp_path: Path) -> None:
        """llama.cpp stores Llama 3's rope scaling as one divisor a frequency."""
        scaled = load(tiny_gguf("llama3-rope", tmp_path, rope_factors=True), WHOLE)
        expected = load(tmp_path / "llama3-rope", WHOLE)
        torch.testing.assert_close(run(scaled), run(expected), rtol=1e-4, atol=1e-4)


def _transformers_reading(path: Path) -> Any:
    """The model, from transformers' own reader of GGUF files."""
    parsed = load_gguf_checkpoint(path)
    # It does not know that a head's size is in the file.
    head_size = {"head_dim": 16} if parsed["config"]["model_type"] == "qwen3" else {}
    config = AutoConfig.for_model(**{**parsed["config"], **head_size})
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    model.tie_weights()
    return model.eval()


class _CausalAttention:
    """One sequence from its start."""

    def attend(
        self,
        layer_index: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert sinks is None
        group = query.shape[1] // key.shape[1]
        output = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(0, 1),
            key.repeat_interleave(group, 1).transpose(0, 1),
            value.repeat_interleave(group, 1).transpose(0, 1),
            scale=scaling,
            is_causal=True,
        )
        return output.transpose(0, 1)
