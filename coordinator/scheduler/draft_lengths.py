"""How many guessed tokens of each sequence a micro-batch checks: as many as pay for their time."""

from collections.abc import Callable, Sequence
from heapq import heapify, heapreplace

from coordinator.core.drafter import Guess

MAX_DRAFTS = 15
"""Guessed tokens of one sequence in a micro-batch."""

_MAX_ROWS = 64
"""Guessed tokens of all sequences in a micro-batch, so that to choose them takes little time."""

MIN_GAIN = 1.05
"""Tokens a second that guesses must promise, against none: what is less is as likely a loss."""


def may_pay(duration_ns: Callable[[int], float], num_decodes: int) -> bool:
    """Tells whether guesses would pay if all of them were right.

    Args:
        duration_ns: Time of a micro-batch with so many rows.
        num_decodes: Sequences in the micro-batch.
    """
    rate = num_decodes / duration_ns(num_decodes)
    return any(
        num_rows / duration_ns(num_rows) > MIN_GAIN * rate
        for num_rows in (2 * num_decodes, 4 * num_decodes)
    )


def draft_lengths(
    guesses: Sequence[Guess],
    *,
    num_decodes: int,
    max_num_drafts: int,
    duration_ns: Callable[[int], float],
) -> list[int]:
    """Chooses how many tokens of each guess are checked, for the most tokens a second.

    Takes, one after another, the guessed token that is most likely reached and right, and stops
    where tokens a second were highest.

    Args:
        guesses: One for each sequence that has any.
        num_decodes: Sequences in the micro-batch, each of which takes a token anyway.
        max_num_drafts: Most guessed tokens of all.
        duration_ns: Time of a micro-batch with so many rows.

    Returns:
        A number for each guess; all 0 where guesses do not promise `MIN_GAIN`.
    """
    lengths = [0] * len(guesses)
    # By falling likelihood of the next token of each; the heap has the smallest first.
    heap = [(-guess.chance, index) for index, guess in enumerate(guesses) if guess.token_ids]
    heapify(heap)
    num_tokens = float(num_decodes)
    best_rate = MIN_GAIN * num_decodes / duration_ns(num_decodes)
    best: list[int] = list(lengths)
    for num_drafts in range(1, min(max_num_drafts, _MAX_ROWS) + 1):
        if not heap or heap[0][0] == 0:
            break
        negative, index = heap[0]
        num_tokens -= negative
        lengths[index] += 1
        guess = guesses[index]
        is_whole = lengths[index] == min(len(guess.token_ids), MAX_DRAFTS)
        heapreplace(heap, (0.0 if is_whole else negative * guess.chance, index))
        rate = num_tokens / duration_ns(num_decodes + num_drafts)
        if rate > best_rate:
            best_rate, best = rate, list(lengths)
    return best
