"""The check of a real shortage: the memory of the device is taken away under a running stage.

The demo model in float32, so that the text is decided clearly: rounding differs between a prompt in
one part and in several.
"""

import logging
from collections.abc import Iterator, Sequence

from benchmarks.gpu_check.memory_taken import memory_taken, prepare
from benchmarks.gpu_check.report import Figure, Limit
from benchmarks.gpu_check.stage_runs import greedy_tokens, load_engine, random_sequences
from benchmarks.gpu_check.subject import Subject
from stage_server.compute import divided_steps
from stage_server.compute.torch_engine import TorchEngine
from stagecoach.contract.errors import DeviceMemoryError
from stagecoach.contract.precision import DType
from tests.tiny_models import tiny_model

_KV_BYTES = 256 << 20
_NUM_TOKENS = 16
_NUM_PROMPT_TOKENS = 2000
_NUM_QUICK_PROMPT_TOKENS = 480

_LEFT_BYTES = 64 << 20
_LEFT_QUICK_BYTES = 8 << 20
"""A fraction of what the logits of all rows of the prompt take, and more than those of some do."""

_QUICK_VOCAB_SIZE = 16384

_CUT = "with little left: times that a part was halved"
_SAME = "with little left: tokens that are those of before"
_REFUSED = "with nothing left: a single row fails as DeviceMemoryError"
_AFTER = "with the memory given back: tokens that are those of before"


def names(subject: Subject) -> Sequence[str]:
    """Names the rows. Nothing at all cannot be left of the memory that Python itself runs in."""
    return [_CUT, _SAME, *([_REFUSED] if subject.is_card else []), _AFTER]


def figures(subject: Subject) -> Iterator[Figure]:
    """Generates the same text with less and less memory, and with all of it again."""
    prepare(subject.device)
    engine = load_engine(subject, _model(subject), DType.FLOAT32, kv_memory_bytes=_KV_BYTES)
    length = _NUM_QUICK_PROMPT_TOKENS if subject.is_quick else _NUM_PROMPT_TOKENS
    (prompt,) = random_sequences([length], engine.info.vocab_size)
    expected = greedy_tokens(engine, prompt, _NUM_TOKENS)
    cuts = _Cuts()
    left_bytes = _LEFT_QUICK_BYTES if subject.is_quick else _LEFT_BYTES
    with cuts, memory_taken(subject.device, left_bytes):
        found = greedy_tokens(engine, prompt, _NUM_TOKENS)
    note = f"{length} tokens of a prompt and their logits, {left_bytes >> 20} MiB left"
    yield Figure(_CUT, cuts.count, "times", Limit(least=1), note)
    yield _equal(_SAME, found, expected)
    if subject.is_card:
        with memory_taken(subject.device, 0):
            is_refused = _is_refused(engine, prompt[:1])
        yield Figure(_REFUSED, float(is_refused), "of 1", Limit(least=1))
    yield _equal(_AFTER, greedy_tokens(engine, prompt, _NUM_TOKENS), expected)


def _model(subject: Subject) -> str:
    if not subject.is_quick:
        return "demo"
    return str(
        tiny_model(
            "llama",
            subject.folder,
            vocab_size=_QUICK_VOCAB_SIZE,
            max_position_embeddings=_NUM_QUICK_PROMPT_TOKENS + _NUM_TOKENS,
        )
    )


class _Cuts(logging.Handler):
    """Counts, while it is entered, how often a stage says that a micro-batch did not fit."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0
        self._log = logging.getLogger(divided_steps.__name__)

    def emit(self, record: logging.LogRecord) -> None:
        """Counts a warning, of which that module has one."""
        self.count += 1

    def __enter__(self) -> None:
        self._log.addHandler(self)

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)


def _is_refused(engine: TorchEngine, prompt: Sequence[int]) -> bool:
    try:
        greedy_tokens(engine, prompt, 1)
    except DeviceMemoryError:
        return True
    return False


def _equal(name: str, found: Sequence[int], expected: Sequence[int]) -> Figure:
    num_equal = sum(one == other for one, other in zip(found, expected, strict=True))
    return Figure(name, num_equal, f"of {len(expected)}", Limit(least=len(expected)))
