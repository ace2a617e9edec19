"""Models on a hub: only what is needed is fetched, and every failure is one clear line.

Each test opens models in a process of its own, because `huggingface_hub` reads its environment when
it is imported. What that imports besides, and what we do, is imported once.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache

from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files import open_model
from stagecoach.model_files.checksum import check_download
from tests.fake_hub import COMMIT, FakeHub
from tests.forked_python import ForkedPython
from tests.tiny_models import NUM_LAYERS, tiny_model

PRELUDE = """
import json
from stagecoach.model_files import open_model
from stagecoach.contract.errors import StagecoachError
"""


class Machine:
    """A machine with a cache of its own; `run` runs Python on it and returns what it printed."""

    python = ForkedPython(["stagecoach.model_files", "filelock", "httpx2", "tqdm.auto", "yaml"])

    def __init__(self, cache: Path, endpoint: str) -> None:
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")},
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def run(self, code: str, **environment: str) -> str:
        result = self.python.run(PRELUDE + code, self._environment | environment)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def error(
        self, spec: str, *, wants: str = "fingerprint", prelude: str = "", **environment: str
    ) -> str:
        """Opens a model that cannot be opened; the message."""
        code = f"""{prelude}
try:
    open_model({spec!r}).{wants}
except StagecoachError as error:
    print(type(error).__name__, error)
"""
        message = self.run(code, **environment)
        assert message.startswith("ModelFilesError ")
        assert "\n" not in message
        return message


@pytest.fixture(scope="module", autouse=True)
def _python() -> Iterator[None]:
    with Machine.python as python:
        done = python.run("import sys; print('huggingface_hub' in sys.modules)", os.environ)
        assert done.stdout == "False\n", "each machine imports it with its own environment"
        yield


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    fake = FakeHub(tiny_model("llama", tmp_path / "remote", max_shard_size="20KB"))
    yield fake
    fake.close()


READ_LAYER = """
files = open_model("org/tiny")
names = [n for n in files.tensor_names if n.startswith("model.layers.%d.")]
with files.open_tensors(names) as reader:
    total = sum(float(abs(reader.read(n)).sum()) for n in names)
print(json.dumps([files.model_id, files.fingerprint, files.config.num_layers, len(names), total]))
"""


def test_a_stage_fetches_only_the_shards_of_its_layers(hub: FakeHub, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "cache", hub.endpoint)
    model_id, fingerprint, num_layers, num_names, total = json.loads(machine.run(READ_LAYER % 3))
    weight_map = json.loads((hub.folder / "model.safetensors.index.json").read_text())["weight_map"]
    own = {shard for name, shard in weight_map.items() if name.startswith("model.layers.3.")}
    fetched = {name for name in hub.fetched if name.endswith(".safetensors")}
    assert fetched == own
    assert own < set(weight_map.values())
    assert (model_id, num_layers, num_names) == ("org/tiny", NUM_LAYERS, 9)
    local = open_model(str(hub.folder))
    assert fingerprint == local.fingerprint
    names = [name for name in weight_map if name.startswith("model.layers.3.")]
    with local.open_tensors(names) as reader:
        assert total == pytest.approx(sum(float(abs(reader.read(n)).sum()) for n in names))


FIND_TEMPLATE = """
files = open_model("org/tiny").tokenizer_files()
print(files.chat_template)
"""


def test_named_templates_are_found_on_a_hub_and_in_its_cache(hub: FakeHub, tmp_path: Path) -> None:
    (hub.folder / "tokenizer.json").write_text("{}")
    (hub.folder / "chat_template.jinja").write_text("own")
    without = Machine(tmp_path / "without", hub.endpoint)
    assert without.run(FIND_TEMPLATE) == "own"
    (hub.folder / "additional_chat_templates").mkdir()
    for name in ("default", "tool_use"):
        (hub.folder / "additional_chat_templates" / f"{name}.jinja").write_text(f"of {name}")
    machine = Machine(tmp_path / "cache", hub.endpoint)
    assert machine.run(FIND_TEMPLATE) == "of default"
    assert machine.run(FIND_TEMPLATE, HF_HUB_OFFLINE="1") == "of default"
    assert without.run(FIND_TEMPLATE, HF_HUB_OFFLINE="1") == "own"
    hub.lists = False
    assert Machine(tmp_path / "mirror", hub.endpoint).run(FIND_TEMPLATE) == "own"


FIND_TOKENIZER = """
try:
    print(open_model("org/tiny").tokenizer_files())
