"""Finds the tokenizer of a folder in the Hugging Face layout, and its chat template."""

import logging
from collections.abc import Mapping

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files.chat_templates import DEFAULT, configured_template
from stagecoach.model_files.folder import Folder
from stagecoach.model_files.folder_content import unread_tokenizer
from stagecoach.model_files.folder_text import FolderText
from stagecoach.model_files.tokenizer_files import HfTokenizerFiles

_log = logging.getLogger(__name__)

_TEMPLATE = "chat_template.jinja"
_BESIDE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_TEMPLATES = "additional_chat_templates"
"""Folder of templates with other names than the default."""
_PROCESSOR_TEMPLATE = "chat_template.json"
"""Where models of several modalities had their template before `chat_template.jinja`."""


def find_tokenizer(folder: Folder) -> HfTokenizerFiles | None:
    """Finds tokenizer.json, what is beside it, and the chat template.

    Args:
        folder: Where the files are.

    Returns:
        The files; None without a tokenizer.

    Raises:
        UnsupportedModelError: There is a tokenizer in another form.
        ModelFilesError: A file is damaged, or may exist and was not found.
    """
    texts = FolderText(folder)
    path = folder.find("tokenizer.json")
    if path is None:
        texts.refuse_unknown("tokenizer.json")
        unread = unread_tokenizer(folder.names_in(""))
        if unread is not None:
            raise UnsupportedModelError(f"{folder.model_id} {unread}")
        return None
    beside = {name: texts.json(name) for name in _BESIDE_TOKENIZER}
    config, special_tokens_map, added_tokens = (beside[name] or {} for name in beside)
    template = _chat_template(folder, texts, config)
    absent = [name for name, content in beside.items() if content is None]
    if template is None:
        absent += [_TEMPLATE, _PROCESSOR_TEMPLATE]
    texts.warn_of_unknown(*absent)
    return HfTokenizerFiles(
        tokenizer_json=path,
        tokenizer_config=config,
        chat_template=template,
        special_tokens_map=special_tokens_map,
        added_tokens=added_tokens,
    )


def _chat_template(
    folder: Folder, texts: FolderText, tokenizer_config: Mapping[str, object]
) -> str | None:
    """The template in a file of its own, or else the tokenizer's or a processor's.

    As for transformers, any file of its own hides those of the configuration.
    """
    templates = _template_files(folder, texts)
    if templates:
        if DEFAULT not in templates:
            _log.warning(
                "no chat template is the default one: conversations are refused",
                extra={"model": folder.model_id, "templates": sorted(templates)},
            )
        return templates.get(DEFAULT)
    template = configured_template("tokenizer_config.json", tokenizer_config)
    if template is not None:
        return template
    return configured_template(_PROCESSOR_TEMPLATE, texts.json(_PROCESSOR_TEMPLATE) or {})


def _template_files(folder: Folder, texts: FolderText) -> dict[str, str]:
    """Templates in files of their own, by name; a default one in the folder comes first."""
    own = texts.text(_TEMPLATE)
    templates = {} if own is None else {DEFAULT: own}
    for name in folder.names_in(_TEMPLATES):
        if not name.endswith(".jinja"):
            continue
        text = texts.text(f"{_TEMPLATES}/{name}")
        if text is None:
            texts.refuse_unknown(f"{_TEMPLATES}/{name}")
            raise ModelFilesError(f"{_TEMPLATES}/{name} is not a file")
        templates[name.removesuffix(".jinja")] = text
    return templates
