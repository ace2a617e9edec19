"""Evaluates a served model with lm_eval as it comes, on tasks whose data stand here.

Run by `test_lm_eval.py` in an environment of its own: `evaluate.py BASE_URL MODEL KIND [OPTIONS]`,
where KIND is `completions` or `chat`, and OPTIONS are what lm_eval's model takes, as JSON. Prints
what came of each request, by task, as JSON.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets  # type: ignore[import-not-found,unused-ignore]
import lm_eval  # type: ignore[import-not-found,unused-ignore]
from lm_eval.api.task import ConfigurableTask  # type: ignore[import-not-found,unused-ignore]
from lm_eval.models.openai_completions import (  # type: ignore[import-not-found,unused-ignore]
    LocalChatCompletion,
    LocalCompletionsAPI,
)

Row = Mapping[str, Any]

CHOICES: Sequence[Row] = (
    {"question": "The opposite of hot is", "options": [" cold", " seven", " a"], "gold": 0},
    {
        "question": "Caf\u00e9 cr\u00e8me \U0001f600:",
        "options": [" noir", " \u00e9t\u00e9"],
        "gold": 1,
    },
)
TEXTS: Sequence[Row] = (
    {"text": "The stagecoach left at dawn."},
    {"text": "Na\u00efve caf\u00e9 \U0001f600."},
)
QUESTIONS: Sequence[Row] = ({"text": "1 2 3"}, {"text": "a b c d"})


def main() -> None:
    """Evaluates what the command line says."""
    base_url, model, kind, *rest = sys.argv[1:]
    options = json.loads(rest[0]) if rest else {}
    if kind == "chat":
        url = f"{base_url}/v1/chat/completions"
        client = LocalChatCompletion(base_url=url, model=model, **options)
        tasks = [generation()]
    else:
        url = f"{base_url}/v1/completions"
        client = LocalCompletionsAPI(base_url=url, model=model, **options)
        tasks = [generation()]
        if client.tokenizer is not None:
            tasks += [multiple_choice(), rolling()]
    done = lm_eval.simple_evaluate(
        model=client,
        tasks=tasks,
        bootstrap_iters=0,
        apply_chat_template=kind == "chat",
    )
    responses = {
        task: [sample["resps"] for sample in sorted(samples, key=lambda one: one["doc_id"])]
        for task, samples in done["samples"].items()
    }
    print(json.dumps(responses))


def multiple_choice() -> Any:
    """Asks for the likelihood of each of some answers."""
    return _task(
        "choices",
        CHOICES,
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="{{options}}",
        doc_to_target="gold",
        target_delimiter="",
        metric_list=[{"metric": "acc"}],
    )


def rolling() -> Any:
    """Asks for the likelihood of whole texts."""
    return _task(
        "texts",
        TEXTS,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )


def generation() -> Any:
    """Asks for texts to be continued."""
    return _task(
        "questions",
        QUESTIONS,
        output_type="generate_until",
        doc_to_text="{{text}}",
        doc_to_target="{{text}}",
        generation_kwargs={"until": ["Q:"], "max_gen_toks": 8, "temperature": 0.0},
        metric_list=[{"metric": "exact_match"}],
    )


def _task(name: str, rows: Sequence[Row], **config: Any) -> Any:
    return ConfigurableTask(
        config={"task": name, "custom_dataset": _data(rows), "test_split": "test", **config}
    )


def _data(rows: Sequence[Row]) -> Callable[..., Any]:
    return lambda **_: datasets.DatasetDict({"test": datasets.Dataset.from_list(list(rows))})


if __name__ == "__main__":
    main()
