"""A stage's share of a model: loaded once, then asked for embeddings, hidden states and logits."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from stage_server.core.load_board import Report, WeightProgress, no_report
from stage_server.model.attention import Attention
from stage_server.model.blueprint import NORM, Blueprint
from stage_server.model.decoder_layers import DecoderLayers, load_module
from stage_server.model.ends import LogitsHead, TokenEmbedding
from stage_server.model.lean_layers import LeanLayers, is_lean
from stage_server.model.linear import DenseLinear, PackedLinear, load_linear, packs_float16
from stage_server.model.weights import WeightSource
from stagecoach.contract.errors import InvalidArgumentError, ModelFilesError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.load_progress import LoadPhase, LoadProgress
from stagecoach.model_files import ModelFiles

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_MIN_PEEK_ELEMENTS = 4 << 20
_PEEK_SHARE = 20
"""What is read in float32 at once is a twentieth of the stage's elements: a tenth of the bytes of
their float16. 16 MiB of a small stage hurt nobody."""


class Layers(Protocol):
    """A way to run the layers of a stage."""

    @property
    def modules(self) -> Sequence[nn.Module]:
        """All that holds weights."""
        ...

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        num_positions: int,
        attention: Attention,
    ) -> torch.Tensor:
        """Runs all layers; see `LayerStack.forward`.

        Args:
            hidden: `[num_tokens, hidden_size]`.
            positions: int64 `[num_tokens]`.
            num_positions: All positions are below this.
            attention: Called once a layer.
        """
        ...


class LayerStack:
    """The layers of a stage, with what stands before the first and after the last of the model.

    Keeps no state between calls: what a sequence has seen is with the `Attention`. To be called
    within `torch.inference_mode()`, from one thread.

    Args:
        blueprint: What the stage consists of.
        source: Where the weights are.
        dtype: Of the weights.
        device: Where they live.
        lean: False: compute with transformers' modules even where there is a faster way.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        source: WeightSource,
        *,
        dtype: torch.dtype,
        device: torch.device,
        lean: bool,
    ) -> None:
        self.config = blueprint.config
        self.layers = blueprint.range
        self.device = device
        self.dtype = str(dtype).removeprefix("torch.")
        """Of the weights: float32, float16 or bfloat16."""
        self.hidden_states_dtype = torch.float32 if packs_float16(dtype, device) else dtype
        """Of what the layers compute with, and of hidden states in and out."""
        self.kv_dtype = self.hidden_states_dtype
        """Of keys and values."""
        # The largest tensors come first, while there is most room for what loading needs besides.
        self._embedding = _load_embedding(
            blueprint, source, dtype=dtype, compute_dtype=self.hidden_states_dtype, device=device
        )
        self._head = _load_head(blueprint, source, self._embedding, dtype=dtype, device=device)
        layers_type = LeanLayers if lean and is_lean(blueprint) else DecoderLayers
        self._layers: Layers = layers_type(blueprint, source, dtype=dtype, device=device)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights; what is shared counts once."""
        ends = [module for module in (self._embedding, self._head) if module is not None]
        return _num_bytes([*ends, *self._layers.modules])

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Embeds tokens; first stage only.

        Args:
            token_ids: int64 `[num_tokens]` on the device, each below the vocabulary's size.

        Returns:
            `[num_tokens, hidden_size]`, in `hidden_states_dtype`.
        """
        assert self._embedding is not None, "only the first stage embeds"
        embeddings: torch.Tensor = self._embedding(token_ids)
        return embeddings

    def forward(
        self, hidden: torch.Tensor, positions: Sequence[int], attention: Attention
    ) -> torch.Tensor:
        """Runs the stage's layers over packed tokens.

        Args:
            hidden: `[num_tokens, hidden_size]`, in `hidden_states_dtype`, on the device; kept.
            positions: Of every row in its own sequence; below the model's `max_model_len`.
            attention: Knows which token belongs to which sequence; called once a layer.

        Returns:
            `[num_tokens, hidden_size]`.
        """
        on_device = torch.tensor(positions, device=self.device)
        return self._layers.forward(hidden, on_device, max(positions) + 1, attention)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Computes logits; last stage only.

        Args:
            hidden: `[num_rows, hidden_size]`, rows of what `forward` returned.

        Returns:
            float32 `[num_rows, vocab_size]` on the device.
        """
        assert self._head is not None, "only the last stage has a head"
        logits: torch.Tensor = self._head(hidden)
        return logits


def load_layer_stack(
    files: ModelFiles,
    layers: LayerRange,
    *,
    dtype: str,
    device: torch.device,
    lean: bool = True,
    report: Report = no_report,
) -> LayerStack:
    """Loads a range of a model's layers, and nothing else of it.

    Args:
        files: The model.
        layers: The range; the first also embeds tokens, the last also computes logits.
        dtype: Of the weights: float32, float16 or bfloat16.
        device: Where they are to live.
        lean: False: compute with transformers' modules even where there is a faster way.
        report: Told how far downloading and loading are.

    Raises:
        UnsupportedModelError: The model's family or layout is not served.
        ModelFilesError: Layers, tensors or files are missing or damaged.
        InvalidArgumentError: There is no such dtype on this device.
    """
    if dtype not in DTYPES:
        raise InvalidArgumentError(
            f"dtype {dtype!r} is not one of {', '.join(DTYPES)}", field="dtype"
        )
    packs_float16(DTYPES[dtype], device)
    blueprint = Blueprint(files, layers)
    blueprint.check_names()
    shapes = blueprint.shapes()

    def on_download(done_bytes: int, total_bytes: int) -> None:
        report(
            LoadProgress(
                phase=LoadPhase.DOWNLOADING, done_bytes=done_bytes, total_bytes=total_bytes
            )
        )

    with (
        files.open_tensors(shapes.keys(), on_download=on_download) as reader,
        torch.inference_mode(),
    ):
        for name, shape in shapes.items():
            found = reader.info(name).shape
            if found != shape:
                raise ModelFilesError(
                    f"{files.model_id}: {name} has shape {list(found)}, must be {list(shape)}"
                )
        num_elements = sum(math.prod(shape) for shape in shapes.values())
        source = WeightSource(
            reader,
            max_peek_elements=max(_MIN_PEEK_ELEMENTS, num_elements // _PEEK_SHARE),
            progress=WeightProgress(num_elements, DTYPES[dtype].itemsize, report),
        )
        return LayerStack(blueprint, source, dtype=DTYPES[dtype], device=device, lean=lean)


def _load_embedding(
    blueprint: Blueprint,
    source: WeightSource,
    *,
    dtype: torch.dtype,
    compute_dtype: torch.dtype,
    device: torch.device,
) -> TokenEmbedding | None:
    if not blueprint.is_first:
        return None
    return TokenEmbedding(
        source.load(blueprint.embedding_name, dtype=dtype, device=device),
        scale=blueprint.family.embedding_scale(blueprint.config.raw),
        dtype=compute_dtype,
    )


def _load_head(
    blueprint: Blueprint,
    source: WeightSource,
    embedding: TokenEmbedding | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> LogitsHead | None:
    if not blueprint.is_last:
        return None
    load_module(blueprint.norm, source.within(NORM), dtype=dtype, device=device)
    names = blueprint.embedding_name, blueprint.head_name
    shares = (
        embedding is not None
        and blueprint.config.tie_word_embeddings
        and not packs_float16(dtype, device)
        and source.are_equal(*names)
    )
    if embedding is not None and shares:
        projection: DenseLinear | PackedLinear = DenseLinear(embedding.weight, None)
    else:
        projection = load_linear(source, [blueprint.head_name], [], dtype=dtype, device=device)
    return LogitsHead(
        blueprint.norm,
        projection,
        scale=blueprint.family.logits_scale(blueprint.config.raw),
        softcap=blueprint.family.softcap(blueprint.config.raw),
    )


def _num_bytes(modules: Sequence[nn.Module]) -> int:
    parts = [part for module in modules for part in module.modules()]
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for part in parts
        for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    }
    packed = sum(part.num_bytes for part in parts if isinstance(part, PackedLinear))
    return sum(tensors.values()) + packed
