"""How long thinking may be: what the operator allows, and less where a request asks for less."""

import pytest

from coordinator.core.request_spec import RequestSpec
from coordinator.text.conversations import Conversations
from stagecoach.contract.errors import UnsupportedModelError
from stagecoach.model_files import GgufTokenizer
from tests.tokenizer_files import byte_level_metadata, chat, load

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}<think></think>"


def conversations(limit: int | None, *, one_token: bool = True) -> Conversations:
    """Those of a model that ends its thinking by one token, or by several."""
    end = "</think>" if one_token else "</other>"
    alphabet = byte_level_metadata()["tokenizer.ggml.tokens"]
    assert isinstance(alphabet, list)
    metadata = byte_level_metadata(tokens=[*alphabet, end], token_type=[1] * 257 + [3, 3, 4, 4])
    metadata["tokenizer.chat_template"] = TEMPLATE
    return Conversations(load(GgufTokenizer(metadata=metadata)), limit)


@pytest.mark.parametrize(
    ("of_operator", "of_request", "limit"),
    [(None, None, None), (100, None, 100), (None, 7, 7), (100, 7, 7), (100, 700, 100)],
)
async def test_the_lesser_limit_holds(
    of_operator: int | None, of_request: int | None, limit: int | None
) -> None:
    spec = RequestSpec(prompt=chat("a"), divides_output=True, max_thinking_tokens=of_request)
    conversation = await conversations(of_operator).plan(spec, [0])
    assert conversation is not None
    grammar = conversation.plan.grammar
    if limit is None:
        assert grammar is None
    else:
        assert grammar is not None
        assert f"[max_tokens={limit}]" in grammar.text


async def test_only_an_operator_is_refused_what_a_model_cannot_keep_to() -> None:
    spec = RequestSpec(prompt=chat("a"), divides_output=True, max_thinking_tokens=7)
    conversation = await conversations(None, one_token=False).plan(spec, [0])
    assert conversation is not None
    assert conversation.plan.grammar is None
    with pytest.raises(UnsupportedModelError):
        conversations(7, one_token=False)
