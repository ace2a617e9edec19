"""Files in few bits: a stage that keeps them is the stage that reads them as float32, nearly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.text.gguf_tokenizer import build_gguf_tokenizer
from coordinator.text.gguf_vocabulary import GgufVocabulary
from stage_server.model import cpu_grouped_rows
from stage_server.model.dense_linear import DenseLinear
from stage_server.model.grouped_linear import GroupedFormat
from stage_server.model.layer_stack import LayerStack, load_layer_stack
from stage_server.model.weights import WeightSource
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import FEW_BITS, INT4, INT8, DType, Encoding, Precision
from stagecoach.model_files import GgufTokenizer, ModelFiles, open_model
from tests.few_bits import QType, mix
from tests.layer_ranges import split_evenly
from tests.parity.test_layer_stack import PROMPT, ListAttention, SplitModel, generate
from tests.tiny_models import FAMILIES, NUM_LAYERS, tiny_gguf, tiny_model

torch.set_num_threads(1)

CPU = torch.device("cpu")
FLOAT32 = Precision.uniform(DType.FLOAT32)
FILES: dict[str, tuple[QType | Callable[[str], QType], Encoding | None]] = {
    "Q4_0": (mix(QType.Q4_0, QType.Q4_0, ends=QType.Q6_K), INT4),
    "Q4_1": (QType.Q4_1, INT4),
    "Q5_0": (QType.Q5_0, INT8),
    "Q5_1": (QType.Q5_1, INT8),
    "Q8_0": (QType.Q8_0, INT8),
    "Q4_K_S": (mix(QType.Q4_K, QType.Q5_K, ends=QType.Q6_K), INT4),
    "Q4_K_M": (mix(QType.Q4_K, QType.Q6_K), INT4),
    "Q5_K_M": (mix(QType.Q5_K, QType.Q6_K), INT8),
    "Q6_K": (QType.Q6_K, INT8),
    "IQ4_NL": (mix(QType.IQ4_NL, QType.Q5_1), INT8),
    "IQ4_XS": (mix(QType.IQ4_XS, QType.Q5_K, ends=QType.Q6_K), INT8),
    "MXFP4": (mix(QType.MXFP4, QType.Q8_0), INT8),
    "TQ2_0": (mix(QType.TQ2_0, QType.Q4_K), INT8),
    "Q4_0 beside F16": (mix(QType.Q4_0, QType.F16, ends=QType.F16), INT4),
    "BF16": (QType.BF16, None),
}
"""Types of the matrices of files by their usual names, and the bits in which they are kept."""

SHAPE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512}
"""Columns for whole blocks of 256."""


@pytest.fixture(scope="module", params=FILES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def files(name: str, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    quantization, _ = FILES[name]
    folder = tmp_path_factory.mktemp("models")
    return open_model(str(tiny_gguf("llama", folder, quantization=quantization, **SHAPE)))


def load(
    files: ModelFiles, num_stages: int, weights: Encoding | None, *, lean: bool = True
) -> list[LayerStack]:
    precision = FLOAT32 if weights is None else FLOAT32._replace(weights=weights)
    return [
        load_layer_stack(files, layers, precision=precision, device=CPU, lean=lean)
        for layers in split_evenly(files.config.num_layers, num_stages)
    ]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_file_says_in_which_bits_it_is_kept(name: str, files: ModelFiles) -> None:
    assert files.encoding == FILES[name][1]


class Twin:
    """The slow obvious stage: it multiplies in float32 by what packed matrices stand for.

    Args:
        files: The model.
        weights: Form of the matrices.
        monkeypatch: To look at matrices when they are loaded.
    """

    def __init__(
        self, files: ModelFiles, weights: Encoding, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.errors: dict[str, float] = {}
        """Of the matrices against those of the files."""
        load_packed = GroupedFormat.load

        def load_plain(
            format_: GroupedFormat, source: WeightSource, weight: str, bias: str | None
        ) -> DenseLinear:
            num_rows, num_columns = source.shape(weight)
            matrix = load_packed(format_, source, weight, None)(torch.eye(num_columns)).T
            error = difference(matrix, source.peek(weight, 0, num_rows))
            self.errors[weight] = max(error, self.errors.get(weight, 0))
            addend = None if bias is None else source.load(bias, torch.float32, CPU)
            return DenseLinear(matrix, addend)

        with monkeypatch.context() as patched:
            patched.setattr(GroupedFormat, "load", load_plain)
            self.model = SplitModel(load(files, 1, weights))


@pytest.mark.parametrize("lean", [True, False])
def test_logits_are_those_of_the_matrices_in_float32(
    name: str, files: ModelFiles, lean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many tokens at once nearly to the bit; one by one, with activations in bfloat16, closely.

    Layers of random weights pass on more rounding than those of a trained model do; see
    `test_narrow_weights_are_close_to_float32`.
    """
    if files.encoding is None:
        pytest.skip("plain numbers")
    twin = Twin(files, files.encoding, monkeypatch)
    # Scales are rounded to bfloat16; groups of 16, of Q6_K, are rounded to 8 bits too.
    assert max(twin.errors.values()) < (0.012 if "_M" in name or "6_K" in name else 0.004)
    expected = twin.model.logits(PROMPT * 3)
    many = SplitModel(load(files, 2, files.encoding, lean=lean)).logits(PROMPT * 3)
    assert difference(many, expected) < 3e-4
    one_by_one = SplitModel(load(files, 2, files.encoding, lean=lean))
    decoded = torch.cat([one_by_one.logits([token]) for token in PROMPT])
    assert 0 < difference(decoded, expected[: len(PROMPT)]) < 0.1


