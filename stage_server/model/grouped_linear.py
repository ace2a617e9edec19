"""Matrices in 4 or 8 bits, on any device that has a form for their rows."""

from collections.abc import Iterable, Iterator
from typing import Protocol, Self

import torch
from torch import nn

from stage_server.model.coded_rows import ROW_MULTIPLE, CodedRows, kept, quantized
from stage_server.model.embeddings import CodedEmbedding, Embedding, PlainEmbedding
from stage_server.model.linear_format import Linear
from stage_server.model.weights import Run, WeightSource
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.precision import FEW_BITS, INT4, DType, Encoding
from stagecoach.model_files.weight_digest import HEAD

_READ_ELEMENTS = 1 << 19
"""Numbers that are read and packed at once; at least 64 rows."""


class RowForms(Protocol):
    """The forms that a device has for rows of a matrix.

    What it makes multiplies `[num_tokens, in_features]` in the compute dtype.
    """

    @property
    def device(self) -> torch.device:
        """Where weights live."""
        ...

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of activations."""
        ...

    @property
    def failure(self) -> str | None:
        """Why rows in few bits cannot be multiplied on this machine, or None."""
        ...

    @property
    def instead(self) -> DType:
        """In which dtype weights can be kept."""
        ...

    def plain(self, source: WeightSource, weight: str, rows: range) -> nn.Module:
        """Loads rows of plain numbers.

        Args:
            source: Where the weights are.
            weight: Name of the matrix.
            rows: Which of its rows.
        """
        ...

    def packed(
        self, parts: Iterable[CodedRows], num_rows: int, num_columns: int, num_bits: int
    ) -> nn.Module:
        """Packs rows in few bits.

        Args:
            parts: The rows; all but the last a multiple of 64 of them.
            num_rows: How many rows there are.
            num_columns: How many columns.
            num_bits: Bits of a code, 4 or 8.
        """
        ...

    def embedding(self, source: WeightSource, weight: str) -> PlainEmbedding:
        """Loads an embedding of plain numbers."""
        ...

    def sharing(self, embedding: PlainEmbedding) -> Linear | None:
        """Makes a head of an embedding without more memory; None: heads have another form."""
        ...


class GroupedFormat:
    """Implements `LinearFormat` for weights in few bits.

    A matrix whose codes in files have no more bits keeps them. The head is kept in plain numbers:
    of all rounding, that of logits would cost most.

    Args:
        forms: Forms of the device.
        num_bits: Most bits of a code, 4 or 8.
        keeps_own: The files have such weights: keep also what they have in more bits, up to 8, and
            in plain numbers what they have so.
    """

    def __init__(self, forms: RowForms, num_bits: int, *, keeps_own: bool) -> None:
        self._forms = forms
        self._num_bits = num_bits
        self._keeps_own = keeps_own

    @classmethod
    def of(cls, weights: Encoding, forms: RowForms | None, *, keeps_own: bool) -> Self | None:
        """Returns the format; None for other weights, or where the device has no such forms.

        Raises:
            InvalidArgumentError: This machine does not multiply such weights.
        """
        if forms is None or weights not in FEW_BITS.values():
            return None
        failure = forms.failure
        if failure is not None:
            raise InvalidArgumentError(
                f"weights {weights.name} cannot be computed here: {failure}; use {forms.instead}",
                field="weights",
            )
        return cls(forms, 4 if weights == INT4 else 8, keeps_own=keeps_own)

    def load(self, source: WeightSource, weight: str, bias: str | None) -> Linear:
        """Packs a matrix piece by piece as it is read."""
        if weight == HEAD:
            pieces = [self._forms.plain(source, weight, range(source.shape(weight)[0]))]
        else:
            pieces = [self._piece(source, weight, run) for run in source.runs(weight)]
        forms = self._forms
        addend = None if bias is None else source.load(bias, forms.compute_dtype, forms.device)
        return GroupedLinear(pieces, addend)

    def embedding(self, source: WeightSource, weight: str) -> Embedding:
        """Loads an embedding in 8 bits, or in plain numbers where files have it so."""
        runs = source.runs(weight)
        if self._keeps_own and any(run.code_bits is None for run in runs):
            return self._forms.embedding(source, weight)
        parts = (part for run in runs for part in _parts(source, weight, run, run.code_bits, 8))
        vocab_size, hidden_size = source.shape(weight)
        return CodedEmbedding(parts, vocab_size, hidden_size, self._forms.device)

    def _piece(self, source: WeightSource, weight: str, run: Run) -> nn.Module:
        bits = run.code_bits
        if self._keeps_own:
            if bits is None:
                return self._forms.plain(source, weight, range(run.start, run.end))
            num_bits = 4 if bits <= 4 else 8
        else:
            bits = None if bits is None or bits > self._num_bits else bits
            num_bits = 4 if bits is not None and bits <= 4 else self._num_bits
        parts = _parts(source, weight, run, bits, num_bits)
        num_columns = source.shape(weight)[1]
        return self._forms.packed(parts, run.end - run.start, num_columns, num_bits)

    def sharing(self, embedding: Embedding) -> Linear | None:
        """Shares an embedding of plain numbers, where the device multiplies by such a tensor."""
        return self._forms.sharing(embedding) if isinstance(embedding, PlainEmbedding) else None


def _parts(
    source: WeightSource, weight: str, run: Run, kept_bits: int | None, num_bits: int
) -> Iterator[CodedRows]:
    """Reads a run, a few rows at once: a multiple of 64, but for the last.

    Rounding makes several copies in float32 and int32 of what is read.

    Args:
        source: Where the weights are.
        weight: Name of the matrix.
        run: Its rows.
        kept_bits: Bits of the codes of the files, which are kept; None: round numbers.
        num_bits: Bits of the codes to return.
    """
    rows = max(_READ_ELEMENTS // source.shape(weight)[1] // ROW_MULTIPLE, 1)
    step = rows * ROW_MULTIPLE
    for start in range(run.start, run.end, step):
        end = min(start + step, run.end)
        if kept_bits is None:
            yield quantized(source.peek(weight, start, end), num_bits)
        else:
            yield kept(source.groups(weight, start, end), kept_bits, num_bits)


class GroupedLinear(Linear):
    """A linear layer of pieces, each of some of its outputs.

    Args:
        pieces: They multiply `[num_tokens, in_features]`.
        bias: `[out_features]`, or None.
    """

    def __init__(self, pieces: list[nn.Module], bias: torch.Tensor | None) -> None:
        super().__init__()
        self._pieces = nn.ModuleList(pieces)
        self.bias = None if bias is None else nn.Buffer(bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiplies `[..., in_features]`; returns `[..., out_features]`."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        outputs = [piece(rows) for piece in self._pieces]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        if self.bias is not None:
            output = output + self.bias
        return output.view(*hidden.shape[:-1], -1)
