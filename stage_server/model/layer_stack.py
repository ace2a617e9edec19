"""A stage's share of a model: loaded once, then asked for embeddings, hidden states and logits."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import nn

from stage_server.core.load_board import Report, WeightProgress, no_report
from stage_server.core.torch_dtypes import torch_dtype
from stage_server.kernels.kernels import Kernels
from stage_server.model.attention import Attention
from stage_server.model.blueprint import Blueprint
from stage_server.model.ends import LogitsHead, TokenEmbedding
from stage_server.model.fused_layers import FusedLayers
from stage_server.model.lean_blueprint import LeanBlueprint, is_plain
from stage_server.model.lean_layers import LeanLayers, is_lean
from stage_server.model.linear_format import Linear
from stage_server.model.linear_formats import linear_format
from stage_server.model.tensor_names import check_names, check_zeros, unused_fillers
from stage_server.model.weight_loader import WeightLoader
from stage_server.model.weight_plan import ParameterSource, WeightPlan
from stage_server.model.weights import WeightSource
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.load_progress import LoadPhase, LoadProgress
from stagecoach.contract.precision import DType, Encoding, Precision, few_bits
from stagecoach.model_files import ModelFiles
from stagecoach.model_files.weight_digest import EMBEDDING, HEAD, HEAD_BIAS, POSITIONS

_MIN_PEEK_ELEMENTS = 4 << 20
_PEEK_SHARE = 20
"""What is read in float32 at once is a twentieth of the stage's elements: a tenth of the bytes of
their float16. 16 MiB of a small stage hurt nobody."""


class Layers(Protocol):
    """A way to run the layers of a stage.

    Args:
        blueprint: What they are.
        loader: Loader of the layers' weights, which are those of `weight_sources`.
    """

    def __init__(self, blueprint: Blueprint, loader: WeightLoader) -> None: ...

    @staticmethod
    def weight_sources(blueprint: Blueprint) -> dict[str, ParameterSource]:
        """Returns what its parameters are made of, by their names in the stage."""
        ...

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
        layers_type: The way to run its layers.
        loader: Loader of the stack's weights.
        precision: The formats of its numbers.
        kernels: What the layers' attention runs with; None: without kernels.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        layers_type: type[Layers],
        loader: WeightLoader,
        precision: Precision,
        kernels: Kernels | None,
    ) -> None:
        self.kernels = kernels
        self.config = blueprint.config
        self.layers = blueprint.range
        self.device = loader.device
        self.precision = precision
        self.num_weights = loader.source.num_elements
        # The largest tensors come first, while there is most room for what loading needs besides.
        self._embedding = _load_embedding(blueprint, loader, precision)
        self._head = _load_head(blueprint, loader, self._embedding)
        self._layers = layers_type(blueprint, loader)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of hidden states inside the stage."""
        return torch_dtype(self.precision.compute)

    @property
    def wire_dtype(self) -> torch.dtype:
        """Dtype of hidden states between stages."""
        return torch_dtype(self.precision.wire)

    @property
    def is_fused(self) -> bool:
        """True where kernels of ours run between the matrices."""
        return isinstance(self._layers, FusedLayers)

    @property
    def is_first(self) -> bool:
        """True for the stage that embeds tokens."""
        return self._embedding is not None

    @property
    def is_last(self) -> bool:
        """True for the stage that computes logits."""
        return self._head is not None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights; what is shared counts once."""
        ends = [module for module in (self._embedding, self._head) if module is not None]
        return _num_bytes([*ends, *self._layers.modules])

    def embed(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Embeds tokens; first stage only.

        Args:
            token_ids: int64 `[num_tokens]` on the device, each below the vocabulary's size.
            positions: As in `forward`.

        Returns:
            `[num_tokens, hidden_size]`, in the compute dtype.
        """
        assert self._embedding is not None, "only the first stage embeds"
        embeddings: torch.Tensor = self._embedding(token_ids, positions)
        return embeddings

    def first_hidden(self, inputs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Makes of a stage's inputs what goes into its first layer.

        Args:
            inputs: Token ids as in `embed`, or hidden states of any dtype, on the device.
            positions: As in `forward`.

        Returns:
            `[num_tokens, hidden_size]`, in the compute dtype.
        """
        return self.embed(inputs, positions) if self.is_first else inputs.to(self.compute_dtype)

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        num_positions: int,
        attention: Attention,
    ) -> torch.Tensor:
        """Runs the stage's layers over packed tokens.

        Args:
            hidden: `[num_tokens, hidden_size]`, in the compute dtype, on the device; kept.
            positions: int64 `[num_tokens]` on the device: of every row in its own sequence.
            num_positions: All positions are below this, at most the model's `max_model_len`.
            attention: Knows which token belongs to which sequence; called once a layer.

        Returns:
            `[num_tokens, hidden_size]`.
        """
        return self._layers.forward(hidden, positions, num_positions, attention)

    def final_hidden(self, hidden: torch.Tensor) -> torch.Tensor:
        """Applies the last norm; last stage only.

        Args:
            hidden: `[num_rows, hidden_size]`, rows of what `forward` returned.

        Returns:
            `[num_rows, hidden_size]` on the device: what `logits` projects, and transformers calls
            the last hidden state.
        """
        assert self._head is not None, "only the last stage has a head"
        final: torch.Tensor = self._head.norm(hidden)
        return final

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


def no_kernels(_: Blueprint) -> Kernels | None:
    """Says that nothing runs by kernels of ours, as on the CPU."""
    return None


def load_layer_stack(
    files: ModelFiles,
    layers: LayerRange,
    *,
    precision: Precision,
    device: torch.device,
    lean: bool = True,
    keeps_own: bool = True,
    find_kernels: Callable[[Blueprint], Kernels | None] = no_kernels,
    report: Report = no_report,
) -> LayerStack:
    """Loads a range of a model's layers, and nothing else of it.

    Args:
        files: The model.
        layers: The range; the first also embeds tokens, the last also computes logits.
        precision: The formats of its numbers.
        device: Where the weights are to live.
        lean: False: compute with transformers' modules even where there is a faster way.
        keeps_own: True: where most matrices of the files have the few bits of `precision`, keep
            the others as they are; False: round what has more bits.
        find_kernels: Says, before anything is loaded, which kernels compute such layers on the
            device; None: none do.
        report: Told how far downloading and loading are.

    Raises:
        UnsupportedModelError: The model's family or layout is not served.
        ModelFilesError: Layers, tensors or files are missing or damaged.
        InvalidArgumentError: Nothing computes in such a precision on this device.
    """
    keeps_own = keeps_own and files.stored_encoding == precision.weights
    format_ = linear_format(precision, device, keeps_own=keeps_own)
    blueprint, runs_lean = _blueprint(files, layers, lean=lean)
    kernels = find_kernels(blueprint)
    layers_type = _layers_type(runs_lean=runs_lean, kernels=kernels)
    plan = _weight_plan(blueprint, layers_type)
    check_names(plan.tensor_names, files, layers)
    fillers = unused_fillers(plan.tensor_names, files, layers)

    def on_download(done_bytes: int, total_bytes: int) -> None:
        report(
            LoadProgress(
                phase=LoadPhase.DOWNLOADING, done_bytes=done_bytes, total_bytes=total_bytes
            )
        )

    with (
        files.open_tensors({*plan.tensor_names, *fillers}, on_download=on_download) as reader,
        torch.inference_mode(),
    ):
        plan.check_shapes(reader, files.model_id)
        check_zeros(reader, fillers, files.model_id)

        def kept_in(name: str) -> Encoding:
            if not keeps_own:
                return precision.weights
            bits = reader.info(name).code_bits
            return Encoding.plain(DType.FLOAT16) if bits is None else few_bits(bits)

        source = WeightSource(
            reader,
            plan,
            max_peek_elements=max(_MIN_PEEK_ELEMENTS, plan.num_elements // _PEEK_SHARE),
            progress=WeightProgress(plan.num_elements, plan.num_bytes(kept_in), report),
        )
        loader = WeightLoader(source, format_, precision, device)
        return LayerStack(blueprint, layers_type, loader, precision, kernels)


def _blueprint(files: ModelFiles, layers: LayerRange, *, lean: bool) -> tuple[Blueprint, bool]:
    """Says what the layers are, and whether they are run lean.

    Imports transformers only for those that need it.
    """
    if lean and is_plain(files.config):
        return LeanBlueprint(files, layers), True
    from stage_server.model.module_blueprint import ModuleBlueprint

    blueprint = ModuleBlueprint(files, layers)
    return blueprint, lean and is_lean(blueprint)


def _layers_type(*, runs_lean: bool, kernels: Kernels | None) -> type[Layers]:
    if runs_lean:
        return LeanLayers if kernels is None else FusedLayers
    from stage_server.model.decoder_layers import DecoderLayers

    return DecoderLayers


def _weight_plan(blueprint: Blueprint, layers_type: type[Layers]) -> WeightPlan:
    matrix = (blueprint.config.vocab_size, blueprint.config.hidden_size)
    sources = {}
    if blueprint.is_first:
        sources[EMBEDDING] = ParameterSource.one(blueprint.embedding_name, matrix)
        first_position = blueprint.family.first_position
        if first_position is not None:
            num_positions = first_position + blueprint.config.max_model_len
            sources[POSITIONS] = ParameterSource.one(POSITIONS, (num_positions, matrix[1]))
    sources |= layers_type.weight_sources(blueprint)
    if blueprint.is_last:
        sources |= blueprint.norm_sources()
        sources[HEAD] = ParameterSource.one(blueprint.head_name, matrix)
        if blueprint.family.head_has_bias:
            sources[HEAD_BIAS] = ParameterSource.one(HEAD_BIAS, matrix[:1])
    in_files = blueprint.family.names.in_files
    return WeightPlan({name: source.renamed(in_files) for name, source in sources.items()})


def _load_embedding(
    blueprint: Blueprint, loader: WeightLoader, precision: Precision
) -> TokenEmbedding | None:
    if not blueprint.is_first:
        return None
    family = blueprint.family
    positions = None
    if family.first_position is not None:
        positions = loader.other(POSITIONS)[family.first_position :]
    return TokenEmbedding(
        loader.embedding(EMBEDDING),
        scale=family.embedding_scale(blueprint.config.raw),
        dtype=torch_dtype(precision.compute),
        norm=blueprint.load_norm(loader) if family.norms_embeddings else None,
        positions=positions,
    )


def _load_head(
    blueprint: Blueprint, loader: WeightLoader, embedding: TokenEmbedding | None
) -> LogitsHead | None:
    if not blueprint.is_last:
        return None
    projection = None
    can_share = blueprint.config.tie_word_embeddings and not blueprint.family.head_has_bias
    if embedding is not None and can_share:
        projection = loader.linear_format.sharing(embedding.rows)
    if projection is None or not loader.source.are_equal(EMBEDDING, HEAD):
        projection = loader.linear(HEAD.removesuffix(".weight"))
    return LogitsHead(
        blueprint.load_norm(loader),
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
    packed = sum(part.packed_bytes for part in parts if isinstance(part, Linear))
    return sum(tensors.values()) + packed
