"""Do these stages make one model? Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from coordinator.core.limits import MAX_STAGES
from coordinator.pipeline.weights import agreed, with_weights
from stagecoach.contract.errors import IncompatibleError, InvalidArgumentError
from stagecoach.contract.protocol import PROTOCOL_VERSION
from stagecoach.contract.stage_info import StageInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Stages in pipeline order and what they can hold together.

    The weights that each names are those of all of them.
    """

    addresses: tuple[str, ...]
    infos: tuple[StageInfo, ...]

    @classmethod
    def of(cls, stages: Sequence[tuple[str, StageInfo]]) -> Self:
        """Checks that stages in pipeline order cover one model without gap or overlap.

        Args:
            stages: Address of each stage and what it said of itself, in the order in which
                activations visit them.

        Raises:
            IncompatibleError: Version, model, layers, dtype, KV block size or weights do not fit
                together; the message names the stage and both values.
            InvalidArgumentError: There are no stages, or more than 16.
        """
        if not 1 <= len(stages) <= MAX_STAGES:
            raise InvalidArgumentError(
                f"{len(stages)} stages, must be 1 to {MAX_STAGES}", field="stage"
            )
        _, first = stages[0]
        next_layer = 0
        for index, (address, info) in enumerate(stages):
            name = f"stage {index} at {address} (layers {info.layers})"
            for what, found, expected in (
                ("protocol version", info.protocol_version, PROTOCOL_VERSION),
                ("model fingerprint", info.fingerprint, first.fingerprint),
                ("number of layers", info.num_model_layers, first.num_model_layers),
                ("hidden size", info.hidden_size, first.hidden_size),
                ("hidden states dtype", info.precision.wire.name, first.precision.wire.name),
                ("KV block size", info.kv_block_size, first.kv_block_size),
            ):
                if found != expected:
                    raise IncompatibleError(
                        f"{name}: {what} is {found}, expected {expected}",
                        stage=address,
                        found=found,
                        expected=expected,
                    )
            if info.layers.start != next_layer:
                relation = "leaves a gap after" if info.layers.start > next_layer else "overlaps"
                raise IncompatibleError(
                    f"{name} {relation} the stages before it, which end at layer {next_layer}",
                    stage=address,
                    expected=next_layer,
                )
            next_layer = info.layers.end
        weights = agreed(stages)
        if next_layer != first.num_model_layers:
            raise IncompatibleError(
                f"{name} is the last, but the model has {first.num_model_layers} layers",
                stage=address,
                expected=first.num_model_layers,
            )
        return cls(
            addresses=tuple(address for address, _ in stages),
            infos=tuple(with_weights(info, weights) for _, info in stages),
        )

    @property
    def unequal_forms(self) -> dict[str, str]:
        """What stages keep or compute in more than one format: each format, and who has it.

        Empty where all are alike. Every pipeline has them in the same places, so that it computes
        the same numbers as any other.
        """
        of_each = {
            "weights": [info.precision.weights.name for info in self.infos],
            "arithmetic": [info.precision.compute.value for info in self.infos],
            "kv": [info.precision.kv.value for info in self.infos],
        }
        return {
            what: "; ".join(f"{name}: {', '.join(self._stages_with(name, names))}" for name in each)
            for what, names in of_each.items()
            if len(each := dict.fromkeys(names)) > 1
        }

    def _stages_with(self, name: str, names: Sequence[str]) -> list[str]:
        pairs = zip(self.addresses, names, strict=True)
        return [address for address, found in pairs if found == name]

    @property
    def fingerprint(self) -> str:
        """The model."""
        return self.infos[0].fingerprint

    @property
    def model_id(self) -> str:
        """The model, for people."""
        return self.infos[0].model_id

    @property
    def vocab_size(self) -> int:
        """Logits a row."""
        return self.infos[-1].vocab_size

    @property
    def answers_prompt_logits(self) -> bool:
        """True when every server of the last stage tells how likely the tokens of a prompt are."""
        return self.infos[-1].answers_prompt_logits

    @property
    def answers_hidden_sums(self) -> bool:
        """True when every server of the last stage adds up final hidden states."""
        return self.infos[-1].answers_hidden_sums

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state."""
        return self.infos[0].hidden_size

    @property
    def kv_block_size(self) -> int:
        """Tokens a KV block, on every stage."""
        return self.infos[0].kv_block_size

    @property
    def num_kv_blocks(self) -> int:
        """KV blocks of the smallest stage."""
        return min(info.num_kv_blocks for info in self.infos)

    @property
    def max_num_seqs(self) -> int:
        """Slots that every stage has."""
        return min(info.max_num_seqs for info in self.infos)

    @property
    def max_num_batched_tokens(self) -> int:
        """Tokens that every stage takes in one micro-batch."""
        return min(info.max_num_batched_tokens for info in self.infos)

    @property
    def max_model_len(self) -> int:
        """Tokens that every stage takes in one sequence."""
        return min(info.max_model_len for info in self.infos)
