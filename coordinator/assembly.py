"""Puts a coordinator together: opens the model, connects the stages, starts the engine."""

import asyncio
import uuid
from collections.abc import Sequence
from functools import partial

from coordinator.config import ClusterConfig
from coordinator.constraint.grammar_compiler import GrammarCompiler
from coordinator.core.drafter import MakeDrafter
from coordinator.engine.admission import Admission
from coordinator.engine.engine import Engine
from coordinator.observe.observer import EngineObserver
from coordinator.observe.request_log import RequestLog
from coordinator.pipeline.link_config import LinkConfig
from coordinator.pipeline.stage_pool import OnStage, StagePool, ignore_stage
from coordinator.pipeline.topology import Topology
from coordinator.pipeline.weights import differing_parts, shown
from coordinator.scheduler.config import SchedulerConfig
from coordinator.scheduler.policy import Policy
from coordinator.speculation.emulated import EmulatedDrafter
from coordinator.speculation.lookup import LookupDrafter
from coordinator.text.text_workers import TextWorkers
from coordinator.text.tokenizer import Tokenizer
from coordinator.text.tokenizer_files import load_tokenizer
from coordinator.text.tokenizer_info import tokenizer_info
from stagecoach.contract.errors import IncompatibleError, InvalidArgumentError
from stagecoach.contract.limits import LOGIT_BYTES, max_logits_bytes
from stagecoach.model_files import ModelFiles


async def open_engine(
    config: ClusterConfig,
    files: ModelFiles,
    on_stage: OnStage = ignore_stage,
    observers: Sequence[EngineObserver] = (),
    policy: Policy | None = None,
    make_drafter: MakeDrafter | None = None,
) -> Engine:
    """Connects to the stages and starts serving; `engine.close` undoes it.

    Args:
        config: The model, its stages and how it is served.
        files: The model that `config.model` names.
        on_stage: Told how each stage answers while they are waited for.
        observers: Told what the engine does, besides the log.
        policy: The order of the requests; None for first come, first served.
        make_drafter: Makes what guesses tokens of a request; None for what `config` says.

    Raises:
        UnavailableError: A stage was not serving in time.
        IncompatibleError: The stages do not make one model, or another one than `config.model`.
        ModelFilesError: The tokenizer's files are damaged.
        InvalidArgumentError: A draft is to be emulated for stages that are real.
    """
    tokenizer = await asyncio.to_thread(load_tokenizer, files)
    pool = StagePool(
        [list(map(str, stage)) for stage in config.stages],
        coordinator_id=f"coordinator-{uuid.uuid4().hex[:12]}",
        config=LinkConfig(),
        tls=config.stage_tls,
    )
    try:
        topology = await pool.connect(config.connect_timeout_s, on_stage)
        _check_model(files, topology)
        await asyncio.to_thread(_check_weights, files, topology)
        make_drafter = make_drafter or _drafters(config, topology)
    except BaseException:
        await pool.close()
        raise
    text = None
    if tokenizer is not None:
        text = TextWorkers(tokenizer, await asyncio.to_thread(tokenizer.to_state))
    limits = _limits(config, topology)
    eos_token_ids = _eos_token_ids(files, tokenizer)
    engine = Engine(
        pool=pool,
        topology=topology,
        names=config.served_model_names or (topology.model_id,),
        limits=limits,
        num_micro_batches=config.num_micro_batches,
        admission=Admission(
            text=text,
            vocab_size=topology.vocab_size,
            eos_token_ids=eos_token_ids,
            max_request_tokens=limits.max_request_tokens,
            answers_prompt_logits=topology.answers_prompt_logits,
            answers_hidden_sums=topology.answers_hidden_sums,
            hidden_size=topology.hidden_size,
        ),
        grammars=GrammarCompiler(
            tokenizer, vocab_size=topology.vocab_size, eos_token_ids=eos_token_ids
        ),
        tokenizer=tokenizer,
        tokenizer_info=tokenizer_info(await asyncio.to_thread(files.tokenizer_files)),
        text=text,
        max_num_waiting=config.max_num_waiting,
        stage_wait_s=config.stage_wait_s,
        observers=(RequestLog(), *observers),
        policy=policy,
        max_thinking_tokens=config.max_thinking_tokens,
        make_drafter=make_drafter,
    )
    engine.start()
    return engine


def _drafters(config: ClusterConfig, topology: Topology) -> MakeDrafter | None:
    """What guesses tokens of requests, as the configuration says it; None: nothing does.

    Raises:
        InvalidArgumentError: A draft is to be emulated for stages that are real.
    """
    if config.draft_acceptance is None:
        return LookupDrafter if config.prompt_lookup else None
    if not all(info.emulated for info in topology.infos):
        raise InvalidArgumentError(
            "draft_acceptance is for emulated stages, and these are real", field="draft_acceptance"
        )
    return partial(
        EmulatedDrafter,
        acceptance=config.draft_acceptance,
        vocab_size=topology.vocab_size,
    )


def _check_model(files: ModelFiles, topology: Topology) -> None:
    """Refuses stages that serve another model than the one whose tokenizer is used."""
    if files.fingerprint != topology.fingerprint:
        raise IncompatibleError(
            f"the stages serve {topology.model_id} (fingerprint {topology.fingerprint[:12]}), the"
            f" coordinator was given {files.model_id} (fingerprint {files.fingerprint[:12]})",
            found=topology.fingerprint,
            expected=files.fingerprint,
        )


def _check_weights(files: ModelFiles, topology: Topology) -> None:
    """Refuses stages that hold other weights than those beside the tokenizer that is used, if any.

    Reads a few bytes of each tensor.
    """
    held = topology.infos[0].weight_digests
    parts = differing_parts(files.weight_digests(), held) if held else []
    if parts:
        raise IncompatibleError(
            f"the stages serve {topology.model_id}, whose weights differ in {shown(parts)} from "
            f"those of {files.model_id}, which the coordinator was given"
        )


def _eos_token_ids(files: ModelFiles, tokenizer: Tokenizer | None) -> frozenset[int]:
    """Whatever the model's configuration or its tokenizer calls an end."""
    ids = frozenset(files.config.eos_token_ids)
    return ids if tokenizer is None else ids | tokenizer.eos_token_ids


def _limits(config: ClusterConfig, topology: Topology) -> SchedulerConfig:
    """The operator's limits, none above what every stage can do.

    Every sampled row of a micro-batch may be wanted whole, so there are no more of them, and no
    more sequences run at once, than rows that a stage may answer with.
    """
    logits_bytes = max_logits_bytes(
        max_num_seqs=topology.max_num_seqs, vocab_size=topology.vocab_size
    )
    num_full_rows = logits_bytes // (LOGIT_BYTES * topology.vocab_size)
    return SchedulerConfig(
        max_num_batched_tokens=_lower(
            config.max_num_batched_tokens, topology.max_num_batched_tokens
        ),
        max_num_seqs=_lower(config.max_num_seqs, num_full_rows),
        max_model_len=_lower(config.max_model_len, topology.max_model_len),
        kv_block_size=topology.kv_block_size,
        num_kv_blocks=topology.num_kv_blocks,
        num_kv_slots=topology.max_num_seqs,
        max_num_sampled_rows=num_full_rows,
        prefix_cache=config.prefix_cache,
    )


def _lower(wanted: int | None, limit: int) -> int:
    return limit if wanted is None else min(wanted, limit)
