"""The file of several models: what it may say, and how it is told what it may not."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from coordinator.cli.app import app
from coordinator.cli.cluster_file import OF_MODEL, keys_of, read_cluster_file
from coordinator.cli.serve import serve
from coordinator.cli.serve_options import ServeOptions
from coordinator.config import ClusterConfig, CoordinatorConfig, parse_stages
from stagecoach.contract.address import Address
from stagecoach.contract.errors import InvalidArgumentError

GOOD = """
models:
  - model: demo
    stages: [h:1, "h:2,h:3"]
    served_model_name: [a, org/a]
  - model: shape:llama-2-7b
    stages: h:4
"""


def file_of(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def config_of(path: Path, **given: Any) -> CoordinatorConfig:
    """What `serve` makes of a file and of these flags."""
    command = typer.main.get_command(app)
    flags: dict[str, Any] = {
        str(parameter.name): parameter.default
        for parameter in command.commands["serve"].params  # type: ignore[attr-defined]
    }
    options = ServeOptions(serve, {**flags, **given, "config": path}, [*given, "config"])
    return options.coordinator(api_keys=None)


def test_each_model_has_its_stages_names_and_limits(tmp_path: Path) -> None:
    text = f"max_num_seqs: 8\nstage_wait_s: 5\nlisten: '127.0.0.1:7'\n{GOOD}    max_num_seqs: 3\n"
    config = config_of(file_of(tmp_path, text))
    first, second = config.clusters
    assert first == ClusterConfig(
        model="demo",
        stages=parse_stages(["h:1", "h:2,h:3"]),
        served_model_names=("a", "org/a"),
        max_num_seqs=8,
        stage_wait_s=5.0,
    )
    assert second.stages == parse_stages(["h:4"])
    assert second.served_model_names == ("shape:llama-2-7b",), "its own, where none is given"
    assert (second.max_num_seqs, second.stage_wait_s) == (3, 5.0)
    assert config.listen == Address("127.0.0.1", 7)


def test_a_flag_wins_over_what_is_of_all_models_and_not_over_their_own(tmp_path: Path) -> None:
    text = f"max_num_seqs: 8\ndrain_grace_s: 1\n{GOOD}    max_num_seqs: 3\n"
    config = config_of(file_of(tmp_path, text), max_num_seqs=5, drain_grace_s=2.0)
    assert [cluster.max_num_seqs for cluster in config.clusters] == [5, 3]
    assert config.drain_grace_s == 2.0


def test_the_only_model_of_a_file_is_as_that_of_the_flags(tmp_path: Path) -> None:
    text = "models: [{model: demo, stages: ['h:1'], prefix_cache: false}]"
    [cluster] = config_of(file_of(tmp_path, text)).clusters
    stages = parse_stages(["h:1"])
    assert cluster == ClusterConfig(model="demo", stages=stages, prefix_cache=False)


def test_json_is_a_file_too(tmp_path: Path) -> None:
    models = [{"model": "demo", "stages": ["h:1"], "served_model_name": "x"}]
    [cluster] = config_of(file_of(tmp_path, json.dumps({"models": models}))).clusters
    assert cluster.served_model_names == ("x",)


ONE = "models: [{model: demo, stages: ['h:1'], %s}]"


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("", "cluster.yaml", "has no keys and values"),
        ("[1]", "cluster.yaml", "has no keys and values"),
        ("listen: h:1", "models", "is missing, or no list"),
        ("models: []", "models", "is missing, or no list"),
        ("models: [demo]", "models[0]", "has no keys and values"),
        ("models: [{stages: ['h:1']}]", "models[0].model", "models[0].model is missing"),
        ("models: [{model: demo}]", "models[0].stages", "models[0].stages is missing"),
        (f"modles: 1\n{GOOD}", "modles", "did you mean models?"),
        (f"max_num_seq: 1\n{GOOD}", "max_num_seq", "did you mean max_num_seqs?"),
        (ONE % "max_num_seq: 1", "models[0].max_num_seq", "did you mean max_num_seqs?"),
        (ONE % "stage: h:1", "models[0].stage", "did you mean stages?"),
        (ONE % "xyz: 1", "models[0].xyz", "there are connect_timeout_s, "),
        (ONE % "listen: h:1", "models[0].listen", "belongs to the process, beside models"),
        (f"model: demo\n{GOOD}", "model", "belongs to each of the models"),
        (f"json: true\n{GOOD}", "json", "is no option here"),
        (ONE % "max_num_seqs: many", "models[0].max_num_seqs", "must be a whole number"),
        (ONE % "max_num_seqs: 1.5", "models[0].max_num_seqs", "must be a whole number"),
        (ONE % "max_num_seqs: true", "models[0].max_num_seqs", "must be a whole number"),
        (ONE % "stage_wait_s: soon", "models[0].stage_wait_s", "must be a number"),
        (ONE % "prefix_cache: 1", "models[0].prefix_cache", "must be true or false"),
        (ONE % "served_model_name: 7", "models[0].served_model_name", "text, in quotes"),
        (ONE % "served_model_name: [a, 7]", "models[0].served_model_name[1]", "text, in quotes"),
        (ONE % "tls_ca: ca.pem", "models[0].tls_ca", "give all three or none"),
        (ONE % "max_num_seqs: 0", "models[0].max_num_seqs", "[0].max_num_seqs is 0, must be at"),
        (ONE % "served_model_name: [a, a]", "models[0].served_model_name", "is given twice"),
        (GOOD.replace("h:4", "h"), "models[1].stages[0]", "models[1].stages[0] 'h' is not HOST"),
        (GOOD.replace("h:2,", "h:x,"), "models[0].stages[1]", "models[0].stages[1] 'h:x' is not"),
        (GOOD.replace("h:4", "h:0"), "models[1].stages", "models[1].stages h:0 has port 0"),
        (GOOD.replace("h:4", "h:2"), "models[1].stages", "h:2 is of another model too"),
        (
            GOOD.replace("org/a", "shape:llama-2-7b"),
            "models[1].served_model_name",
            "'shape:llama-2-7b' is of another model too",
        ),
        (f"max_num_seqs: 0\n{GOOD}", "max_num_seqs in cluster.yaml", "cluster.yaml is 0, must"),
        (f"drain_grace_s: -1\n{GOOD}", "drain_grace_s in cluster.yaml", "is -1, must be"),
        (f"max_num_waiting: 1\nmax_num_waiting: 2\n{GOOD}", "config", "line 2, column 1: 'max_num"),
        (f"? [a]\n: 1\n{GOOD}", "config", "unhashable key"),
        (f"1: 2\n{GOOD}", "1", "1 is no option here"),
        ("models: [", "config", "config cluster.yaml, line 1"),
        ("models: !!python/object/apply:os.getcwd []", "config", "could not determine"),
    ],
)
def test_what_a_file_may_not_say_is_refused_by_its_place(
    tmp_path: Path, text: str, field: str, message: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        config_of(file_of(tmp_path, text))
    assert caught.value.field == field
    assert message in caught.value.message


def test_a_flag_that_is_wrong_is_told_as_a_flag(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        config_of(file_of(tmp_path, f"max_num_seqs: 0\n{GOOD}"), max_num_seqs=-2)
    assert caught.value.field == "max_num_seqs"


@pytest.mark.parametrize("flag", ["--model=demo", "--stage=h:1", "--served-model-name=x"])
def test_models_are_named_by_flags_or_by_a_file(tmp_path: Path, flag: str) -> None:
    path = file_of(tmp_path, GOOD)
    refused = CliRunner().invoke(app, ["serve", "--config", str(path), flag])
    assert refused.exit_code == 2
    assert f"{flag.partition('=')[0]} is given beside --config" in refused.output


@pytest.mark.parametrize(("flags", "missing"), [([], "--model"), (["--model=demo"], "--stage")])
def test_without_a_file_a_model_and_its_stages_are_needed(flags: list[str], missing: str) -> None:
    refused = CliRunner().invoke(app, ["serve", *flags])
    assert refused.exit_code == 2
    assert f"{missing} is missing" in refused.output


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot read --config"):
        read_cluster_file(tmp_path / "none.yaml", serve)


def test_every_option_of_a_cluster_is_one_of_a_model() -> None:
    """A new one that is not listed could not be set for one model alone."""
    spelled = {"stages": "stage", "served_model_names": "served_model_name"}
    names = {spelled.get(field.name, field.name) for field in fields(ClusterConfig)}
    tls = {"tls_ca", "tls_cert", "tls_key"}
    assert set(OF_MODEL) == (names - {"stage_tls"}) | tls
    assert set(OF_MODEL) < set(keys_of(serve))
