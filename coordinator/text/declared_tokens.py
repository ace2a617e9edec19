"""The tokens that files beside `tokenizer.json` declare, read as transformers reads them.

`tokenizer_config.json` gives tokens names that templates use, such as `eos_token`, and properties
by id (`added_tokens_decoder`). Where it has no properties, older files say more:
`special_tokens_map.json` gives names, which win, and `added_tokens.json` ids. What of this the
tokenizer lacks is added to it, in the order in which transformers does: `_from_pretrained` in
`tokenization_utils_base.py`, and `TokenizersBackend`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files import HfTokenizerFiles
from stagecoach.model_files.frozen_json import shown

_STANDARD = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_BY_ID = "added_tokens_decoder"
_EXTRA = "extra_special_tokens"
_OLD_EXTRA = "additional_special_tokens"
_SWITCHES = ("single_word", "lstrip", "rstrip", "normalized", "special")

_CONFIG, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


class DeclaredTokens(NamedTuple):
    """What the files beside a `tokenizer.json` say of tokens."""

    named: Mapping[str, AddedToken]
    """Tokens by the name that templates use."""
    extra: Sequence[AddedToken]
    """Special ones without a name."""
    by_id: Mapping[int, AddedToken]
    """Tokens by the ids that they shall have."""
    by_id_file: str
    """What says so."""

    @property
    def contents(self) -> dict[str, str]:
        """What named tokens spell, by name."""
        return {name: token.content for name, token in self.named.items()}


def declared_tokens(files: HfTokenizerFiles) -> DeclaredTokens:
    """Reads what the files say.

    Raises:
        ModelFilesError: Something in the place of a token is none; says where.
        UnsupportedModelError: Special tokens are to be read as text.
    """
    config = files.tokenizer_config
    if config.get("split_special_tokens"):
        raise UnsupportedModelError(
            f"{_CONFIG}: split_special_tokens {shown(config['split_special_tokens'])} is not served"
        )
    values = {name: _Value(_CONFIG, value) for name, value in config.items()}
    if _OLD_EXTRA in values and not config.get(_EXTRA):
        values[_EXTRA] = values.pop(_OLD_EXTRA)
    own_names = _own_names(values)
    if _BY_ID not in config:
        for name, value in files.special_tokens_map.items():
            first = values.get(name)
            if name == _EXTRA and isinstance(value, list) and first and first.json:
                value = [*_list(name, first), *value]
            values[name] = _Value(_MAP, value)
        own_names |= _dictionary(values)
    if _OLD_EXTRA in values and _EXTRA not in values:
        values[_EXTRA] = values.pop(_OLD_EXTRA)
    named = {name: values[name] for name in _STANDARD if name in values}
    named |= _own_names(values) | own_names
    tokens = {
        name: _token(f"{file}: {name}", value, special=file == _MAP)
        for name, (file, value) in named.items()
        if value is not None
    }
    for token in tokens.values():
        token.special = True
    extra_file, _ = values.get(_EXTRA, (_CONFIG, None))
    extra = [
        _token(f"{extra_file}: {_EXTRA}[{index}]", value, special=extra_file == _MAP)
        for index, value in enumerate(_list(_EXTRA, values.get(_EXTRA)))
    ]
    if _BY_ID in config:
        return DeclaredTokens(tokens, extra, _with_properties(config[_BY_ID]), _CONFIG)
    standard = [tokens[name] for name in _STANDARD if name in tokens]
    special = {token.content for token in (*standard, *extra)}
    return DeclaredTokens(tokens, extra, _with_ids(files.added_tokens, special), _ADDED)


def add_declared_tokens(backend: Tokenizer, declared: DeclaredTokens) -> None:
    """Adds what a tokenizer lacks.

    Args:
        backend: Backend of the `tokenizer.json`; changed in place.
        declared: By the files beside it.

    Raises:
        ModelFilesError: A token would get another id than the one declared.
    """
    known = backend.get_added_tokens_decoder()
    by_id = dict(declared.by_id)
    if declared.by_id_file == _ADDED:
        by_id |= known
    contents = set(declared.contents.values())
    added = [by_id[token_id] for token_id in sorted(by_id)]
    for token in added:
        token.special = token.special or token.content in contents
    spelled = {token.content for token in (*known.values(), *added)}
    for token in (*declared.named.values(), *declared.extra):
        if token.content not in spelled:
            spelled.add(token.content)
            added.append(token)
    lacking = {
        token_id: token.content
        for token_id, token in declared.by_id.items()
        if backend.token_to_id(token.content) is None
    }
    backend.add_tokens(added)
    for token_id, content in lacking.items():
        found = backend.token_to_id(content)
        if found != token_id:
            raise ModelFilesError(
                f"{declared.by_id_file} says that {shown(content)} has id {token_id}, which "
                f"tokenizer.json does not know: its next id is {shown(found)}"
            )


class _Value(NamedTuple):
    """A value of a file."""

    file: str
    json: object


def _own_names(values: dict[str, _Value]) -> dict[str, _Value]:
    """Takes out names that only this model's tokens have."""
    names = [
        name
        for name, (_, value) in values.items()
        if name.endswith("_token") and name not in _STANDARD and _is_token(value)
    ]
    return {name: values.pop(name) for name in names} | _dictionary(values)


