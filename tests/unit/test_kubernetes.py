"""The Kubernetes manifests: valid by Kubernetes' own schemas, and as closed as they claim."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "docker" / "kubernetes"

VERSIONS = ("1.31", "1.37")
"""The first one where pods of a StatefulSet are numbered from 1 for good, and a late one."""

Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text()))


def kustomization(name: str) -> Document:
    return documents(FOLDER / name / "kustomization.yaml")[0]


def base() -> list[Document]:
    return [
        document
        for name in kustomization("base")["resources"]
        for document in documents(FOLDER / "base" / name)
    ]


def merged(original: Any, patch: Any) -> Any:
    """What a strategic merge makes of them: lists of named things are joined by name, null
    deletes."""
    if isinstance(original, dict) and isinstance(patch, dict):
        keys = [*original, *(key for key in patch if key not in original)]
        both = {
            key: merged(original.get(key), patch[key]) if key in patch else original[key]
            for key in keys
        }
        return {key: value for key, value in both.items() if value is not None}
    if isinstance(original, list) and all("name" in item for item in [*original, *patch]):
        patches = {item["name"]: item for item in patch}
        known = [merged(item, patches.pop(item["name"], {})) for item in original]
        return [*known, *patches.values()]
    return patch


def with_mutual_tls() -> list[Document]:
    patches = [
        documents(FOLDER / "mutual-tls" / patch["path"])[0]
        for patch in kustomization("mutual-tls")["patches"]
    ]
    by_name = {(patch["kind"], patch["metadata"]["name"]): patch for patch in patches}
    return [
        merged(document, by_name.get((document["kind"], document["metadata"]["name"]), {}))
        for document in base()
    ]


def pods(manifests: list[Document]) -> Iterator[Document]:
    for document in manifests:
        if "template" in document.get("spec", {}):
            yield document["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifests", [base(), with_mutual_tls()], ids=["base", "mutual-tls"])
def test_every_manifest_is_valid(manifests: list[Document], version: str) -> None:
    assert len(manifests) == 9
    for document in manifests:
        kubernetes_validate.validate(document, version, strict=True)


def test_a_wrong_field_would_be_seen() -> None:
    document = base()[0] | {"dat": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[0], strict=True)


def test_every_file_is_named() -> None:
    for name in ("base", "mutual-tls"):
        content = kustomization(name)
        named = {*content["resources"], *(patch["path"] for patch in content.get("patches", []))}
        files = {path.name for path in (FOLDER / name).iterdir()} - {"kustomization.yaml"}
        assert named - {"../base"} == files


@pytest.mark.parametrize("manifests", [base(), with_mutual_tls()], ids=["base", "mutual-tls"])
def test_pods_may_do_nothing_they_need_not(manifests: list[Document]) -> None:
    found = list(pods(manifests))
    assert len(found) == 2
    for pod in found:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}


def test_with_mutual_tls_no_probe_speaks_plain_grpc_to_a_stage() -> None:
    stage = next(pod for pod in pods(with_mutual_tls()) if pod["containers"][0]["name"] == "stage")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert "grpc" not in stage["containers"][0][probe]


def test_the_coordinator_is_given_every_stage() -> None:
    stages = next(one for one in base() if one["kind"] == "StatefulSet")
    coordinator = next(one for one in base() if one["kind"] == "Deployment")
    arguments = coordinator["spec"]["template"]["spec"]["containers"][0]["args"]
    first = stages["spec"]["ordinals"]["start"]
    count = stages["spec"]["replicas"]
    named = [argument for argument in arguments if argument.startswith("--stage=")]
    assert named == [f"--stage=stage-{first + i}.stage:50051" for i in range(count)]
    stage_arguments = stages["spec"]["template"]["spec"]["containers"][0]["args"]
    assert f"--stage=$(STAGE_NUMBER)/{count}" in stage_arguments
