"""Do these servers hold the same weights? Pure.

Models of one shape share a fingerprint. Digests of their parts tell them apart. A server has the
digest of each part whose files lie on its box, also of layers that are not its own.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from stagecoach.contract.errors import IncompatibleError
from stagecoach.contract.stage_info import StageInfo

_LAYER = "layer "


def differing(one: StageInfo, other: StageInfo) -> str:
    """Says in which parts of the model two servers hold other weights; empty if in none."""
    parts = differing_parts(one.weight_digests, other.weight_digests)
    if parts:
        return shown(parts)
    have_common = one.weight_digests.keys() & other.weight_digests.keys()
    revisions = one.weights_revision, other.weights_revision
    if not have_common and all(revisions) and len(set(revisions)) > 1:
        return "the files on the hub, of which each has another revision (name one with @REVISION)"
    return ""


def differing_parts(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> list[str]:
    """Parts of which both have a digest, and not the same."""
    return sorted(part for part in one.keys() & other.keys() if one[part] != other[part])


def agreed(servers: Sequence[tuple[str, StageInfo]]) -> tuple[Mapping[str, bytes], str]:
    """Checks that servers hold weights of one model, as far as they say.

    Args:
        servers: Address of each, and what it said of itself.

    Returns:
        The digests of all parts that any of them has, and the revision if one names it.

    Raises:
        IncompatibleError: Two hold other weights; names both and the parts.
    """
    digests: dict[str, bytes] = {}
    revision = ""
    for index, (address, info) in enumerate(servers):
        for other_address, other in servers[:index]:
            if parts := differing(info, other):
                raise IncompatibleError(
                    f"stage {address} (layers {info.layers}) and stage {other_address} (layers "
                    f"{other.layers}) hold other weights of one shape: they differ in {parts}; "
                    "give both the same model",
                    stage=address,
                    other_stage=other_address,
                )
        digests |= info.weight_digests
        revision = revision or info.weights_revision
    return digests, revision


def with_weights(info: StageInfo, agreed_weights: tuple[Mapping[str, bytes], str]) -> StageInfo:
    """What a server must be that stands for a stage beside others that agreed."""
    digests, revision = agreed_weights
    return replace(info, weight_digests=digests, weights_revision=revision)


def shown(parts: Collection[str]) -> str:
    """Names parts briefly: `embedding, layers 0:14, 20:21`."""
    layers = sorted(int(part.removeprefix(_LAYER)) for part in parts if part.startswith(_LAYER))
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer + 1 for layer in layers if layer + 1 not in layers]
    ranges = [f"{start}:{end}" for start, end in zip(starts, ends, strict=True)]
    names = sorted(part for part in parts if not part.startswith(_LAYER))
    return ", ".join([*names, *([f"layers {', '.join(ranges)}"] if ranges else [])])
