"""The check of recovery: one of three stages is killed under eight streams, and starts again."""

import asyncio
from collections.abc import Iterator, Sequence

from benchmarks.failover import NUM_STREAMS, Kill, kill, undisturbed
from benchmarks.gpu_check.local_cluster import cluster_on
from benchmarks.gpu_check.models import text_model
from benchmarks.gpu_check.report import Figure, Limit
from benchmarks.gpu_check.subject import Subject
from stagecoach.client import AsyncClient

_NUM_STAGES = 3
_NUM_TOKENS = 200

_STREAMS = "streams that end with the text of the undisturbed run"
_PAUSE = "longest pause of a stream"

_MOST_PAUSE_S = 60.0
"""In which Python, torch and CUDA start, the weights are loaded, memory is profiled, and what was
generated before is computed again."""


def names(_: Subject) -> Sequence[str]:
    """Names the rows."""
    return [_STREAMS, _PAUSE]


def figures(subject: Subject) -> Iterator[Figure]:
    """Kills the stage in the middle."""
    with cluster_on(
        subject, text_model(subject), num_stages=_NUM_STAGES, dtype="float32"
    ) as address:
        found = asyncio.run(_kill(address))
    note = f"{found.num_failed} failed, {found.num_lost} were lost; {found.stage} was killed"
    limit = Limit(least=NUM_STREAMS)
    yield Figure(_STREAMS, found.num_complete, f"of {NUM_STREAMS}", limit, note)
    yield Figure(
        _PAUSE,
        found.longest_pause_s,
        "s",
        Limit(most=_MOST_PAUSE_S),
        note=f"{found.before_ms:.1f} ms between two tokens before",
        is_of_cards=True,
    )


async def _kill(address: str) -> Kill:
    async with AsyncClient(address) as client:
        texts = await undisturbed(client, _NUM_TOKENS)
        return await kill(client, texts, _NUM_STAGES // 2, _NUM_TOKENS)