except StagecoachError as error:
    print(error)
"""


def test_a_tokenizer_in_another_form_is_told_from_none_on_a_hub(
    hub: FakeHub, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "cache", hub.endpoint)
    assert machine.run(FIND_TOKENIZER) == "None"
    (hub.folder / "tekken.json").write_text("{}")
    told = "org/tiny has no tokenizer.json, and tekken.json is not read"
    assert machine.run(FIND_TOKENIZER).startswith(told)
    hub.lists = False
    assert machine.run(FIND_TOKENIZER) == "None"


OPEN_OFFLINE = """
import logging
class Shown(logging.Handler):
    def emit(self, record):
        print(record.getMessage(), *getattr(record, "files", ()))
logging.getLogger("stagecoach.model_files").addHandler(Shown())
try:
    files = open_model("org/tiny")
    found = files.tokenizer_files()
    files.tokenizer_files()
    print(found and found.tokenizer_json.name)
except StagecoachError as error:
    print(error)
"""
COUNTS_AS_ABSENT = "the hub is offline: what is not in the cache counts as not there"


def test_offline_what_a_stage_did_not_fetch_is_told_from_what_does_not_exist(
    hub: FakeHub, tmp_path: Path
) -> None:
    """A stage needs no tokenizer, so its cache has none."""
    machine = Machine(tmp_path / "cache", hub.endpoint)
    machine.run(READ_LAYER % 3)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (hub.folder / name).write_text("{}")
    told = machine.run(OPEN_OFFLINE, HF_HUB_OFFLINE="1")
    missing = f"org/tiny@{COMMIT}: tokenizer.json is not in the cache {tmp_path / 'cache'}"
    assert told.startswith(missing)
    assert machine.run(OPEN_OFFLINE) == "tokenizer.json"
    assert machine.run(OPEN_OFFLINE, HF_HUB_OFFLINE="1") == "tokenizer.json"
    assert len(hub.fetched) == len(set(hub.fetched))


def test_offline_what_the_hub_said_it_does_not_have_does_not_exist(
    hub: FakeHub, tmp_path: Path
) -> None:
    (hub.folder / "generation_config.json").unlink()
    machine = Machine(tmp_path / "cache", hub.endpoint)
    assert machine.run(OPEN_OFFLINE) == "None"
    assert machine.run(OPEN_OFFLINE, HF_HUB_OFFLINE="1") == "None"


def cached(cache: Path, folder: Path, *names: str, tree: bool = False) -> None:
    """Makes a cache of a hub that other programs filled, and its list of all files."""
    repository = cache / "hub" / "models--org--tiny"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in names:
        (snapshot / name).write_bytes((folder / name).read_bytes())
    if tree:
        entries = {
            path.name: TreeCacheEntry(size=path.stat().st_size, blob_id="0" * 40)
            for path in folder.iterdir()
        }
        write_tree_cache(str(repository), COMMIT, entries)


@pytest.mark.parametrize("tree", [False, True])
def test_offline_files_of_a_cache_that_others_filled_may_be_missing(
    hub: FakeHub, tmp_path: Path, tree: bool
) -> None:
    (hub.folder / "tokenizer.json").write_text("{}")
    (hub.folder / "chat_template.jinja").write_text("own")
    cached(tmp_path / "cache", hub.folder, "config.json", "tokenizer.json", tree=tree)
    machine = Machine(tmp_path / "cache", hub.endpoint)
    told = machine.run(OPEN_OFFLINE, HF_HUB_OFFLINE="1").splitlines()
    rest = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
    there = ["chat_template.jinja"]
    unknown = there if tree else [*rest, *there, "chat_template.json"]
    assert told == [
        f"{COUNTS_AS_ABSENT} generation_config.json",
        f"{COUNTS_AS_ABSENT} {' '.join(unknown)}",
        "tokenizer.json",
    ]
    message = machine.error("org/tiny", HF_HUB_OFFLINE="1")
    assert "model.safetensors" in message
    assert "is not in the cache" in message


def test_offline_a_cache_that_has_all_that_the_hub_listed_tells_nothing(
    hub: FakeHub, tmp_path: Path
) -> None:
    names = [path.name for path in hub.folder.iterdir()]
    cached(tmp_path / "cache", hub.folder, *names, tree=True)
    machine = Machine(tmp_path / "cache", hub.endpoint)
    assert machine.run(OPEN_OFFLINE, HF_HUB_OFFLINE="1") == "None"
    assert machine.run(READ_LAYER % 3, HF_HUB_OFFLINE="1")


def test_a_single_file_hides_an_older_index_on_a_hub(hub: FakeHub, tmp_path: Path) -> None:
    new = tiny_model("llama", tmp_path / "new", hidden_size=24)
    for name in ("config.json", "model.safetensors"):
        (new / name).rename(hub.folder / name)
    machine = Machine(tmp_path / "cache", hub.endpoint)
    expected = json.loads(machine.run(READ_LAYER % 3))
    assert [name for name in hub.fetched if name.endswith(".safetensors")] == ["model.safetensors"]
    assert expected[1] == open_model(str(hub.folder)).fingerprint
    assert json.loads(machine.run(READ_LAYER % 3, HF_HUB_OFFLINE="1")) == expected


def test_the_second_time_nothing_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "cache", hub.endpoint)
    first = machine.run(READ_LAYER % 3)
    hub.fetched.clear()
    assert machine.run(READ_LAYER % 3) == first
    assert hub.fetched == []
    assert machine.run(READ_LAYER % 3, HF_HUB_OFFLINE="1") == first


def test_a_file_that_is_damaged_on_its_way_is_refused_and_fetched_again(
    hub: FakeHub, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "cache", hub.endpoint)
    hub.damaged = "model.safetensors.index.json"
    message = machine.error("org/tiny")
    assert "model.safetensors.index.json was damaged on its way: its checksum is" in message
    assert hub.damaged == ""
    machine.run(READ_LAYER % 3)
    assert hub.fetched.count("model.safetensors.index.json") == 2


def test_small_files_are_checked_by_the_object_id_that_git_gives_them(tmp_path: Path) -> None:
    content = b"{}\n"
    blob = tmp_path / hashlib.sha1(b"blob 3\0" + content).hexdigest()
    blob.write_bytes(content)
    link = tmp_path / "config.json"
    link.symlink_to(blob)
    check_download(link)
    blob.write_bytes(b"[]\n")
    with pytest.raises(ModelFilesError, match=f"the hub's is {blob.name}"):
        check_download(link)
    assert list(tmp_path.iterdir()) == []


def test_a_single_file_is_fingerprinted_by_its_header_alone(tmp_path: Path) -> None:
    hub = FakeHub(tiny_model("llama", tmp_path / "remote"))
    try:
        machine = Machine(tmp_path / "cache", hub.endpoint)
        fingerprint = machine.run("print(open_model('org/tiny@main').fingerprint)")
        assert fingerprint == open_model(str(hub.folder)).fingerprint
        assert "model.safetensors" not in hub.fetched
        machine.run(READ_LAYER % 0)
        assert "model.safetensors" in hub.fetched
        assert machine.run("print(open_model('org/tiny').fingerprint)") == fingerprint
    finally:
        hub.close()


def test_failures_are_one_line_that_says_what_is_wrong(hub: FakeHub, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "cache", hub.endpoint)
    assert "org/other does not exist" in machine.error("org/other")
    assert "no revision 'v9'" in machine.error("org/tiny@v9")
    assert "no hub id" in machine.error("org/has--dashes")
    (hub.folder / "config.json").unlink()
    assert "has no config.json" in machine.error("org/tiny")


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (401, "GatedRepo", "org/tiny is gated: accept its terms on http"),
        (403, "GatedRepo", "org/tiny is gated: accept its terms on http"),
        (401, "RepoNotFound", "org/tiny does not exist on http"),
        (401, "", "org/tiny"),
        (403, "", "may not read config.json"),
    ],
)
def test_what_the_hub_refuses_is_told_with_its_remedy(
    hub: FakeHub, tmp_path: Path, status: int, code: str, told: str
) -> None:
    hub.status, hub.code = status, code
    message = Machine(tmp_path / "cache", hub.endpoint).error("org/tiny")
    assert told in message
    assert "HF_TOKEN" in message


def test_a_hub_in_trouble_is_named_when_asking_again_did_not_help(tmp_path: Path) -> None:
    """The hub's library would wait for half a minute between its tries."""
    impatient = "import time; time.sleep = lambda seconds: None"
    told = {429: "too many requests", 500: "answered with 500", 503: "answered with 503"}
    hubs = {status: FakeHub(tmp_path) for status in told}
    machines = {"cannot be reached": Machine(tmp_path / "cache", "http://127.0.0.1:9")}
    for status, hub in hubs.items():
        hub.status = status
        machines[told[status]] = Machine(tmp_path / f"cache{status}", hub.endpoint)
    try:
        for text, machine in machines.items():
            assert text in machine.error("org/tiny", prelude=impatient)
    finally:
        for hub in hubs.values():
            hub.close()


