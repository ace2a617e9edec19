"""Parameters that are made of other tensors than the files have: planned, checked and loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, PreTrainedConfig, Qwen2MoeConfig

from stage_server.model import weights
from stage_server.model.decoder_layers import DecoderLayers
from stage_server.model.lean_layers import LeanLayers
from stage_server.model.module_blueprint import ModuleBlueprint
from stage_server.model.tensor_names import check_names
from stage_server.model.weight_plan import ParameterSource, WeightPlan, stack_linears
from stage_server.model.weights import WeightSource
from stagecoach.contract.errors import ModelFilesError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Encoding
from stagecoach.model_files import TensorInfo, TensorReader, open_model
from stagecoach.model_files.grouped_rows import GroupedRows
from tests.tiny_models import reference_model, tiny_model

CPU = torch.device("cpu")
one = ParameterSource.one

torch.set_num_threads(1)


class CountingReader:
    """Reads from memory, and keeps how many rows were read at once at most."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        self._tensors = {name: tensor.numpy() for name, tensor in tensors.items()}
        self.most_rows = 0

    def info(self, name: str) -> TensorInfo:
        return TensorInfo("float32", self._tensors[name].shape)

    def read(self, name: str, start: int = 0, end: int | None = None) -> npt.NDArray[np.generic]:
        rows = self._tensors[name][start:end]
        self.most_rows = max(self.most_rows, len(rows))
        return rows.copy()

    def read_groups(self, name: str, start: int, end: int) -> GroupedRows:
        raise AssertionError(name)


def source_of(reader: TensorReader, **sources: ParameterSource) -> WeightSource:
    return WeightSource(reader, WeightPlan(sources), max_peek_elements=1 << 20)


class TestShapes:
    def test_rows_add_up(self) -> None:
        qkv = ParameterSource.rows([one("q", (8, 5)), one("k", (2, 5)), one("v", (2, 5))])
        assert qkv.shape == (12, 5)
        assert [tensor.name for tensor in qkv.tensors] == ["q", "k", "v"]
        assert ParameterSource.rows([one("q", (8,)), one("k", (2,))]).shape == (10,)

    def test_experts_come_first(self) -> None:
        experts = [
            ParameterSource.rows([one(f"gate.{i}", (6, 5)), one(f"up.{i}", (6, 5))])
            for i in range(3)
        ]
        assert ParameterSource.experts(experts).shape == (3, 12, 5)
        assert ParameterSource.experts([one("0", (7,)), one("1", (7,))]).shape == (2, 7)

    def test_what_is_needed_counts_once_for_two_parameters(self) -> None:
        table = one("model.embed_tokens.weight", (10, 4))
        plan = WeightPlan({"embedding": table, "head": table, "norm": one("norm", (4,))})
        assert list(plan.tensor_names) == ["model.embed_tokens.weight", "norm"]
        assert plan.num_elements == 44
        assert plan.num_bytes(lambda _: Encoding.plain(DType.BFLOAT16)) == 88
        blocks = Encoding("blocks of 4", 4, 3)
        assert plan.num_bytes(lambda _: blocks) == 33

    def test_linear_layers_are_stacked_with_their_biases(self) -> None:
        sources = {
            f"{name}_proj.{kind}": one(f"{name}_proj.{kind}", shape)
            for name in "qk"
            for kind, shape in (("weight", (4, 3)), ("bias", (4,)))
        }
        sources["norm.weight"] = one("norm.weight", (3,))
        stack_linears(sources, "qk", ["q_proj", "k_proj"])
        assert sources.keys() == {"qk.weight", "qk.bias", "norm.weight"}
        assert (sources["qk.weight"].shape, sources["qk.bias"].shape) == ((8, 3), (8,))

    def test_a_tensor_of_another_shape_is_named_with_both(self) -> None:
        plan = WeightPlan({"qk": ParameterSource.rows([one("q", (4, 3)), one("k", (2, 3))])})
        plan.check_shapes(CountingReader(q=torch.ones(4, 3), k=torch.ones(2, 3)), "m")
        with pytest.raises(ModelFilesError, match=r"m: k has shape \[3, 2\], must be \[2, 3\]"):
            plan.check_shapes(CountingReader(q=torch.ones(4, 3), k=torch.ones(3, 2)), "m")