def test_split_equals_whole_token_by_token(files: ModelFiles) -> None:
    weights = files.encoding or Encoding.plain(DType.FLOAT16)
    token_ids, logits = generate(load(files, 1, weights))
    assert len(set(token_ids)) > 2, "a model that repeats itself shows nothing"
    for num_stages in (2, 3, 5):
        again, others = generate(load(files, num_stages, weights))
        assert again == token_ids
        assert torch.equal(others, logits)


def test_a_stage_holds_what_its_bits_say(name: str, files: ModelFiles) -> None:
    """Layers of a file of 4 bits take a seventh of float32, of 8 bits less than a third."""
    if files.encoding is None:
        pytest.skip("plain numbers")
    layers = LayerRange(1, NUM_LAYERS - 1)
    plain = load_layer_stack(files, layers, precision=FLOAT32, device=CPU)
    few = load_layer_stack(
        files, layers, precision=FLOAT32._replace(weights=files.encoding), device=CPU
    )
    most = files.encoding.row_bytes(256) / 1024
    if "_M" in name or "_S" in name or "beside" in name:
        most *= 1.6  # matrices in more bits
    assert few.weight_bytes < 1.02 * most * plain.weight_bytes


@pytest.mark.parametrize(
    ("case", "weights"),
    [
        *((case, "int4") for case in FAMILIES),
        ("llama", "int8"),
        ("gemma2", "int8"),
        ("phi3", "int8"),
    ],
)
def test_any_family_is_rounded_while_it_is_loaded(
    case: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widths of 48 and 12: the last groups of a row are short.

    All is multiplied in float32, also for experts that few tokens choose.
    """
    monkeypatch.setattr(cpu_grouped_rows, "MAX_FEW_TOKENS", 0)
    files = open_model(str(tiny_model(case, tmp_path)))
    assert files.encoding is None
    twin = Twin(files, FEW_BITS[weights], monkeypatch)
    assert max(twin.errors.values()) < {"int4": 0.12, "int8": 0.008}[weights]
    logits = SplitModel(load(files, 1, FEW_BITS[weights])).logits(PROMPT * 3)
    assert difference(logits, twin.model.logits(PROMPT * 3)) < 3e-4
    split = SplitModel(load(files, 3, FEW_BITS[weights])).logits(PROMPT * 3)
    assert torch.equal(logits, split)


@pytest.mark.parametrize(("asked", "most"), [(INT4, 0.2), (INT8, 0.3)])
def test_a_file_of_8_bits_can_be_rounded_to_4(asked: Encoding, most: float, tmp_path: Path) -> None:
    files = open_model(str(tiny_gguf("llama", tmp_path, quantization=QType.Q8_0, **SHAPE)))
    layers = LayerRange(1, 3)
    plain = load_layer_stack(files, layers, precision=FLOAT32, device=CPU)
    few = load_layer_stack(files, layers, precision=FLOAT32._replace(weights=asked), device=CPU)
    assert few.weight_bytes < most * plain.weight_bytes


def demo_token_ids(count: int) -> torch.Tensor:
    """The beginning of the readme, as the demo model reads it."""
    files = open_model("demo").tokenizer_files()
    assert isinstance(files, GgufTokenizer)
    tokenizer = build_gguf_tokenizer(GgufVocabulary.parse(files.metadata))
    text = Path(__file__).parents[2].joinpath("README.md").read_text()
    return torch.tensor(tokenizer.encode(text).ids[:count])


class FusedAttention(ListAttention):
    """All rows at once, by torch."""

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
        keys, values = self._keys[layer_index], self._values[layer_index]
        keys.append(key)
        values.append(value)
        seen = torch.cat(keys), torch.cat(values)
        num_rows, num_seen = len(query), len(seen[0])
        mask = torch.ones(num_rows, num_seen, dtype=torch.bool).tril(num_seen - num_rows)
        output = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(0, 1),
            seen[0].transpose(0, 1),
            seen[1].transpose(0, 1),
            attn_mask=mask,
            scale=scaling,
            enable_gqa=True,
        )
        return output.transpose(0, 1)


def log_probabilities(
    stack: LayerStack, token_ids: torch.Tensor, tokens_at_once: int
) -> torch.Tensor:
    attention = FusedAttention(len(stack.layers))
    rows = []
    with torch.inference_mode():
        for start in range(0, len(token_ids), tokens_at_once):
            part = torch.arange(start, min(start + tokens_at_once, len(token_ids)))
            hidden = stack.embed(token_ids[part], part)
            hidden = stack.forward(hidden, part, int(part[-1]) + 1, attention)
            rows.append(stack.logits(hidden))
    return torch.cat(rows).log_softmax(-1)


def test_the_demo_model_loses_little_in_the_bits_of_its_file() -> None:
    """Its file, of Q4_1 and Q8_0, is of somebody else."""
    files = open_model("demo")
    assert files.encoding == INT4
    token_ids = demo_token_ids(96)
    [plain] = load(files, 1, None)
    expected = log_probabilities(plain, token_ids, 96)
    [few] = load(files, 1, INT4)
    assert few.weight_bytes < 0.38 * plain.weight_bytes
    for tokens_at_once in (96, 8):
        found = log_probabilities(few, token_ids, tokens_at_once)
        divergence = (expected.exp() * (expected - found)).sum(-1).mean()
        assert 0 < divergence < 0.001
        targets = token_ids[1:, None]
        loss = (expected - found)[:-1].gather(1, targets).mean().exp()
        assert abs(loss - 1) < 0.01, "perplexity changed by more than 1 %"


def test_what_is_rounded_by_request_keeps_no_more_bits(tmp_path: Path) -> None:
    """Files of 4 bits have matrices in more; `auto` keeps them."""
    quantization = mix(QType.Q4_K, QType.Q6_K)
    files = open_model(str(tiny_gguf("llama", tmp_path, quantization=quantization, **SHAPE)))
    kept, rounded = (
        load_layer_stack(
            files,
            LayerRange(1, 3),
            precision=FLOAT32._replace(weights=INT4),
            device=CPU,
            keeps_own=keeps_own,
        ).weight_bytes
        for keeps_own in (True, False)
    )
    assert rounded < 0.95 * kept
