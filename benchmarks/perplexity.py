"""What each form of the demo's weights and KV costs in quality, beside transformers in float32.

The text is the first thirty decisions of this repository, which do not change any more. Every form
is a cluster of three stages that `coordinator-cli perplexity` asks, as a user would; transformers
reads the same file in float32, and goes through the same windows.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmarks.cluster import running_cluster
from benchmarks.report import print_json, print_table
from coordinator.perplexity.result import Perplexity
from coordinator.perplexity.windows import WindowPlan
from coordinator.text.tokenizer_files import load_tokenizer
from stagecoach.model_files import open_model
from tests.demo_model import demo_gguf, read_with_transformers

ROOT = Path(__file__).resolve().parents[1]
CONTEXT, STRIDE = 512, 256
FORMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "float32": ("float32", ()),
    "float16": ("float16", ()),
    "auto (the bits of the file)": ("auto", ()),
    "float32, KV in int8": ("float32", ("--kv-dtype", "int8")),
}
"""`--dtype` and further flags of `up`, by the name of the form."""


def main() -> None:
    """Measures every form and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    text = "".join(path.read_text() for path in sorted(ROOT.glob("docs/decisions/00[0-2]*.md")))
    found = {"transformers, float32": by_transformers(text)}
    for name, (dtype, flags) in FORMS.items():
        with running_cluster("demo", dtype=dtype, flags=flags) as address:
            found[name] = by_command(address, text)
    if options.json:
        print_json({"perplexity": {name: figures(one) for name, one in found.items()}})
        return
    print_table(
        f"Perplexity of the demo, windows of {CONTEXT} tokens every {STRIDE}",
        ("form", "tokens", "perplexity", "standard error", "nats a token", "bits a byte"),
        [
            (
                name,
                one.num_tokens,
                f"{one.perplexity:.4f}",
                f"{one.standard_error:.4f}",
                f"{one.mean_nll:.5f}",
                f"{one.bits_per_byte:.5f}",
            )
            for name, one in found.items()
        ],
    )


def by_command(address: str, text: str) -> Perplexity:
    """Asks a cluster as a user would."""
    command = [sys.executable, "-m", "coordinator.cli", "perplexity", "-", "--json"]
    command += ["--coordinator", address, "--context", str(CONTEXT), "--stride", str(STRIDE)]
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout)
    return Perplexity(
        num_tokens=answer["tokens"],
        mean_nll=answer["mean_nll"],
        mean_nll_error=answer["mean_nll_error"],
        bits_per_byte=answer["bits_per_byte"],
    )


def by_transformers(text: str) -> Perplexity:
    """Goes through the same windows with the whole model in float32."""
    tokenizer = load_tokenizer(open_model("demo"))
    assert tokenizer is not None, "the demo has a tokenizer"
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    model = read_with_transformers(demo_gguf())
    logprobs: list[float] = []
    plan = WindowPlan(context=CONTEXT, stride=STRIDE, num_begin_tokens=0)
    for start, first, end in plan.windows(len(token_ids)):
        ids = torch.tensor(token_ids[start:end])
        with torch.inference_mode():
            rows = torch.log_softmax(model(ids[None]).logits[0].double(), dim=1)
        logprobs += (rows[i - 1, ids[i]].item() for i in range(first - start, end - start))
    return Perplexity.of(logprobs, tokens_per_byte=len(token_ids) / len(text.encode()))


def figures(one: Perplexity) -> dict[str, float | None]:
    """The figures by their names."""
    return {
        "tokens": one.num_tokens,
        "perplexity": one.perplexity,
        "standard_error": one.standard_error,
        "mean_nll": one.mean_nll,
        "bits_per_byte": one.bits_per_byte,
    }


if __name__ == "__main__":
    main()
