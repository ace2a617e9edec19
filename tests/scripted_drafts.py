"""Drafters that guess what a test says, and times at which every guess pays."""

from collections.abc import Callable, Sequence

from coordinator.core.drafter import Guess

Continue = Callable[[tuple[int, ...]], tuple[int, ...]]
"""From the tokens of a sequence to what it is guessed to go on with."""


class ScriptedDrafter:
    """Guesses what a function of the whole sequence says.

    Args:
        prompt_token_ids: Prompt of the sequence.
        output_token_ids: Its output, a list that grows.
        go_on: Makes the guesses.
    """

    def __init__(
        self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int], go_on: Continue
    ) -> None:
        self._prompt = tuple(prompt_token_ids)
        self._output = output_token_ids
        self._go_on = go_on

    def guess(self, max_num_tokens: int) -> Guess:
        return Guess(self._go_on((*self._prompt, *self._output))[:max_num_tokens], 0.99)


def flat(num_rows: int) -> float:
    """Rows cost nothing: a micro-batch takes a second, whatever it holds."""
    return 1e9