def test_a_gated_model_tells_whether_there_is_a_token(hub: FakeHub, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "cache", hub.endpoint)
    hub.status, hub.code = 403, "GatedRepo"
    message = machine.error("org/tiny")
    assert f"accept its terms on {hub.endpoint}/org/tiny, and give this machine" in message
    assert "as HF_TOKEN or with hf auth login" in message
    message = machine.error("org/tiny", HF_TOKEN="hf_" + "a" * 34)
    assert "the token of this machine may not read it: accept its terms on" in message
    assert "hf_aaa" not in message


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"ALL_PROXY": "socks5://127.0.0.1:1", "NO_PROXY": ""}, "a proxy of the environment: "),
        ({"HTTP_PROXY": ":::bad", "NO_PROXY": ""}, "a proxy of the environment is no URL: "),
        ({"HF_ENDPOINT": "hub"}, "HF_ENDPOINT or a proxy of the environment is no URL: "),
        ({"HF_TOKEN": "\u00e9"}, "(HF_TOKEN), or a proxy of the environment, has a character that"),
    ],
    ids=["socks", "proxy", "endpoint", "token"],
)
def test_an_environment_that_the_library_cannot_use_is_told(
    variables: dict[str, str], told: str, hub: FakeHub, tmp_path: Path
) -> None:
    message = Machine(tmp_path / "cache", hub.endpoint).error("org/tiny", **variables)
    assert told in message
    assert (
        re.search(r"\w+(Error|Protocol|URL)\b:", message.removeprefix("ModelFilesError ")) is None
    )


