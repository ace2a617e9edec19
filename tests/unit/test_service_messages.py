"""Long messages over gRPC cost little, and mean what short ones mean."""

from array import array

import pytest

from coordinator.core.request_spec import MAX_CHAT_MESSAGES, TokenPrompt
from coordinator.doors.grpc import messages
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import generation_pb2


@pytest.mark.parametrize("num_ids", [1, 4096, 4097])
def test_a_long_list_of_ids_holds_the_ids_that_came(num_ids: int) -> None:
    ids = [i % 7 for i in range(num_ids - 1)] + [2**32 - 1]
    request = generation_pb2.GenerateRequest()
    request.prompt.token_ids.ids.extend(ids)
    prompt = messages.request_spec(request).prompt
    assert isinstance(prompt, TokenPrompt)
    assert list(prompt.token_ids) == ids
    assert isinstance(prompt.token_ids, array) == (num_ids > 4096)


def test_too_many_messages_are_counted_and_not_read() -> None:
    request = generation_pb2.GenerateRequest()
    wrong = generation_pb2.ChatMessage(role="nobody")
    request.prompt.chat.messages.extend([wrong] * (MAX_CHAT_MESSAGES + 1))
    with pytest.raises(InvalidArgumentError, match="4097 messages, at most 4096") as caught:
        messages.request_spec(request)
    assert caught.value.field == "prompt.chat.messages"


def test_too_many_biases_are_counted_and_not_read() -> None:
    request = generation_pb2.GenerateRequest()
    request.prompt.token_ids.ids.append(1)
    request.sampling.logit_bias.update(dict.fromkeys(range(1025), 1000.0))
    with pytest.raises(InvalidArgumentError, match="1025 entries, at most 1024") as caught:
        messages.request_spec(request)
    assert caught.value.field == "sampling.logit_bias"
