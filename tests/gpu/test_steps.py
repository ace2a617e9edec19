"""What a step costs the host and the card, as counts that may only fall.

Counts need no card; see `fake_card`. Times do, and nothing here is a time.
"""

from typing import NamedTuple

import pytest

from stagecoach.contract.layer_range import LayerRange
from tests.gpu.fake_card import Counts, FakeCard
from tests.gpu.fake_engines import fake_engine, shape_files, tiny_files
from tests.gpu.steps import LARGE_STEPS, SETTINGS, STEPS, Kind, count_steps
from tests.tiny_models import FAMILIES, NUM_LAYERS


class Limit(NamedTuple):
    """The most of each that a kind of step may take."""

    launches_a_layer: float
    """Kernels, without those that a step needs once."""
    launches_besides: int
    """Of a stage with embedding, or of one with a head, whichever has more."""
    transfers: int
    """Copies between host and card, and other waits, of a stage that is not the last."""
    last_transfers: int
    """Of the last stage."""


LIMITS = {
    Kind.FIRST_CHUNK: Limit(17, 32, 6, 11),
    Kind.LATER_CHUNK: Limit(22, 35, 6, 11),
    Kind.DECODE_1: Limit(16, 29, 4, 9),
    Kind.DECODE_8: Limit(23, 40, 6, 18),
    Kind.DECODE_96: Limit(23, 130, 7, 107),
    Kind.MIXED: Limit(32, 45, 10, 19),
    Kind.FORK: Limit(23, 38, 8, 14),
    Kind.GREEDY_8: Limit(23, 40, 0, 18),
    Kind.SAMPLED_8: Limit(23, 89, 0, 24),
    Kind.LOGPROBS_8: Limit(23, 72, 0, 30),
}
"""Of lean layers, by the shape of Llama-2 13B. Whoever lowers a count lowers its limit. The aim is
12 launches a layer at batch 1, 14 at 8 and 96, and 2 transfers everywhere."""


def counts_of(layers: LayerRange) -> dict[Kind, Counts]:
    with FakeCard() as card:
        engine = fake_engine(shape_files("llama-2-13b"), layers, **SETTINGS)
        return count_steps(card, engine, LARGE_STEPS)


def test_launches_and_transfers_of_lean_layers_stay_within_their_limits() -> None:
    firsts = [counts_of(LayerRange(0, count)) for count in (1, 3)]
    lasts = [counts_of(LayerRange(40 - count, 40)) for count in (1, 3)]
    found = {}
    for kind in lasts[0]:
        few, many = (counts[kind].num_launches for counts in lasts)
        a_layer = (many - few) / 2
        besides = few - a_layer
        transfers = 0
        if kind in firsts[0]:
            few, many = (counts[kind].num_launches for counts in firsts)
            assert (many - few) / 2 == a_layer, "layers of all stages are alike"
            besides = max(besides, few - a_layer)
            transfers = firsts[0][kind].num_transfers
        last_transfers = lasts[0][kind].num_transfers
        found[kind] = Limit(a_layer, round(besides), transfers, last_transfers)
    assert found == LIMITS


@pytest.mark.parametrize("case", FAMILIES)
def test_every_family_computes_every_kind_of_step_on_the_card_alone(case: str) -> None:
    """A tensor on the wrong device fails, whichever operation meets it."""
    with FakeCard() as card:
        first = fake_engine(tiny_files(case), LayerRange(0, 2), **SETTINGS)
        without_head = count_steps(card, first, STEPS[:3])
        last = fake_engine(tiny_files(case), LayerRange(NUM_LAYERS - 2, NUM_LAYERS), **SETTINGS)
        counts = count_steps(card, last)
    assert without_head.keys() == {step.kind for step in STEPS[:3]}
    assert counts.keys() == {step.kind for step in STEPS}
    for kind, counted in counts.items():
        # One more where some layers have windows, as each kind of layer has masks of its own.
        assert counted.num_transfers <= LIMITS[kind].last_transfers + 1
