"""Chat templates render as in transformers, inside a sandbox."""

import contextlib
from typing import Any

import pytest

from coordinator.core.request_spec import ChatMessage
from coordinator.text.chat_template import ChatTemplate
from stagecoach.contract.errors import InvalidArgumentError, ModelFilesError

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

MESSAGES = (
    ChatMessage(role="system", content="Be <brief> & kind."),
    ChatMessage(role="user", content="Héllo 'you' \"there\"\n 🙂 "),
    ChatMessage(role="assistant", content="Hi."),
    ChatMessage(role="user", content="Bye."),
)


@pytest.mark.parametrize(
    "source",
    [
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
        "{% for m in messages %}\n    {% if m.role == 'system' %}\n        {% continue %}\n"
        "    {% endif %}\n  {{ m | tojson }}\n{% endfor %}\n",
        "{% set ns = namespace(found=false, self=1) %}{% for m in messages %}"
        "{% set ns.found = m.content %}{% endfor %}{{ ns.found }}{{ ns.self }}",
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% set x = 1 %}{% endgeneration %}{{ x is defined }}{% endif %}{% endfor %}",
        "{{ tools is none }}{{ documents is none }}{{ undefined is defined }}"
        "{{ messages | tojson(indent=2) }}{{ dict(a=1, b='x') }}",
        "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}"
        "{{ m.content.split('&')[0].upper() }}{% endfor %}{{ eos_token }}",
        "{{- strftime_now('%Y') -}}",
    ],
)
def test_renders_as_transformers_does(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    conversation = [{"role": m.role, "content": m.content} for m in MESSAGES]
    special_tokens: dict[str, Any] = SPECIAL_TOKENS
    rendered = render_jinja_template(
        [conversation], chat_template=source, add_generation_prompt=True, **special_tokens
    )
    assert ChatTemplate(source, SPECIAL_TOKENS).render(MESSAGES) == rendered[0][0]


def test_conversation_that_the_template_refuses_is_the_callers_error() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(InvalidArgumentError, match="roles must alternate") as caught:
        template.render(MESSAGES)
    assert caught.value.field == "prompt.chat.messages"


def test_invalid_template_is_an_error_of_the_model_files() -> None:
    with pytest.raises(ModelFilesError, match="chat template is not valid: line 2: "):
        ChatTemplate("{% if x %}\n{% endfor %}", {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ range(10000000) | length }}",
    ],
)
def test_templates_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(InvalidArgumentError):
        ChatTemplate(source, {}).render(MESSAGES)


def test_functions_of_the_environment_show_nothing_of_the_interpreter() -> None:
    for name in ("raise_exception", "strftime_now", "dict", "namespace"):
        source = "{{ %s.__globals__ }}{{ %s.__init__ }}{{ %s.__subclasses__ }}" % ((name,) * 3)
        with contextlib.suppress(InvalidArgumentError):
            assert ChatTemplate(source, {}).render(MESSAGES) == ""