def test_a_variable_that_is_no_number_is_told(hub: FakeHub, tmp_path: Path) -> None:
    code = """
try:
    open_model("org/tiny")
except StagecoachError as error:
    print(error)
"""
    machine = Machine(tmp_path / "cache", hub.endpoint)
    lines = machine.run(code, HF_HUB_ETAG_TIMEOUT="abc").splitlines()  # the library prints one too
    assert "huggingface_hub cannot read an HF_ variable of the environment: " in lines[-1]


def test_what_is_not_in_the_cache_is_not_fetched_offline(hub: FakeHub, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "cache", hub.endpoint)
    for spec in ("org/tiny", "org/tiny@v9"):
        message = machine.error(spec, HF_HUB_OFFLINE="1")
        assert f"{spec}: config.json is not in the cache {tmp_path / 'cache'}" in message
        assert "offline for this machine (HF_HUB_OFFLINE)" in message
    machine.run(READ_LAYER % 3)
    code = """
files = open_model("org/tiny")
try:
    with files.open_tensors(files.tensor_names):
        pass
except StagecoachError as error:
    print(error)
"""
    message = machine.run(code, HF_HUB_OFFLINE="1")
    assert ".safetensors is not in the cache" in message
    assert "HF_HUB_OFFLINE" in message
    assert hub.fetched.count("config.json") == 1


