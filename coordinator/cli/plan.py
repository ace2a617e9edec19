"""`coordinator-cli plan`: does the model fit these GPUs, and how fast will it be?"""

from typing import Annotated

import typer

from coordinator.cli.shared.batch_sizes import read_batch_sizes
from coordinator.cli.shared.failures import reported_failures
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.precision import Encoding, KvFormat
from stagecoach.contract.stage_choices import KV_DTYPE_NAMES
from stagecoach.process import value_completion

_DEFAULT_CONTEXT_TOKENS = 512


def plan(
    model: Annotated[
        str,
        typer.Option(
            autocompletion=value_completion.models,
            help="Local Hugging Face folder, hub id, path of a .gguf file, demo or shape:NAME.",
        ),
    ],
    gpu: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            autocompletion=value_completion.gpus,
            help="Such as rtx-3060-12gb; once for each GPU.",
        ),
    ],
    weights: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=value_completion.planned_weights,
            help="Form of the matrices: int4, int8, that of a GGUF file such as q4_k_m, or auto, "
            "which is that of the files.",
        ),
    ] = "auto",
    kv_dtype: Annotated[
        str,
        typer.Option(
            autocompletion=value_completion.kv_dtypes,
            help=f"How keys and values are kept: {', '.join(KV_DTYPE_NAMES)}.",
        ),
    ] = "auto",
    network: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=value_completion.networks,
            help="Joins the boxes, such as 1gbe, 10gbe, loopback.",
        ),
    ] = "1gbe",
    efficiency: Annotated[
        float, typer.Option(help="Share (0, 1] of their published figures that the GPUs reach.")
    ] = 1.0,
    overhead_ms: Annotated[
        float | None,
        typer.Option(help="What the software adds to a step. Default: 1 ms for each stage."),
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Length of a sequence whose KV must fit every stage.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens that each sequence holds while its speed is predicted."),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="N,N,...", help="Batch sizes to predict.")
    ] = "1,2,4,8,16,32,64",
    what_if: Annotated[
        bool, typer.Option("--what-if", help="Also on GPUs of other bandwidth and arithmetic.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Shows layer split, memory, KV and predicted speed; exit code 1 when it does not fit."""
    with reported_failures(plan):
        from coordinator.cli.plan_output import print_json, print_tables
        from coordinator.planner.report import make_report
        from stagecoach.model_files import open_model
        from stagecoach.roofline.devices import gpu_named
        from stagecoach.roofline.networks import network_named

        gpus = [gpu_named(name) for name in gpu]
        joined_by = network_named(network)
        batch_sizes = read_batch_sizes(batch)
        files = open_model(model)
        limit = files.config.max_model_len
        report = make_report(
            files.model_id,
            files.config,
            gpus,
            weights=files.encoding if weights == "auto" else _few_bits(weights),
            kept=files.kept_matrices if weights == "auto" else None,
            kv_format=_kv_format(kv_dtype),
            network=joined_by,
            efficiency=_share("efficiency", efficiency),
            overhead_s=None if overhead_ms is None else _duration_s("overhead_ms", overhead_ms),
            max_model_len=_length("max_model_len", max_model_len, limit),
            context_tokens=_length("context", context, limit)
            or min(_DEFAULT_CONTEXT_TOKENS, max_model_len or limit),
            batch_sizes=batch_sizes,
            with_what_if=what_if,
        )
        if json_output:
            print_json(report)
        else:
            print_tables(report)


def _few_bits(name: str) -> Encoding:
    from stagecoach.roofline.few_bits import PLANNED

    encoding = PLANNED.get(name.lower())
    if encoding is None:
        raise InvalidArgumentError(
            f"weights {name!r} is not one of auto, {', '.join(PLANNED)}", field="weights"
        )
    return encoding


def _kv_format(name: str) -> KvFormat | None:
    if name not in KV_DTYPE_NAMES:
        raise InvalidArgumentError(
            f"kv_dtype {name!r} is not one of {', '.join(KV_DTYPE_NAMES)}", field="kv_dtype"
        )
    return None if name == "auto" else KvFormat(name)


def _share(field: str, value: float) -> float:
    if not 0 < value <= 1:  # also refuses NaN
        raise InvalidArgumentError(
            f"{field} is {value}, must be above 0 and at most 1", field=field
        )
    return value


def _duration_s(field: str, value_ms: float) -> float:
    if not 0 <= value_ms <= 1e6:
        raise InvalidArgumentError(f"{field} is {value_ms}, must be in [0, 1000000]", field=field)
    return value_ms / 1e3


def _length(field: str, value: int | None, limit: int) -> int | None:
    if value is not None and not 1 <= value <= limit:
        raise InvalidArgumentError(
            f"{field} is {value}, must be in [1, {limit}], what the model was made for",
            field=field,
        )
    return value
