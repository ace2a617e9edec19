"""The processes that compile and follow grammars: shared, crashed, endless, bounded and closed."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from itertools import combinations

import psutil
import pytest

from coordinator.constraint import compile_turns, grammar_compiler, output_group, template_cache
from coordinator.constraint.grammar_compiler import GrammarCompiler
from coordinator.constraint.output_group import OutputGroup
from coordinator.constraint.token_constraint import TokenConstraint
from coordinator.core.grammar import Grammar, GrammarKind
from stagecoach.contract.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    QueueFullError,
    UnavailableError,
)
from tests.child_processes import children
from tests.grammars import (
    EOS,
    ONE,
    A,
    B,
    Make,
    append,
    grammars_closed,
    make_of_bytes,
    regex,
    schema,
)
from tests.text_models import BYTE_TOKENS

ENDLESS = {"anyOf": [{"type": "integer", "multipleOf": n} for n in (300007, 300017)]}
"""97 bytes that the engine never comes to an end with."""


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    async with grammars_closed() as create:
        yield create


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a process tells no event
            await asyncio.sleep(0.02)


async def test_a_grammar_is_compiled_once_for_all_who_send_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_cache, "MAX_TEMPLATES", 2)
    grammars = make()
    await grammars.compiler.start()
    (root,) = children()
    await asyncio.gather(*(grammars.compile(regex("a|b")) for _ in range(8)))
    for text in ("a", "b", "1", "a|b"):
        await grammars.compile(regex(text))
    # One for the outputs of each, and the two templates used last.
    await until(lambda: len(root.children(recursive=True)) == 5 + 2)


async def test_an_output_that_grows_too_complex_breaks_no_other_of_its_grammar(
    make: Make,
) -> None:
    """Copies of a matcher share one automaton; the first to exceed its limit broke all."""
    grammars = make()
    grammar = regex("(a|b1{1000000})*")
    steady = await grammars.compile(grammar)
    broken = await grammars.compile(grammar)
    assert steady.process_id == broken.process_id
    for token_id in (B, ONE, ONE):
        if len(broken.allowed_ids) == 0:
            break
        await append(broken, token_id)
    assert broken.allowed_ids.tolist() == []
    assert "too many" in str(broken.error)
    assert not broken.is_complete
    for _ in range(40):
        assert A in steady.allowed_ids
        await append(steady, A)


CRASHING = {
    "an integer bound of 64 bits": schema(
        {"type": "integer", "minimum": -(2**63), "maximum": -(2**63) + 2}
    ),
    "a chain of properties": schema(
        {
            "$ref": "#/$defs/0",
            "$defs": {
                **{
                    str(i): {"properties": {"x": {"$ref": f"#/$defs/{i + 1}"}}} for i in range(1000)
                },
                "1000": {"type": "null"},
            },
        }
    ),
    "a chain of items": schema(
        {
            "$ref": "#/$defs/0",
            "$defs": {
                **{str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(1000)},
                "1000": {"type": "null"},
            },
        }
    ),
    "a chain of rules": Grammar(
        kind=GrammarKind.LARK,
        text="start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(3500)) + '\nr3500: "a"',
    ),
}


@pytest.mark.parametrize("name", CRASHING)
async def test_a_grammar_that_the_engine_crashes_on_costs_its_request_alone(
    make: Make, name: str
) -> None:
    grammars = make_of_bytes(make)
    steady = await grammars.compile(regex("[ab]+"))
    before = steady.allowed_ids.tolist()
    (result,) = await asyncio.gather(grammars.compile(CRASHING[name]), return_exceptions=True)
    if not isinstance(result, TokenConstraint):
        # On a busy machine its time may be over before it crashes.
        assert isinstance(result, InvalidArgumentError | DeadlineExceededError)
        assert result.details["field"] == CRASHING[name].field
    await append(steady, BYTE_TOKENS.index("a"))
    assert steady.allowed_ids.tolist() == [*before, len(BYTE_TOKENS)]
    assert (await grammars.compile(schema({"type": "null"}))).allowed_ids.tolist()


async def test_endless_grammars_hold_up_no_usual_one_and_end_with_their_time(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_compiler, "COMPILE_TIMEOUT_S", 6.0)
    monkeypatch.setattr(compile_turns, "MAX_PAUSED", 2)
    grammars = make_of_bytes(make)
    await grammars.compiler.start()
    endless = [
        asyncio.create_task(grammars.compile(schema({**ENDLESS, "title": str(i)})))
        for i in range(6)
    ]
    await until(lambda: any(task.done() for task in endless))
    usual = await grammars.compile(schema({"type": "boolean"}))
    assert len(usual.allowed_ids) > 0
    errors = await asyncio.gather(*endless, return_exceptions=True)
    kinds = [type(error) for error in errors]
    assert kinds.count(QueueFullError) == 2
    assert kinds.count(DeadlineExceededError) + kinds.count(InvalidArgumentError) == 4


async def test_to_give_up_the_wait_for_a_grammar_is_to_end_its_process(make: Make) -> None:
    grammars = make_of_bytes(make)
    await grammars.compiler.start()
    (root,) = children()
    waiting = [asyncio.create_task(grammars.compile(schema(ENDLESS))) for _ in range(2)]
    await until(lambda: len(root.children()) == 1)
    waiting[0].cancel()
    await asyncio.sleep(0.1)
    assert len(root.children()) == 1
    waiting[1].cancel()
    await until(lambda: root.children() == [])


async def test_closing_ends_what_is_compiled_at_once(make: Make) -> None:
    grammars = make_of_bytes(make)
    waiting = asyncio.create_task(grammars.compile(schema(ENDLESS)))
    await until(lambda: len(children(recursive=True)) == 2)
    await grammars.compiler.close()
    with pytest.raises(UnavailableError, match="shutting down"):
        await waiting
    assert children(recursive=True) == []
    with pytest.raises(UnavailableError, match="shutting down"):
        await grammars.compile(regex("a"))
    await grammars.compiler.close()


async def test_waiting_and_following_are_bounded(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_compiler, "MAX_WAITING", 2)
    grammars = make()
    waiting = [asyncio.create_task(grammars.compile(regex(text))) for text in ("a", "b")]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError, match="at most 2"):
        await grammars.compile(regex("1"))
    constraints = await asyncio.gather(*waiting)
    assert [one.allowed_ids.tolist() for one in constraints] == [[A], [B]]
    monkeypatch.setattr(grammar_compiler, "MAX_OUTPUTS", 3)
    third = await grammars.compile(regex("1"))
    with pytest.raises(QueueFullError, match="at most 3"):
        await grammars.compile(regex("1"))
    third.close()
    assert (await grammars.compile(regex("1"))).allowed_ids.tolist() == [ONE]


def process_of(constraint: TokenConstraint) -> psutil.Process:
    assert constraint.process_id is not None
    return psutil.Process(constraint.process_id)


def crash_process_of(constraint: TokenConstraint) -> None:
    """Ends it in the way that the grammar engine does."""
    process_of(constraint).send_signal(signal.SIGSEGV)


async def test_outputs_of_one_grammar_share_processes_as_far_as_these_hold(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_group, "MAX_MEMBERS", 3)
    grammars = make()
    outputs = await asyncio.gather(*(grammars.compile(regex("a+")) for _ in range(7)))
    assert len({output.process_id for output in outputs}) == 3
    outputs[0].close()
    assert (await grammars.compile(regex("a+"))).process_id == outputs[0].process_id
    assert (await grammars.compile(regex("b+"))).process_id not in {
        output.process_id for output in outputs
    }


async def test_outputs_whose_process_crashes_go_on_in_processes_of_their_own(make: Make) -> None:
    grammars = make()
    outputs = [await grammars.compile(regex("(a1)+b")) for _ in range(3)]
    for output in outputs:
        await append(output, A)
    await append(outputs[1], ONE)
    shared_id = outputs[0].process_id
    crash_process_of(outputs[0])
    for output, token_id, allowed_ids in (
        (outputs[0], ONE, [A, B]),
        (outputs[1], A, [ONE]),
        (outputs[2], ONE, [A, B]),
    ):
        await append(output, token_id)
        assert output.allowed_ids.tolist() == allowed_ids
    later = await grammars.compile(regex("(a1)+b"))
    own_ids = {output.process_id for output in (*outputs, later)}
    assert len(own_ids) == 4
    assert shared_id not in own_ids


async def test_the_process_of_an_output_alone_that_crashes_breaks_that_output_alone(
    make: Make,
) -> None:
    grammars = make()
    outputs = [await grammars.compile(regex("a+")) for _ in range(2)]
    await append(outputs[0], A)
    crash_process_of(outputs[0])
    for output in outputs:
        await append(output, A)
    broken, steady = outputs
    crash_process_of(broken)
    await append(broken, A)
    assert broken.allowed_ids.tolist() == []
    assert not broken.is_complete
    assert isinstance(broken.error, InvalidArgumentError)
    await append(steady, A)
    assert steady.allowed_ids.tolist() == [A, EOS]


def family_of(constraint: TokenConstraint) -> dict[str, psutil.Process]:
    """The processes that an output needs, by their parts."""
    output = process_of(constraint)
    (root,) = children()
    template = output.parent()
    assert template is not None
    assert template.parent() == root
    return {"fork server": root, "template": template, "output": output}


PARTS = ("fork server", "template", "output")


@pytest.mark.parametrize(
    "victims", [parts for num in (1, 2, 3) for parts in combinations(PARTS, num)], ids=" and ".join
)
async def test_processes_that_are_killed_cost_no_output_and_no_company(
    make: Make, victims: tuple[str, ...]
) -> None:
    grammars = make()
    outputs = [await grammars.compile(regex("(a1)+b")) for _ in range(3)]
    for output in outputs:
        await append(output, A)
    family = family_of(outputs[0])
    for victim in victims:
        family[victim].kill()
    later = asyncio.create_task(grammars.compile(regex("(a1)+b")))
    await asyncio.gather(*(append(output, ONE) for output in outputs))
    assert [output.allowed_ids.tolist() for output in outputs] == [[A, B]] * 3
    outputs.append(await later)
    assert outputs[-1].allowed_ids.tolist() == [A]
    for output in (outputs[0], outputs[-1]):
        await append(output, A)
        assert output.allowed_ids.tolist() == [ONE]
    assert len({output.process_id for output in outputs[:3]}) == 1
    if "output" in victims:
        assert outputs[-1].process_id == outputs[0].process_id


async def test_an_output_alone_whose_process_is_killed_goes_on(make: Make) -> None:
    grammars = make()
    output = await grammars.compile(regex("(a1)+b"))
    for token_id, allowed_ids in ((A, [ONE]), (ONE, [A, B]), (A, [ONE])):
        process_of(output).kill()
        await append(output, token_id)
        assert output.allowed_ids.tolist() == allowed_ids


async def test_a_grammar_whose_processes_are_killed_while_it_is_compiled_is_compiled_again(
    make: Make,
) -> None:
    grammars = make_of_bytes(make)
    compiling = asyncio.create_task(grammars.compile(schema(ENDLESS)))
    await until(lambda: len(children(recursive=True)) == 2)
    root, compiler = children(recursive=True)
    compiler.kill()
    await until(lambda: len(root.children()) == 1 and root.children() != [compiler])
    killed = children(recursive=True)
    for process in killed:
        process.kill()
    await until(lambda: len(left := children(recursive=True)) == 2 and not set(left) & set(killed))
    assert not compiling.done()
    compiling.cancel()


async def test_a_vocabulary_whose_process_is_killed_is_read_again(make: Make) -> None:
    grammars = make()
    compiling = asyncio.create_task(grammars.compile(regex("a+")))
    await until(lambda: len(children()) == 1)
    for process in children():
        process.kill()
    assert (await compiling).allowed_ids.tolist() == [A]


async def test_no_signal_of_a_closed_terminal_ends_a_process(make: Make) -> None:
    grammars = make()
    output = await grammars.compile(regex("a+"))
    family = family_of(output)
    for process in family.values():
        process.send_signal(signal.SIGHUP)
    await append(output, A)
    assert family_of(output) == family


async def test_who_kills_every_process_is_to_blame_and_not_the_client(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = GrammarCompiler._begin
    begun_alone: list[bool] = []
    kills = True

    async def begin_and_kill(
        self: GrammarCompiler, grammar: Grammar, *, alone: bool
    ) -> OutputGroup:
        begun_alone.append(alone)
        group = await begin(self, grammar, alone=alone)
        if kills:
            psutil.Process(group.process_id).kill()
        return group

    monkeypatch.setattr(GrammarCompiler, "_begin", begin_and_kill)
    grammars = make()
    lost, other = [await grammars.compile(regex("a+")) for _ in range(2)]
    process_of(lost).kill()
    await append(lost, A)
    assert lost.allowed_ids.tolist() == []
    assert not lost.is_complete
    assert isinstance(lost.error, UnavailableError)
    assert begun_alone == [False, True, True, True]
    kills = False
    await append(other, A)
    assert other.allowed_ids.tolist() == [A, EOS]


async def test_tokens_that_come_while_an_output_moves_are_followed_too(make: Make) -> None:
    """As when a request is computed again from the tokens it has."""
    grammars = make()
    outputs = [await grammars.compile(regex("(a1)+b")) for _ in range(2)]
    process_of(outputs[0]).kill()
    for token_id in (A, ONE, A):
        outputs[0].append(token_id)
        await asyncio.sleep(0)
    await until(lambda: outputs[0].is_ready)
    assert outputs[0].allowed_ids.tolist() == [ONE]
    await append(outputs[1], A)
    outputs[1].append(ONE)
    outputs[1].close()


async def test_an_output_may_be_closed_while_it_moves(make: Make) -> None:
    grammars = make()
    outputs = [await grammars.compile(regex("a+")) for _ in range(2)]
    await grammars.compiler.start()
    (root,) = children()
    process_of(outputs[0]).kill()
    await append(outputs[1], A)
    outputs[0].append(A)
    await asyncio.sleep(0.005)
    for output in outputs:
        output.close()
    await until(lambda: len(root.children(recursive=True)) == 1)


async def test_numbers_are_guarded_in_each_output_by_itself(make: Make) -> None:
    grammars = make_of_bytes(make)
    number = schema({"type": "number"})
    one, other = await grammars.compile(number), await grammars.compile(number)
    digit, point = BYTE_TOKENS.index("7"), BYTE_TOKENS.index(".")
    for token_id in (digit, point, *([digit] * 14)):
        await append(one, token_id)
    assert digit not in one.allowed_ids
    await append(other, digit)
    assert digit in other.allowed_ids
    process_of(one).kill()
    await append(other, point)
    assert digit in other.allowed_ids


async def test_no_output_holds_more_than_some_ten_megabytes(make: Make) -> None:
    """The limits are llguidance's own operations; that they bound memory too is only measured."""
    grammars = make()
    for _ in range(2):
        constraint = await grammars.compile(regex("(a{1000}){1000}"))
        await append(constraint, A)
        process_id = constraint.process_id
        assert psutil.Process(process_id).memory_full_info().uss < 40e6
