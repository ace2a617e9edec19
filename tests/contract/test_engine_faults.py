"""What the engine does when a forward, a sampler or the engine itself fails, over real stages."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coordinator.assembly import open_engine
from coordinator.config import ClusterConfig, parse_stages
from coordinator.core.request_spec import TokenPrompt
from coordinator.core.sampling_params import SamplingParams
from coordinator.core.step import LogitsRow
from coordinator.engine.engine import Engine
from coordinator.sampling.token_sampler import TokenSampler
from coordinator.scheduler import Scheduler
from stage_server.compute.torch_engine import TorchEngine
from stage_server.core.batch import ForwardBatch, ForwardOutput
from stage_server.core.engine import finished
from stagecoach.contract.errors import InternalError, StaleStateError, UnavailableError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model
from tests.clusters import assert_nothing_held, generate, running_engine, running_stage, status_when
from tests.contract.engine_requests import PROMPT, create_spec, failure
from tests.layer_ranges import split_evenly
from tests.tiny_models import tiny_model

THREE_STAGES = split_evenly(6, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
async def engine(model: Path) -> AsyncIterator[Engine]:
    async with running_engine(model, THREE_STAGES) as engine:
        yield engine


class Saboteur:
    """Breaks chosen forwards of real engines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.actions: list[Exception | None] = []
        self.poison_token: int | None = None
        real_launch = TorchEngine.launch

        def launch(engine: TorchEngine, batch: ForwardBatch) -> ForwardOutput:
            if batch.slices and engine.info.is_last and self.actions:
                action = self.actions.pop(0)
                if action is not None:
                    raise action
            output = finished(real_launch(engine, batch))
            if self.poison_token is not None and batch.token_ids is not None:
                assert output.hidden_states is not None
                with torch.inference_mode():
                    output.hidden_states[batch.token_ids == self.poison_token] = torch.nan
            return output

        monkeypatch.setattr(TorchEngine, "launch", launch)


async def test_an_exception_in_a_forward_fails_only_its_micro_batch(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await generate(engine, PROMPT, 6)
    saboteur = Saboteur(monkeypatch)
    saboteur.actions = [None, RuntimeError("secret detail")]
    error = await failure(engine, create_spec())
    assert isinstance(error, InternalError)
    assert "req-" in error.message
    assert "secret" not in error.message
    assert await generate(engine, PROMPT, 6) == expected


async def test_a_failed_micro_batch_hits_only_its_own_of_several_in_flight(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [(5, 6, 7), (9, 8, 7, 6), (20, 21)]
    async with running_engine(model, THREE_STAGES, coordinator={"num_micro_batches": 3}) as engine:
        expected = [await generate(engine, prompt, 30) for prompt in prompts]
        saboteur = Saboteur(monkeypatch)
        running = [asyncio.create_task(generate(engine, prompt, 30)) for prompt in prompts]
        await status_when(engine, lambda status: status.num_running == 3)
        saboteur.actions = [None, RuntimeError("a forward fails")]
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, InternalError)]
        assert len(failed) == 1
        assert [o for o in outcomes if o not in failed] == [
            tokens for tokens, o in zip(expected, outcomes, strict=True) if o not in failed
        ]
        await assert_nothing_held(engine)


async def test_nan_logits_fail_one_request_and_not_its_neighbours(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await generate(engine, PROMPT, 20)
    poison = next(i for i in range(128) if i not in (*PROMPT, *expected))
    Saboteur(monkeypatch).poison_token = poison
    sound = asyncio.create_task(generate(engine, PROMPT, 20))
    poisoned = create_spec(prompt=TokenPrompt(token_ids=(4, poison, 3)))
    errors = [await failure(engine, poisoned) for _ in range(3)]
    assert all("NaN" in error.message for error in errors)
    assert await sound == expected


async def test_a_bug_in_sampling_ends_its_request_and_not_its_neighbours(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A division that overflowed once stopped the engine, and with it every request."""
    expected = await generate(engine, PROMPT, 20)
    choose = TokenSampler.sample

    def fail_for_seed_7(self: TokenSampler, row: LogitsRow) -> int:
        if self._params.seed == 7:
            raise RuntimeError("a bug")
        return choose(self, row)

    monkeypatch.setattr(TokenSampler, "sample", fail_for_seed_7)
    sound = asyncio.create_task(generate(engine, PROMPT, 20))
    error = await failure(engine, create_spec(sampling=SamplingParams(temperature=1.0, seed=7)))
    assert isinstance(error, InternalError)
    assert "failed in sampling" in error.message
    assert "a bug" not in error.message
    assert await sound == expected


async def test_a_lost_position_is_replayed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:

    expected = await generate(engine, PROMPT, 10)
    saboteur = Saboteur(monkeypatch)
    saboteur.actions = [None, None, StaleStateError("gap"), None, StaleStateError("gap")]
    assert await generate(engine, PROMPT, 10) == expected


async def test_replays_are_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:

    saboteur = Saboteur(monkeypatch)
    saboteur.actions = [StaleStateError("gap") for _ in range(3)]
    error = await failure(engine, create_spec())
    assert isinstance(error, InternalError)
    assert "given up after 2 replays" in error.message
    assert not saboteur.actions
    assert len(await generate(engine, PROMPT, 5)) == 5


async def test_a_bug_ends_every_request_whatever_it_broke(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    async with running_stage(model, LayerRange(0, 6)) as address:
        config = ClusterConfig(model=str(model), stages=parse_stages([address]))
        engine = await open_engine(config, open_model(config.model))
        monkeypatch.setattr(Scheduler, "update", fail)
        monkeypatch.setattr(Scheduler, "finish", fail)
        errors = await asyncio.gather(*(failure(engine, create_spec()) for _ in range(3)))
        assert [type(error) for error in errors] == [InternalError] * 3
        assert all("the engine stopped" in error.message for error in errors)
        with pytest.raises(RuntimeError, match="a bug"):
            await engine.wait_stopped()
        with pytest.raises(UnavailableError, match="the engine stopped"):
            await engine.submit(create_spec())
        await engine.close(grace_s=5.0)


async def test_a_stage_that_leaves_logits_out_fails_the_request_and_not_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_launch = TorchEngine.launch

    def launch(stage: TorchEngine, batch: ForwardBatch) -> ForwardOutput:
        return ForwardOutput(hidden_states=finished(real_launch(stage, batch)).hidden_states)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "launch", launch)
        assert isinstance(await failure(engine, create_spec()), InternalError)
    assert len(await generate(engine, PROMPT, 5)) == 5


async def test_malformed_logits_fail_their_micro_batch_and_not_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await generate(engine, PROMPT, 20)
    real_launch = TorchEngine.launch

    def launch(stage: TorchEngine, batch: ForwardBatch) -> ForwardOutput:
        output = finished(real_launch(stage, batch))
        rows = tuple(replace(row, candidate_ids=[1000]) for row in output.logits)
        return replace(output, logits=rows)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "launch", launch)
        error = await failure(engine, create_spec())
    assert isinstance(error, InternalError)
    assert "failed on a stage" in error.message
    assert await generate(engine, PROMPT, 20) == expected