class TestLoading:
    Q, K = torch.arange(12.0).view(4, 3), -torch.arange(6.0).view(2, 3)

    def test_rows_follow_each_other(self) -> None:
        qk = ParameterSource.rows([one("q", (4, 3)), one("k", (2, 3))])
        source = source_of(CountingReader(q=self.Q, k=self.K), **{"layer.qk": qk})
        loaded = source.within("layer.").load("qk", torch.float32, CPU)
        assert torch.equal(loaded, torch.cat([self.Q, self.K]))
        assert "layer.qk" in source
        assert "layer.qk" not in source.within("layer.")

    @pytest.mark.parametrize(("start", "end"), [(0, 6), (0, 2), (3, 5), (4, 6), (2, 2)])
    def test_any_rows_can_be_looked_at(self, start: int, end: int) -> None:
        qk = ParameterSource.rows([one("q", (4, 3)), one("k", (2, 3))])
        source = source_of(CountingReader(q=self.Q, k=self.K), qk=qk)
        assert torch.equal(source.peek("qk", start, end), torch.cat([self.Q, self.K])[start:end])

    def test_experts_are_slices_and_their_rows_follow_each_other(self) -> None:
        parts = {f"{kind}{i}": torch.randn(2, 3) for i in range(4) for kind in ("gate", "up")}
        experts = ParameterSource.experts(
            [
                ParameterSource.rows([one(f"gate{i}", (2, 3)), one(f"up{i}", (2, 3))])
                for i in range(4)
            ]
        )
        source = source_of(CountingReader(**parts), experts=experts)
        expected = torch.stack([torch.cat([parts[f"gate{i}"], parts[f"up{i}"]]) for i in range(4)])
        assert torch.equal(source.load("experts", torch.float32, CPU), expected)
        assert torch.equal(source.peek("experts", 3, 9), expected.view(16, 3)[3:9])

    def test_no_more_rows_are_read_at_once_than_fit_a_chunk(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(weights, "_MAX_CHUNK_BYTES", 5 * 3 * 4)
        parts = {f"w{i}": torch.randn(32, 3) for i in range(4)}
        reader = CountingReader(**parts)
        experts = ParameterSource.experts([one(name, (32, 3)) for name in parts])
        loaded = source_of(reader, experts=experts).load("experts", torch.bfloat16, CPU)
        assert torch.equal(loaded, torch.stack(list(parts.values())).bfloat16())
        assert reader.most_rows == 5


@pytest.mark.parametrize("case", ["llama-biases", "qwen3"])
def test_lean_layers_have_one_matrix_where_the_files_have_several(
    tmp_path: Path, case: str
) -> None:
    files = open_model(str(tiny_model(case, tmp_path)))
    blueprint = ModuleBlueprint(files, LayerRange(2, 4))
    lean = WeightPlan(LeanLayers.weight_sources(blueprint))
    plain = WeightPlan(DecoderLayers.weight_sources(blueprint))
    assert set(lean.tensor_names) == set(plain.tensor_names)
    check_names(lean.tensor_names, files, blueprint.range)
    assert "model.layers.3.self_attn.qkv_proj.weight" in lean
    assert "model.layers.3.self_attn.q_proj.weight" not in lean
    assert "model.layers.3.self_attn.q_proj.weight" in plain
    tensors = load_file(tmp_path / case / "model.safetensors")
    with files.open_tensors(lean.tensor_names) as reader:
        lean.check_shapes(reader, files.model_id)
        source = WeightSource(reader, lean, max_peek_elements=1000).within("model.layers.3.")
        for stacked, parts in (("self_attn.qkv", "qkv"), ("mlp.gate_up", ("gate", "up"))):
            stem = stacked.partition(".")[0]
            expected = [tensors[f"model.layers.3.{stem}.{part}_proj.weight"] for part in parts]
            found = source.load(f"{stacked}_proj.weight", torch.float32, CPU)
            assert torch.equal(found, torch.cat(expected))


def mixtral_experts(num_experts: int, width: int, hidden: int) -> dict[str, ParameterSource]:
    """One layer's, as Mixtral's files name them: w1 is the gate, w3 goes up, w2 down."""
    names = [f"block_sparse_moe.experts.{i}" for i in range(num_experts)]
    return experts_of(names, ("w1", "w3", "w2"), width, hidden)


def qwen2_moe_experts(num_experts: int, width: int, hidden: int) -> dict[str, ParameterSource]:
    names = [f"mlp.experts.{i}" for i in range(num_experts)]
    return experts_of(names, ("gate_proj", "up_proj", "down_proj"), width, hidden)


def experts_of(
    names: list[str], parts: tuple[str, str, str], width: int, hidden: int
) -> dict[str, ParameterSource]:
    gate, up, down = parts
    return {
        "mlp.experts.gate_up_proj": ParameterSource.experts(
            [
                ParameterSource.rows(
                    one(f"model.layers.1.{name}.{part}.weight", (width, hidden))
                    for part in (gate, up)
                )
                for name in names
            ]
        ),
        "mlp.experts.down_proj": ParameterSource.experts(
            [one(f"model.layers.1.{name}.{down}.weight", (hidden, width)) for name in names]
        ),
    }


_SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "vocab_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
MIXTURES: list[tuple[PreTrainedConfig, Callable[..., dict[str, ParameterSource]]]] = [
    (MixtralConfig(num_local_experts=4, intermediate_size=20, **_SIZES), mixtral_experts),
    (
        Qwen2MoeConfig(
            num_experts=4,
            moe_intermediate_size=20,
            intermediate_size=36,
            shared_expert_intermediate_size=36,
            **_SIZES,
        ),
        qwen2_moe_experts,
    ),
]


@pytest.mark.parametrize(("config", "experts"), MIXTURES, ids=["mixtral", "qwen2_moe"])
class TestMixturesOfExperts:
    """Their tensors, as those who publish them name them."""

    def save(self, config: PreTrainedConfig, folder: Path) -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        return folder

    def test_experts_are_loaded_as_transformers_holds_them(
        self,
        config: PreTrainedConfig,
        experts: Callable[..., dict[str, ParameterSource]],
        tmp_path: Path,
    ) -> None:
        path = self.save(config, tmp_path)
        theirs = dict(reference_model(path).named_parameters())
        plan = WeightPlan(experts(4, 20, 24))
        files = open_model(str(path))
        with files.open_tensors(plan.tensor_names) as reader:
            plan.check_shapes(reader, files.model_id)
            source = WeightSource(reader, plan, max_peek_elements=1000)
            for name in experts(4, 20, 24):
                expected = theirs[f"model.layers.1.{name}"]
                assert source.shape(name) == expected.shape
                assert torch.equal(source.load(name, torch.float32, CPU), expected)

    def test_an_expert_that_is_missing_or_too_many_is_named(
        self,
        config: PreTrainedConfig,
        experts: Callable[..., dict[str, ParameterSource]],
        tmp_path: Path,
    ) -> None:
        path = self.save(config, tmp_path)
        names = WeightPlan(experts(4, 20, 24)).tensor_names
        tensors = load_file(path / "model.safetensors")
        others = {name for name in tensors if name.startswith("model.layers.1.")} - set(names)
        layer = LayerRange(1, 2)
        wanted = {*names, *others, "model.norm.weight", "lm_head.weight"}
        check_names(wanted, open_model(str(path)), layer)
        last = sorted(names)[-1]
        with pytest.raises(ModelFilesError, match=f"does not use: {last}"):
            check_names(wanted - {last}, open_model(str(path)), layer)
        save_file({k: v for k, v in tensors.items() if k != last}, path / "model.safetensors")
        with pytest.raises(ModelFilesError, match=f"has no tensor {last}"):
            check_names(wanted, open_model(str(path)), layer)


@pytest.mark.parametrize("is_behind", [True, False])
def test_layers_that_guess_at_further_tokens_are_left_out(
    tmp_path: Path, *, is_behind: bool
) -> None:
    """As GLM-4.5 is published, whose configuration says how many there are behind its own."""
    path = tiny_model("glm4_moe", tmp_path, num_nextn_predict_layers=1 if is_behind else 0)
    file = path / "model.safetensors"
    tensors = load_file(file)
    ahead = {
        name.replace(".layers.5.", ".layers.6."): tensor.clone()
        for name, tensor in tensors.items()
        if ".layers.5." in name
    }
    save_file({**tensors, **ahead, "mtp.norm.weight": torch.ones(48)}, file)
    files = open_model(str(path))
    layers = LayerRange(3, 6)
    plan = WeightPlan(DecoderLayers.weight_sources(ModuleBlueprint(files, layers)))
    wanted = {*plan.tensor_names, "model.norm.weight", "lm_head.weight"}
    if is_behind:
        check_names(wanted, files, layers)
        return
    with pytest.raises(ModelFilesError, match=r"does not use: model\.layers\.6\."):
        check_names(wanted, files, layers)
