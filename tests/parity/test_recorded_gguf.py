"""Files of llama.cpp's own converter generate what transformers did with the models in them.

`tests/recorded_gguf` has the files, what transformers generated, and what wrote both.
"""

import json
from pathlib import Path

import pytest
from gguf import GGUFReader

from stage_server.model.layer_stack import load_layer_stack
from stagecoach.model_files import open_model
from stagecoach.model_files.gguf_architectures import ARCHITECTURES
from tests.layer_ranges import split_evenly
from tests.parity.test_layer_stack import CPU, FLOAT32, SplitModel
from tests.recorded_gguf.record import CASES, EXPECTED, HERE, NUM_TOKENS, PROMPT

RECORDED: dict[str, list[int]] = json.loads(EXPECTED.read_text())


def generate(path: Path, num_stages: int) -> list[int]:
    """Prefills in two chunks, then decodes greedily."""
    files = open_model(str(path))
    split = SplitModel(
        [
            load_layer_stack(files, layers, precision=FLOAT32, device=CPU)
            for layers in split_evenly(files.config.num_layers, num_stages)
        ]
    )
    split.logits([*PROMPT[:5]])
    token_ids = [int(split.logits([*PROMPT[5:]])[-1].argmax())]
    while len(token_ids) < NUM_TOKENS:
        token_ids.append(int(split.logits(token_ids[-1:])[-1].argmax()))
    return token_ids


def test_every_architecture_that_is_served_was_recorded() -> None:
    assert RECORDED.keys() == CASES.keys()
    recorded = {
        GGUFReader(HERE / f"{case}.gguf").fields["general.architecture"].contents()
        for case in CASES
    }
    assert recorded == set(ARCHITECTURES)


@pytest.mark.parametrize("case", CASES)
def test_a_file_of_the_converter_generates_what_transformers_did(case: str) -> None:
    assert generate(HERE / f"{case}.gguf", 2) == RECORDED[case]
