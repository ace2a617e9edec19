"""`coordinator-cli generate`: streams one completion."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.shared import flags
from coordinator.cli.shared.connection import ApiKeyFile, Connection, TlsCa
from coordinator.cli.shared.failures import reported_failures
from coordinator.cli.shared.output_file import check_writable
from coordinator.cli.shared.text_file import decode_text, read_file
from stagecoach.contract.address import DEFAULT_ADDRESS
from stagecoach.contract.errors import InvalidArgumentError

if TYPE_CHECKING:
    from coordinator.timeline.recorder import StepRecorder

DEFAULT_MAX_TOKENS = 256


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue. Default, and '-': from stdin.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Read the prompt from a file; '-' is stdin."),
    ] = None,
    prompt_token_ids: Annotated[
        str | None, typer.Option(metavar="ID,ID,...", help="Token ids, used as they are.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send the prompt through the model's chat template.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="System message of the chat; only with --chat.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = DEFAULT_MAX_TOKENS,
    min_tokens: flags.MinTokens = 0,
    temperature: flags.Temperature = None,
    top_p: flags.TopP = None,
    top_k: flags.TopK = None,
    min_p: flags.MinP = None,
    repetition_penalty: flags.RepetitionPenalty = None,
    presence_penalty: flags.PresencePenalty = None,
    frequency_penalty: flags.FrequencyPenalty = None,
    seed: flags.Seed = None,
    stop: flags.Stop = None,
    stop_token_ids: flags.StopTokenIds = None,
    ignore_eos: flags.IgnoreEos = False,
    json_schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Generate JSON that is valid against this JSON schema."),
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="Generate what this regular expression matches as a whole.")
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --json: log-probabilities of each token and of the N likeliest ones.",
        ),
    ] = None,
    prompt_logprobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --json: the same of each token of the prompt.",
        ),
    ] = None,
    timeout_s: Annotated[
        float | None, typer.Option(help="Seconds for the whole completion. Default: no limit.")
    ] = None,
    model: flags.ModelName = None,
    coordinator: flags.CoordinatorAddress = DEFAULT_ADDRESS,
    tls_ca: TlsCa = None,
    api_key_file: ApiKeyFile = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Show on stderr where the time went.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Write a timeline for Perfetto or Chrome."),
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end instead of the text.")
    ] = False,
) -> None:
    """Streams one completion of PROMPT to stdout."""
    with reported_failures(generate):
        text_or_ids = _read_prompt(prompt, file, prompt_token_ids)
        if (chat or system is not None) and not isinstance(text_or_ids, str):
            raise InvalidArgumentError("--chat needs a prompt of text, not token ids", field="chat")
        if system is not None and not chat:
            raise InvalidArgumentError("--system needs --chat", field="system")
        stop_ids = flags.read_stop_token_ids(stop_token_ids)
        if logprobs is not None and not json_output:
            raise InvalidArgumentError("--logprobs needs --json", field="logprobs")
        if prompt_logprobs is not None and not json_output:
            raise InvalidArgumentError("--prompt-logprobs needs --json", field="prompt_logprobs")
        schema = (
            None
            if json_schema is None
            else decode_text(
                read_file(json_schema, "--json-schema"),
                f"json_schema {json_schema}",
                "json_schema",
            ).removesuffix("\n")
        )
        if trace is not None:
            check_writable("trace", trace)

        from coordinator.cli.shared.completion_output import print_json, print_stats, stream_text
        from stagecoach.client import GenerateOptions

        options = GenerateOptions(
            model=model,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            stop=stop or (),
            stop_token_ids=stop_ids,
            ignore_eos=ignore_eos,
            json_schema=schema,
            regex=regex,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
        wanted = _conversation(str(text_or_ids), system) if chat else text_or_ids
        connection = Connection.of(coordinator, tls_ca, api_key_file)
        with connection.client() as client, _recording(connection, trace, model) as recorder:
            with client.generate(wanted, timeout_s=timeout_s, **options) as stream:
                if not json_output:
                    stream_text(stream)
                completion = stream.result()
            if recorder is not None and trace is not None:
                recorder.wait_for(completion.timings.num_steps)
                recorder.write(trace)
        if json_output:
            print_json(completion)
        if stats:
            print_stats(completion)


def _recording(
    connection: Connection, trace: Path | None, model: str | None
) -> "AbstractContextManager[StepRecorder | None]":
    """Watches the steps while the block runs, if there is a trace to be written."""
    if trace is None:
        return nullcontext()

    from coordinator.timeline.recorder import StepRecorder

    return StepRecorder(connection.client(), model=model)


def _read_prompt(
    prompt: str | None, file: Path | None, prompt_token_ids: str | None
) -> str | list[int]:
    """The prompt from the one place that was named, or else from stdin.

    Text from a file or from stdin loses one newline at its end, which editors and `echo` add.

    Raises:
        InvalidArgumentError: There is no prompt, more than one, or none that can be read.
    """
    if sum(source is not None for source in (prompt, file, prompt_token_ids)) > 1:
        raise InvalidArgumentError(
            "give only one of PROMPT, --file and --prompt-token-ids", field="prompt"
        )
    if prompt_token_ids is not None:
        return flags.read_token_ids("--prompt-token-ids", prompt_token_ids)
    if file is not None and file != Path("-"):
        text = decode_text(read_file(file, "--file"), f"file {file}", "file").removesuffix("\n")
    elif prompt is not None and prompt != "-":
        text = prompt
    else:
        is_typed = prompt is None and file is None and sys.stdin.isatty()
        piped = b"" if is_typed else sys.stdin.buffer.read()
        text = decode_text(piped, "stdin", "prompt").removesuffix("\n")
        if not text:
            raise InvalidArgumentError(
                "no prompt: give PROMPT, --file or --prompt-token-ids, or pipe it to stdin",
                field="prompt",
            )
    if not text:
        raise InvalidArgumentError("the prompt is empty", field="prompt")
    return text


def _conversation(prompt: str, system: str | None) -> Sequence[dict[str, str]]:
    messages = [{"role": "user", "content": prompt}]
    return messages if system is None else [{"role": "system", "content": system}, *messages]
