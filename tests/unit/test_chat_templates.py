"""The chat template of a Hugging Face folder is the one that transformers takes, or is refused."""

import json
from pathlib import Path

import pytest
import tokenizers

from coordinator.text.tokenizer_files import load_tokenizer
from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.hf_files import HfFiles
from stagecoach.model_files.local_folder import LocalFolder
from tests.model_configs import smallest_config

CONFIG = smallest_config(vocab_size=4)


def folder_with(path: Path, template: object, **files: str) -> HfFiles:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template})
    )
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content)
    return HfFiles(LocalFolder(path))


FORMS = [
    "plain",
    "",
    [{"name": "default", "template": "of a list"}],
    [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "second"}],
    [{"name": "default", "template": "first"}, {"name": "default", "template": "last"}],
    [{"name": "default", "template": "more", "note": 1}],
    {"default": "of an object", "rag": "other"},
]


@pytest.mark.parametrize("form", FORMS)
def test_the_template_is_that_of_transformers(tmp_path: Path, form: object) -> None:
    from transformers import AutoTokenizer

    files = folder_with(tmp_path, form).tokenizer_files()
    assert files is not None
    assert files.chat_template == AutoTokenizer.from_pretrained(tmp_path).get_chat_template()


def test_a_file_of_its_own_comes_before_the_configuration(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    files = folder_with(tmp_path, [7], chat_template__jinja="new").tokenizer_files()
    assert files is not None
    assert files.chat_template == "new"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    assert AutoTokenizer.from_pretrained(tmp_path).get_chat_template() == "new"


@pytest.mark.parametrize("form", [None, [], {}, [{"name": "rag", "template": "x"}], {"rag": "x"}])
def test_without_a_default_there_is_no_template(tmp_path: Path, form: object) -> None:
    tokenizer_files = folder_with(tmp_path, form).tokenizer_files()
    assert tokenizer_files is not None
    assert tokenizer_files.chat_template is None


FOLDERS: list[dict[str, str]] = [
    {"chat_template.jinja": "own"},
    {"chat_template.jinja": "own", "additional_chat_templates/tool_use.jinja": "tools"},
    {"chat_template.jinja": "own", "additional_chat_templates/default.jinja": "folder"},
    {"additional_chat_templates/default.jinja": "folder"},
    {"chat_template.jinja": "own", "additional_chat_templates/note.txt": "\xff no template"},
    {"chat_template.jinja": "own", "additional_chat_templates/a.b.jinja": "with a dot"},
    {"additional_chat_templates/readme.md": "no template"},
]


@pytest.mark.parametrize("content", FOLDERS)
def test_named_templates_in_a_folder_are_read_as_transformers_does(
    tmp_path: Path, content: dict[str, str]
) -> None:
    from transformers import AutoTokenizer

    files = folder_with(tmp_path, "of the configuration")
    write_all(tmp_path, content)
    found = files.tokenizer_files()
    assert found is not None
    assert found.chat_template == AutoTokenizer.from_pretrained(tmp_path).get_chat_template()


def test_what_transformers_saves_is_read_again(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    named = [{"name": name, "template": f"of {name}"} for name in ("default", "rag", "tool_use")]
    folder_with(tmp_path, named)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert sorted(path.name for path in (tmp_path / "additional_chat_templates").iterdir()) == [
        "rag.jinja",
        "tool_use.jinja",
    ]
    found = HfFiles(LocalFolder(tmp_path)).tokenizer_files()
    assert found is not None
    assert found.chat_template == "of default" == tokenizer.get_chat_template()


def test_a_folder_without_a_default_hides_the_configuration_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoTokenizer

    files = folder_with(tmp_path, "of the configuration")
    write_all(tmp_path, {"additional_chat_templates/rag.jinja": "x"})
    found = files.tokenizer_files()
    assert found is not None
    assert found.chat_template is None
    assert vars(caplog.records[-1])["templates"] == ["rag"]
    with pytest.raises(ValueError, match="no default specified"):
        AutoTokenizer.from_pretrained(tmp_path).get_chat_template()


def test_odd_templates_in_files_are_refused_by_place(tmp_path: Path) -> None:
    files = folder_with(tmp_path, None)
    write_all(tmp_path, {"chat_template.jinja": "x", "additional_chat_templates/rag.jinja": "x"})
    odd = tmp_path / "additional_chat_templates" / "rag.jinja"

    def refusal() -> str:
        with pytest.raises(ModelFilesError) as refused:
            load_tokenizer(files)
        return refused.value.message

    odd.write_bytes(b"{{ \xff }}")
    assert refusal() == "additional_chat_templates/rag.jinja is not text in UTF-8: byte 3 is 255"
    odd.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert refusal().startswith("additional_chat_templates/rag.jinja is not here, only its pointer")
    odd.unlink()
    odd.symlink_to("nowhere")
    place = "additional_chat_templates/rag.jinja"
    assert refusal() == f"{place} is a link to nowhere, which is not there"
    odd.unlink()
    odd.mkdir()
    assert refusal() == f"{place} is a folder, must be a file"
    odd.rmdir()
    (tmp_path / "chat_template.jinja").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert refusal().startswith("chat_template.jinja is not here, only its pointer")


def write_all(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def test_a_processor_may_have_the_template(tmp_path: Path) -> None:
    content = json.dumps({"chat_template": "of a processor"})
    files = folder_with(tmp_path, None, chat_template__json=content).tokenizer_files()
    assert files is not None
    assert files.chat_template == "of a processor"


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ([7], r"chat_template\[0\] is a number"),
        (["x"], r"chat_template\[0\] is a string"),
        ([None], r"chat_template\[0\] is null"),
        ([[]], r"chat_template\[0\] is a list"),
        ([{}], r"chat_template\[0\] has name None and a template that is null"),
        ([{"name": "default", "template": "x"}, {"name": ["a"]}], r"chat_template\[1\]"),
        ([{"name": "default", "template": ["x"]}], r".*a template that is a list"),
        ([{"name": {"a": 1}, "template": "x"}], r"chat_template\[0\] has name"),
        ({"default": 5}, r"chat_template\.default is a number"),
        (5, r"chat_template is a number"),
        (True, r"chat_template is a switch"),
    ],
)
def test_odd_forms_are_refused_by_place(tmp_path: Path, form: object, message: str) -> None:
    with pytest.raises(ModelFilesError, match=rf"^tokenizer_config\.json: {message}"):
        load_tokenizer(folder_with(tmp_path, form))
