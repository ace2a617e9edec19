"""What guessing by look-up brings on one stream: the same requests, with guesses and without.

Two clusters of the demo model, one that guesses and one that does not, take turns (A B A B), so
that whatever else the machine does hits both. Each kind of text is a prompt that a user might send:
code to be written once more with a change, a passage to be quoted, one to be summed up, and a story
to be told, in which little repeats. Prints medians of tokens a second, their ratio, tokens a pass,
and whether the texts are equal: in float32 they are, in fewer bits rounding may part them.
"""

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import NamedTuple

from benchmarks.cluster import running_cluster
from benchmarks.report import print_json, print_table
from stagecoach.client import AsyncClient

_CODE = """class Inventory:
    def __init__(self):
        self.items = {}

    def add_item(self, name, quantity):
        if name in self.items:
            self.items[name] = self.items[name] + quantity
        else:
            self.items[name] = quantity

    def remove_item(self, name, quantity):
        if name not in self.items:
            raise KeyError(name)
        if self.items[name] < quantity:
            raise ValueError("not enough items")
        self.items[name] = self.items[name] - quantity

    def count(self, name):
        return self.items.get(name, 0)
"""

_PASSAGE = (
    "The lighthouse at Carrow Point was built in 1841 by the engineer Thomas Hale. It is forty"
    " metres high and stands on a rock that the sea covers at high tide. For ninety years its"
    " keepers rowed out in pairs and stayed for a month at a time. In 1931 the lamp was made"
    " electric, and the last keeper left. Today the tower is a museum, which opens from May to"
    " September, and its lamp is lit once a year in memory of the men who served there."
)

_EDITED = _CODE.replace("Inventory", "Warehouse").partition("    def remove_item")[0]

PROMPTS: Mapping[str, str | list[dict[str, str]]] = {
    "code, edited": f"# Before:\n{_CODE}\n# After renaming the class to Warehouse:\n{_EDITED}",
    "quotation": [
        {"role": "user", "content": f"Repeat the following text word for word:\n\n{_PASSAGE}"}
    ],
    "summary": [{"role": "user", "content": f"Summarize the following text:\n\n{_PASSAGE}"}],
    "prose": [
        {"role": "user", "content": "Tell me a story about a sailor who is afraid of water."}
    ],
}


class Run(NamedTuple):
    """One request."""

    text: str
    rate: float
    """Tokens a second, from the first on."""
    tokens_per_pass: float


async def run(client: AsyncClient, prompt: str | list[dict[str, str]], max_tokens: int) -> Run:
    """Generates greedily to the end of the text, or to the limit."""
    stream = client.generate(prompt, max_tokens=max_tokens)
    first_s = None
    async with stream:
        async for _ in stream:
            first_s = first_s or time.perf_counter()
        result = await stream.result()
    ended_s = time.perf_counter()
    assert first_s is not None
    num_tokens = result.usage.num_completion_tokens
    return Run(
        text=result.text,
        rate=(num_tokens - 1) / (ended_s - first_s),
        tokens_per_pass=num_tokens / result.timings.num_steps,
    )


class Gain(NamedTuple):
    """Medians of one kind of text."""

    kind: str
    plain_rate: float
    rate: float
    ratio: float
    tokens_per_pass: float
    num_equal: int
    """Pairs of texts that are equal."""


async def measure(addresses: Sequence[str], options: argparse.Namespace) -> list[Gain]:
    """Lets the two clusters take turns, once more than is counted, to warm up."""
    gains: list[Gain] = []
    async with AsyncClient(addresses[0]) as plain, AsyncClient(addresses[1]) as guessing:
        for kind, prompt in PROMPTS.items():
            pairs = [
                (
                    await run(plain, prompt, options.max_tokens),
                    await run(guessing, prompt, options.max_tokens),
                )
                for _ in range(options.repeats + 1)
            ][1:]
            gains.append(
                Gain(
                    kind=kind,
                    plain_rate=median(one.rate for one, _ in pairs),
                    rate=median(other.rate for _, other in pairs),
                    ratio=median(other.rate / one.rate for one, other in pairs),
                    tokens_per_pass=median(other.tokens_per_pass for _, other in pairs),
                    num_equal=sum(one.text == other.text for one, other in pairs),
                )
            )
    return gains


def parse_options() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a stage")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measures and prints."""
    options = parse_options()
    flags = ["--threads", str(options.threads)]
    with ExitStack() as stack:
        addresses = [
            stack.enter_context(
                running_cluster(
                    "demo", num_stages=options.stages, dtype=options.dtype, flags=[*flags, flag]
                )
            )
            for flag in ("--no-prompt-lookup", "--prompt-lookup")
        ]
        gains = asyncio.run(measure(addresses, options))
    if options.json:
        print_json({"prompt_lookup": [gain._asdict() for gain in gains]})
        return
    print_table(
        f"Guesses by look-up, the demo in {options.dtype} on {options.stages} stages",
        ("text", "tokens/s without", "tokens/s", "ratio", "tokens a pass", "equal texts"),
        [
            (
                gain.kind,
                f"{gain.plain_rate:.1f}",
                f"{gain.rate:.1f}",
                f"{gain.ratio:.2f}",
                f"{gain.tokens_per_pass:.2f}",
                f"{gain.num_equal} of {options.repeats}",
            )
            for gain in gains
        ],
    )


if __name__ == "__main__":
    main()