def _dictionary(values: dict[str, _Value]) -> dict[str, _Value]:
    """Takes out extra tokens, if they have names."""
    extra = values.get(_EXTRA)
    if extra is None or not isinstance(extra.json, Mapping):
        return {}
    del values[_EXTRA]
    return {name: _Value(extra.file, value) for name, value in extra.json.items()}


def _list(name: str, value: _Value | None) -> list[object]:
    if value is None or value.json is None:
        return []
    if not isinstance(value.json, list):
        raise ModelFilesError(f"{value.file}: {name} is {shown(value.json)}, must be tokens")
    return value.json


def _with_properties(value: object) -> dict[int, AddedToken]:
    if not isinstance(value, Mapping):
        raise ModelFilesError(f"{_CONFIG}: {_BY_ID} is {shown(value)}, must be tokens by id")
    tokens = {}
    for token_id, each in value.items():
        where = f"{_CONFIG}: {_BY_ID}.{token_id}"
        if not (token_id.isascii() and token_id.isdecimal()) or not isinstance(each, Mapping):
            raise ModelFilesError(f"{where} is {shown(each)}, must be a token by its id")
        tokens[int(token_id)] = _token(where, each, special=False)
    return tokens


def _with_ids(values: Mapping[str, object], special: set[str]) -> dict[int, AddedToken]:
    tokens = {}
    for content, token_id in values.items():
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise ModelFilesError(f"{_ADDED}: {shown(content)} is {shown(token_id)}, must be an id")
        tokens[token_id] = _token(_ADDED, {"content": content}, special=content in special)
    return tokens


def _is_token(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, Mapping) and "content" in value)


def _token(where: str, value: object, *, special: bool) -> AddedToken:
    """A token: a text, which makes a special one, or an object with its text and properties.

    Args:
        where: Place of the token, for errors.
        value: The token.
        special: Whether an object is special that does not say so.
    """
    if isinstance(value, str):
        value, special = {"content": value}, True
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise ModelFilesError(f"{where} is {shown(value)}, must be a token")
    switches = {name: value[name] for name in _SWITCHES if name in value}
    for name, switch in switches.items():
        if not isinstance(switch, bool):
            raise ModelFilesError(f"{where}.{name} is {shown(switch)}, must be true or false")
    try:
        return AddedToken(value["content"], **{"special": special, **switches})
    except UnicodeEncodeError as error:
        raise ModelFilesError(f"{where} has a lone surrogate") from error
