"""Tokens that files beside `tokenizer.json` declare: transformers, on the same folder, is the twin.

Each case is a folder as people publish them, or an odd one. Ids of a text, ids of a conversation,
special tokens and the end token are compared.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from coordinator.core.request_spec import ChatMessage, ChatPrompt
from coordinator.text.tokenizer import Tokenizer
from coordinator.text.tokenizer_files import load_tokenizer
from coordinator.text.tokenizer_info import tokenizer_info
from stagecoach.contract.errors import StagecoachError
from stagecoach.model_files import open_model
from tests.llama2 import llama2_folder
from tests.model_configs import smallest_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
CONFIG = smallest_config(vocab_size=320)
TEXTS = (
    "hello <|im_end|> wörld  <tool> <extra>",
    "<tool><tool>  x <|im_start|>",
    "a !b<s> </s> <new>",
)
TURNS = [("user", "hello"), ("assistant", "x y"), ("user", "bye <|im_end|>")]
"""What the last turn holds must stay text, which transformers does not see to."""


def write_tokenizer(path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    backend.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps(CONFIG))


def properties(content: str, **switches: bool) -> dict[str, object]:
    """A token as old transformers wrote it."""
    off = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, **off, **switches}


def by_id(**tokens: dict[str, object]) -> dict[str, object]:
    return {"added_tokens_decoder": {name.removeprefix("id"): t for name, t in tokens.items()}}


NAMES: dict[str, Any] = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}
TYPED = {"__type": "AddedToken"}
CONFIG_FILE, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
LLAMA_NAMES: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}

FOLDERS: dict[str, dict[str, dict[str, Any]]] = {
    "names in the configuration": {CONFIG_FILE: NAMES},
    "names in the map alone": {CONFIG_FILE: {"chat_template": LLAMA}, MAP: LLAMA_NAMES},
    "names with properties in the map": {
        CONFIG_FILE: {"chat_template": LLAMA},
        MAP: {name: properties(text) for name, text in LLAMA_NAMES.items()},
    },
    "a map and a configuration that differ": {
        CONFIG_FILE: {**NAMES, "chat_template": LLAMA},
        MAP: LLAMA_NAMES,
    },
    "a map that says null": {
        CONFIG_FILE: {**NAMES, "chat_template": LLAMA},
        MAP: {"eos_token": None},
    },
    "a map beside properties by id": {
        CONFIG_FILE: {
            **NAMES,
            **by_id(id258=properties("</s>", special=True)),
            "chat_template": LLAMA,
        },
        MAP: LLAMA_NAMES,
    },
    "a map of further tokens": {
        CONFIG_FILE: NAMES,
        MAP: {"additional_special_tokens": ["<tool>", "<|im_start|>"]},
    },
    "a map of further tokens in the new spelling": {
        CONFIG_FILE: {**NAMES, "extra_special_tokens": ["<extra>"]},
        MAP: {"extra_special_tokens": ["<tool>"]},
    },
    "a map of tokens with names of their own": {
        CONFIG_FILE: {**NAMES, "chat_template": "{{ tool_token }}{{ x_token }}" + CHATML},
        MAP: {"tool_token": "<tool>", "extra_special_tokens": {"x_token": "<extra>"}},
    },
    "names of their own twice": {
        CONFIG_FILE: {**NAMES, "tool_token": "<tool>", "chat_template": "{{ tool_token }}" + LLAMA},
        MAP: {"tool_token": "<extra>"},
    },
    "a further token by id": {
        CONFIG_FILE: {**NAMES, **by_id(id261=properties("<tool>", special=True))}
    },
    "a further token by id that is text": {
        CONFIG_FILE: {**NAMES, **by_id(id261=properties("<tool>", special=False))}
    },
    "further tokens by ids out of order": {
        CONFIG_FILE: {
            **NAMES,
            **by_id(id262=properties("<extra>"), id261=properties("<tool>", normalized=True)),
        }
    },
    "other properties by id": {
        CONFIG_FILE: {
            **NAMES,
            **by_id(id260=properties("<|im_end|>", rstrip=True, special=True)),
        }
    },
    "a text by id that has a name": {
        CONFIG_FILE: {**NAMES, **by_id(id260=properties("<|im_end|>", special=False))}
    },
    "nothing by id": {CONFIG_FILE: {**NAMES, "added_tokens_decoder": {}}, MAP: LLAMA_NAMES},
    "added tokens": {CONFIG_FILE: NAMES, ADDED: {"<tool>": 261}},
    "added tokens, some special": {
        CONFIG_FILE: {**NAMES, "additional_special_tokens": ["<extra>"]},
        ADDED: {"<extra>": 262, "<tool>": 261},
    },
    "added tokens with a name of their own": {
        CONFIG_FILE: {**NAMES, "tool_token": "<tool>"},
        ADDED: {"<tool>": 261},
    },
    "added tokens that are known": {CONFIG_FILE: NAMES, ADDED: {"</s>": 258, "<|im_end|>": 260}},
    "added tokens beside properties by id": {
        CONFIG_FILE: {**NAMES, **by_id(id260=properties("<|im_end|>", special=True))},
        ADDED: {"<tool>": 261},
    },
    "an end token that is new": {CONFIG_FILE: {**NAMES, "eos_token": "<new>"}},
    "an end token of the vocabulary": {CONFIG_FILE: {**NAMES, "eos_token": "!"}},
    "a new filler": {CONFIG_FILE: {**NAMES, "pad_token": "<new>", "unk_token": "<tool>"}},
    "further tokens": {CONFIG_FILE: {**NAMES, "additional_special_tokens": ["<tool>", "</s>"]}},
    "further tokens that are null": {CONFIG_FILE: {**NAMES, "additional_special_tokens": None}},
    "further tokens with types": {
        CONFIG_FILE: {
            **NAMES,
            "additional_special_tokens": [{**TYPED, **properties("<tool>", rstrip=True)}],
        }
    },
    "further tokens in both spellings": {
        CONFIG_FILE: {
            **NAMES,
            "additional_special_tokens": ["<tool>"],
            "extra_special_tokens": ["<extra>"],
        }
    },
    "further tokens with names": {
        CONFIG_FILE: {
            **NAMES,
            "extra_special_tokens": {"image_token": "<tool>"},
            "chat_template": "{{ image_token }}" + CHATML,
        }
    },
    "a name of its own": {
        CONFIG_FILE: {**NAMES, "foo_token": "<s>", "chat_template": "{{ foo_token }}" + CHATML}
    },
    "names with types": {
        CONFIG_FILE: {
            **NAMES,
            "bos_token": {**TYPED, **properties("<s>")},
            "eos_token": {**TYPED, **properties("<new>", lstrip=True, normalized=True)},
            "chat_template": LLAMA,
        }
    },
    "names that are null": {
        CONFIG_FILE: {
            **NAMES,
            "bos_token": None,
            "chat_template": "{% if bos_token is defined %}D{% endif %}" + CHATML,
        }
    },
    "switches that are called tokens": {
        CONFIG_FILE: {**NAMES, "add_bos_token": True, "add_eos_token": False}
    },
}


def folder_with(path: Path, files: dict[str, dict[str, Any]]) -> Path:
    """A folder with a tokenizer; its template is ChatML unless it has one."""
    write_tokenizer(path)
    for name, content in files.items():
        if name == CONFIG_FILE:
            content = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "chat_template": CHATML,
                **content,
            }
        (path / name).write_text(json.dumps(content))
    return path


def load(path: Path) -> Tokenizer:
    tokenizer = load_tokenizer(open_model(str(path)))
    assert tokenizer is not None
    return tokenizer


def of_transformers(path: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def assert_same(path: Path, texts: tuple[str, ...] = TEXTS) -> None:
    """Compares with transformers what a folder makes of texts and of a conversation."""
    theirs: Any = of_transformers(path)
    loaded = load(path)
    for ours in (loaded, Tokenizer.from_state(loaded.to_state())):
        for text in texts:
            assert ours.encode(text) == theirs(text)["input_ids"], text
        turns = TURNS[:2]
        expected = theirs.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns],
            add_generation_prompt=True,
            return_dict=False,
        )
        messages = tuple(ChatMessage(role=role, content=content) for role, content in turns)
        assert ours.encode_chat(ChatPrompt(messages=messages)) == expected
        special = set(theirs.all_special_ids)
        assert {i for i in special if ours.detokenize([i])} == {
            i for i in special if theirs.decode([i], skip_special_tokens=True)
        }
        assert theirs.eos_token_id is None or theirs.eos_token_id in ours.eos_token_ids
    told = tokenizer_info(open_model(str(path)).tokenizer_files())
    assert told is not None
    assert {name: told[name] for name in theirs.special_tokens_map} == theirs.special_tokens_map


@pytest.mark.parametrize("case", FOLDERS)
def test_declared_tokens_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    assert_same(folder_with(tmp_path, FOLDERS[case]))


def test_a_map_counts_without_a_configuration(tmp_path: Path) -> None:
    folder_with(tmp_path, {MAP: LLAMA_NAMES})
    (tmp_path / "chat_template.jinja").write_text(LLAMA)
    assert_same(tmp_path)


@pytest.mark.parametrize("added", [{}, {"[PAD]": 32000}])
def test_llama_2_with_the_files_of_its_fine_tunes_is_that_of_transformers(
    added: dict[str, object], tmp_path: Path
) -> None:
    shutil.copytree(llama2_folder(), tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    names = ("bos_token", "eos_token", "unk_token")
    texts = {name: config.pop(name) for name in names}
    del config["added_tokens_decoder"]
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": LLAMA}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    (tmp_path / MAP).write_text(json.dumps({n: properties(t) for n, t in texts.items()}))
    if added:
        (tmp_path / ADDED).write_text(json.dumps(added))
    assert_same(tmp_path, ("Hello [PAD] world</s>", "a  [PAD]x<unk>"))


def test_what_transformers_saves_is_read_again(tmp_path: Path) -> None:
    case = "further tokens with names"
    folder_with(tmp_path, FOLDERS[case])
    of_transformers(tmp_path).save_pretrained(tmp_path)
    assert_same(tmp_path)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({CONFIG_FILE: {"eos_token": 5}}, "tokenizer_config.json: eos_token is 5, must be a token"),
        ({CONFIG_FILE: {"eos_token": {"content": None}}}, "eos_token is "),
        ({MAP: {"bos_token": ["<s>"]}}, 'special_tokens_map.json: bos_token is ["<s>"], must be'),
        ({MAP: {"eos_token": "\ud800"}}, "special_tokens_map.json: eos_token has a lone surrogate"),
        (
            {CONFIG_FILE: {"eos_token": {"content": "</s>", "lstrip": "yes"}}},
            'eos_token.lstrip is "yes", must be true or false',
        ),
        ({CONFIG_FILE: {"extra_special_tokens": "<tool>"}}, "extra_special_tokens is "),
        ({CONFIG_FILE: {"extra_special_tokens": ["<x>", 7]}}, "extra_special_tokens[1] is 7"),
        ({CONFIG_FILE: {"extra_special_tokens": {"a": 7}}}, "tokenizer_config.json: a is 7"),
        ({CONFIG_FILE: {"added_tokens_decoder": []}}, "added_tokens_decoder is []"),
        ({CONFIG_FILE: {"added_tokens_decoder": {"1": "x"}}}, 'added_tokens_decoder.1 is "x"'),
        ({CONFIG_FILE: {"added_tokens_decoder": {"-1": {}}}}, "added_tokens_decoder.-1 is {}"),
        ({ADDED: {"<tool>": "x"}}, 'added_tokens.json: "<tool>" is "x", must be an id'),
        (
            {ADDED: {"<tool>": 300}},
            'added_tokens.json says that "<tool>" has id 300, which tokenizer.json does not know: '
            "its next id is 261",
        ),
        (
            {CONFIG_FILE: by_id(id261=properties("<tool>"), id300=properties("<extra>"))},
            'tokenizer_config.json says that "<extra>" has id 300',
        ),
        ({ADDED: {"<tool>": 260}}, '"<tool>" has id 260, which tokenizer.json does not know'),
        ({CONFIG_FILE: {"split_special_tokens": True}}, "split_special_tokens true is not served"),
    ],
)
def test_what_declares_no_token_is_refused_by_place(
    files: dict[str, dict[str, Any]], told: str, tmp_path: Path
) -> None:
    with pytest.raises(StagecoachError) as refused:
        load(folder_with(tmp_path, files))
    assert told in refused.value.message
    assert "\n" not in refused.value.message