def test_a_cache_that_cannot_be_written_is_named(hub: FakeHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file, where a folder should be")
    message = Machine(cache, hub.endpoint).error("org/tiny")
    assert f"cannot be kept in {cache}" in message
    assert "HF_HOME names another place" in message


def test_a_disk_that_is_full_is_told(hub: FakeHub, tmp_path: Path) -> None:
    code = """
import errno, pathlib, huggingface_hub.file_download as download
def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")
download._download_to_tmp_and_move = full
try:
    open_model("org/tiny")
except StagecoachError as error:
    print(error)
"""
    message = Machine(tmp_path / "cache", hub.endpoint).run(code)
    assert "there is no space left for config.json in" in message


def test_a_server_that_is_no_hub_is_told_apart(hub: FakeHub, tmp_path: Path) -> None:
    hub.status, hub.code = 200, ""
    message = Machine(tmp_path / "cache", hub.endpoint).error("org/tiny")
    assert "does not answer as a hub does" in message


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pytorch_model.bin", "it has weights in files that may hold code (pytorch_model.bin)"),
        ("adapter_model.safetensors", "only an adapter is here"),
    ],
)
def test_a_repository_without_safetensors_is_told_what_it_has(
    hub: FakeHub, tmp_path: Path, name: str, told: str
) -> None:
    (hub.folder / "model.safetensors.index.json").rename(hub.folder / name)
    machine = Machine(tmp_path / "cache", hub.endpoint)
    assert told in machine.error("org/tiny", wants="tensor_names")
    assert name not in hub.fetched


def test_an_adapter_in_a_repository_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    (hub.folder / "adapter_config.json").write_text("{}")
    machine = Machine(tmp_path / "cache", hub.endpoint)
    code = """
try:
    open_model("org/tiny")
except StagecoachError as error:
    print(type(error).__name__, error)
"""
    assert "UnsupportedModelError org/tiny has an adapter beside" in machine.run(code)


DIGESTS = """
files = open_model("org/tiny")
digests = {part: digest.hex() for part, digest in files.weight_digests().items()}
print(json.dumps([digests, files.weights_revision()]))
"""


def test_weights_in_the_cache_have_digests_and_all_have_a_revision(
    hub: FakeHub, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "cache", hub.endpoint)
    digests, revision = json.loads(machine.run(DIGESTS))
    assert digests == {}
    assert len(revision) == 64
    machine.run(READ_LAYER % 3)
    local = open_model(str(hub.folder)).weight_digests()
    digests, same = json.loads(machine.run(DIGESTS))
    assert digests["layer 3"] == local["layer 3"].hex()
    assert len(digests) < len(local)
    assert same == revision
    other, revision_of_nothing = json.loads(machine.run(DIGESTS, HF_HUB_OFFLINE="1"))
    assert (other, revision_of_nothing) == (digests, "")
    shard = next(hub.folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    fresh = Machine(tmp_path / "other cache", hub.endpoint)
    assert json.loads(fresh.run(DIGESTS))[1] != revision


def test_missing_weights_are_named(hub: FakeHub, tmp_path: Path) -> None:
    (hub.folder / "model.safetensors.index.json").unlink()
    machine = Machine(tmp_path / "cache", hub.endpoint)
    assert "no model.safetensors" in machine.error("org/tiny", wants="tensor_names")


COUNT_DOWNLOAD = """
files = open_model("org/tiny")
seen = []
with files.open_tensors(files.tensor_names, on_download=lambda *counts: seen.append(counts)):
    pass
print(json.dumps(seen))
"""


def test_the_bytes_of_a_download_are_counted_up_to_their_total(
    hub: FakeHub, tmp_path: Path
) -> None:
    machine = Machine(tmp_path / "cache", hub.endpoint)
    counts = json.loads(machine.run(COUNT_DOWNLOAD))
    size = sum(path.stat().st_size for path in hub.folder.glob("*.safetensors"))
    assert {total for _, total in counts} == {size}
    done = [done for done, _ in counts]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, size)
    assert json.loads(machine.run(COUNT_DOWNLOAD)) == []
    assert json.loads(machine.run(COUNT_DOWNLOAD, HF_HUB_OFFLINE="1")) == []
