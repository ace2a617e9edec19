"""Certificates, private files, and where servers may listen."""

import json
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store
from typer.testing import CliRunner

from coordinator.cli.app import app as coordinator_cli
from coordinator.config import ClusterConfig, CoordinatorConfig, parse_stages
from coordinator.doors.access.callers import Callers
from stage_server.core.config import StageConfig
from stage_server.process.command import app as stage_server
from stagecoach.contract.address import Address
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.security.bind import is_loopback
from stagecoach.security.certificate_folder import CertificateFolder
from stagecoach.security.credentials import RenewedFiles, read_tls
from stagecoach.security.private_file import read_private, write_private
from stagecoach.security.role import Role
from stagecoach.security.tls_files import TlsFiles
from tests.certificates import Certificates, as_server

NOW = datetime.now(UTC)
CLUSTER = ClusterConfig(model="demo", stages=parse_stages(["h:1"]))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def test_a_certificate_says_who_it_is_for_and_how_long(tmp_path: Path) -> None:
    folder = CertificateFolder(tmp_path / "new" / "folder")
    folder.init(now=NOW)
    hosts = ("Box1.lan", "192.168.1.11", "fe80::1")
    issued = folder.issue("box1", role=Role.STAGE, hosts=hosts, now=NOW, days=30)
    certificate = issued.certificate
    assert (certificate.name, certificate.role) == ("box1", Role.STAGE)
    assert not certificate.is_authority
    assert certificate.not_after == (NOW + timedelta(days=30)).replace(microsecond=0)
    for host in ("box1.lan", "BOX1.LAN.", "192.168.1.11", "[fe80::1]", "fe80:0::1"):
        assert certificate.is_for(host)
    for host in ("box1", "lan", "192.168.1.1", "x.box1.lan"):
        assert not certificate.is_for(host)
    assert certificate.problem_at(NOW) is None
    assert "expired on" in str(certificate.problem_at(NOW + timedelta(days=31)))
    assert "not valid before" in str(certificate.problem_at(NOW - timedelta(days=1)))


def test_what_is_issued_passes_a_verifier_of_another_make(certificates: Certificates) -> None:
    authority = x509.load_pem_x509_certificate(certificates.authority.read_bytes())
    leaf = x509.load_pem_x509_certificate(certificates.stage.certificate.read_bytes())
    builder = PolicyBuilder().store(Store([authority]))
    builder.build_server_verifier(x509.DNSName("localhost")).verify(leaf, [])
    builder.build_client_verifier().verify(leaf, [])


def test_nothing_is_overwritten_unless_told(tmp_path: Path) -> None:
    folder = CertificateFolder(tmp_path)
    folder.init(now=NOW)
    folder.issue("box1", role=Role.STAGE, hosts=("box1",), now=NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InvalidArgumentError, match=r"ca\.key is there already; --overwrite"):
        folder.init(now=NOW)
    with pytest.raises(InvalidArgumentError, match=r"box1\.key is there already"):
        folder.issue("box1", role=Role.COORDINATOR, hosts=("x",), now=NOW)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    renewed = folder.renew("box1", now=NOW, days=2).certificate
    assert (renewed.role, renewed.hosts) == (Role.STAGE, ("box1",))
    assert (tmp_path / "box1.key").read_bytes() != before["box1.key"]
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {".key": 0o600, ".pem": 0o644}  # a server may run as another user


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_a_file_is_not_taken_for_a_key(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "pki").write_text("")
    with pytest.raises(InvalidArgumentError, match=r"cannot write .*ca\.key: File exists"):
        write_private(tmp_path / "pki" / "ca.key", b"key", overwrite=overwrite)


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    folder = CertificateFolder(tmp_path)
    authority = folder.init(now=NOW, days=10).certificate
    issued = folder.issue("box1", role=Role.STAGE, hosts=("box1",), now=NOW)
    assert issued.certificate.not_after == authority.not_after
    with pytest.raises(InvalidArgumentError, match="the authority expired"):
        folder.renew("box1", now=NOW + timedelta(days=11))


@pytest.mark.parametrize(
    ("name", "host", "days", "field"),
    [
        ("", "h", 1, "name"),
        ("../x", "h", 1, "name"),
        ("a b", "h", 1, "name"),
        ("ca", "h", 1, "name"),
        ("x" * 65, "h", 1, "name"),
        ("x", "", 1, "host"),
        ("x", "h:50051", 1, "host"),
        ("x", "http://h", 1, "host"),
        ("x", "-h", 1, "host"),
        ("x", "h" * 254, 1, "host"),
        ("x", "h", 0, "days"),
        ("x", "h", 36501, "days"),
    ],
)
def test_other_certificates_are_refused_by_field(
    tmp_path: Path, name: str, host: str, days: int, field: str
) -> None:
    folder = CertificateFolder(tmp_path)
    folder.init(now=NOW)
    with pytest.raises(InvalidArgumentError) as caught:
        folder.issue(name, role=Role.STAGE, hosts=(host,), now=NOW, days=days)
    assert caught.value.field == field
    assert {path.name for path in tmp_path.iterdir()} == {"ca.pem", "ca.key"}


def test_tls_files_are_checked_before_they_are_used(
    certificates: Certificates, tmp_path: Path
) -> None:
    good = certificates.stage
    keyless = tmp_path / "certificate.key"
    write_private(keyless, good.certificate.read_bytes())
    assert read_tls(good).leaf.name == "box1"
    other = certificates.coordinator
    for files, field, says in (
        (certificates.expired_stage, "tls_cert", "expired on"),
        (TlsFiles(certificate=good.certificate, key=other.key), "tls_key", "is not the key of"),
        (TlsFiles(certificate=good.key, key=good.key), "tls_cert", "no certificate in PEM"),
        (TlsFiles(certificate=good.certificate, key=keyless), "tls_key", "no private key"),
        (TlsFiles(certificate=Path("nowhere"), key=good.key), "tls_cert", "No such file"),
        (
            TlsFiles(
                certificate=good.certificate,
                key=good.key,
                authority=certificates.foreign_authority,
            ),
            "tls_cert",
            "is not signed by tls_ca",
        ),
    ):
        with pytest.raises(InvalidArgumentError, match=says) as caught:
            read_tls(files)
        assert caught.value.field == field


@pytest.mark.parametrize(("days", "level"), [(29, "WARNING"), (31, "INFO")])
def test_a_certificate_that_will_soon_expire_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, days: int, level: str
) -> None:
    caplog.set_level("INFO")
    folder = CertificateFolder(tmp_path)
    folder.init(now=NOW)
    made = folder.issue("box1", role=Role.STAGE, hosts=("box1",), now=NOW, days=days)
    RenewedFiles(TlsFiles(certificate=made.path, key=made.path.with_suffix(".key")))
    [record] = caplog.records
    assert (record.levelname, "certificate of box1" in record.message) == (level, True)


def test_secrets_that_others_can_read_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    write_private(file, b"x")
    assert read_private(file, field="key") == b"x"
    if os.getuid() == 0:
        file.chmod(0o640)  # root's, and its group's: how a container is handed a secret
        assert read_private(file, field="key") == b"x"
        os.chown(file, 10001, -1)
    for mode in (0o640, 0o604, 0o620, 0o602):
        file.chmod(mode)
        with pytest.raises(InvalidArgumentError, match=f"mode {mode:04o}.*chmod 600"):
            read_private(file, field="key")
    big = tmp_path / "big"
    write_private(big, b"x" * (2**20 + 1))
    with pytest.raises(InvalidArgumentError, match="more than 1048576 bytes"):
        read_private(big, field="key")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big", "secret"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_is_known_by_address_and_by_name(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "192.168.1.11", "no-such-host.invalid"])
def test_everything_else_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def stage(**changes: object) -> StageConfig:
    values = {"model": "demo", "layers": LayerRange(0, 1), "listen": Address("0.0.0.0", 1)}
    return StageConfig(**(values | changes))  # type: ignore[arg-type]


def test_a_stage_listens_to_others_only_with_tls_or_when_told(certificates: Certificates) -> None:
    with pytest.raises(InvalidArgumentError, match="--tls-ca, --tls-cert and --tls-key") as caught:
        stage()
    assert caught.value.field == "listen"
    assert "--insecure-bind" in caught.value.message
    stage(tls=certificates.stage)
    stage(insecure_bind=True)
    stage(listen=Address("127.0.0.1", 1))


def test_metrics_are_for_this_machine_unless_told_otherwise(certificates: Certificates) -> None:
    """They have neither TLS nor keys, whatever the server itself has."""
    far = Address("0.0.0.0", 9)
    with pytest.raises(InvalidArgumentError, match="the metrics port would listen") as caught:
        stage(tls=certificates.stage, metrics_listen=far)
    assert caught.value.field == "metrics_listen"
    stage(tls=certificates.stage, metrics_listen=far, insecure_bind=True)
    with pytest.raises(InvalidArgumentError, match="the metrics port would listen") as caught:
        CoordinatorConfig(clusters=(CLUSTER,), metrics_listen=far)
    assert caught.value.field == "metrics_listen"


def test_a_coordinator_listens_to_others_only_with_tls_and_keys_or_when_told(
    certificates: Certificates,
) -> None:
    def configure(**changes: object) -> CoordinatorConfig:
        return CoordinatorConfig(clusters=(CLUSTER,), **changes)  # type: ignore[arg-type]

    tls, keys = as_server(certificates.coordinator), Path("keys")
    for door in ("listen", "http_listen"):
        far = {door: Address("0.0.0.0", 1)}
        for given, missing in (
            ({}, "--door-tls-cert and --door-tls-key, --api-keys-file"),
            ({"door_tls": tls}, "give --api-keys-file"),
            ({"api_keys_file": keys}, "give --door-tls-cert and --door-tls-key;"),
        ):
            with pytest.raises(InvalidArgumentError, match=missing) as caught:
                configure(**far, **given)
            assert caught.value.field == door
        configure(**far, door_tls=tls, api_keys="alice:0123456789abcdef")
        configure(**far, insecure_bind=True)
    assert "0123456789" not in repr(configure(api_keys="alice:0123456789abcdef"))


@pytest.mark.parametrize(
    ("command", "flags", "culprit"),
    [
        (stage_server, ["--model", "demo", "--layers", "0:1", "--listen", "0.0.0.0:0"], "--tls-ca"),
        (stage_server, ["--model", "demo", "--layers", "0:1", "--tls-ca", "x"], "--tls-cert"),
        (
            coordinator_cli,
            ["serve", "--model", "demo", "--stage", "h:1", "--listen", "0.0.0.0:0"],
            "--door-tls-cert",
        ),
        (
            coordinator_cli,
            ["serve", "--model", "demo", "--stage", "h:1", "--door-tls-cert", "x"],
            "--door-tls-key",
        ),
        (
            coordinator_cli,
            ["serve", "--model", "demo", "--stage", "h:1", "--max-requests-per-key", "2"],
            "API keys",
        ),
        (coordinator_cli, ["certs", "issue", "nowhere", "--name", "x"], "certs init nowhere"),
        (coordinator_cli, ["keys", "new", "/dev/null", "--name", "x"], "chmod 600"),
        (coordinator_cli, ["status", "--api-key-file", "nowhere"], "nowhere"),
        (coordinator_cli, ["status", "--tls-ca", "nowhere"], "nowhere"),
    ],
)
def test_bad_usage_exits_with_2_and_names_the_flags(
    command: typer.Typer, flags: list[str], culprit: str
) -> None:
    result = CliRunner().invoke(command, flags)
    assert result.exit_code == 2, result.output
    assert culprit in result.stderr
    assert result.stdout == ""


def test_certs_and_keys_print_one_json_object(tmp_path: Path) -> None:
    def run(*arguments: str) -> dict[str, object]:
        result = CliRunner().invoke(coordinator_cli, [*arguments, "--json"])
        assert result.exit_code == 0, result.stderr
        answer: dict[str, object] = json.loads(result.stdout)
        return answer

    folder = str(tmp_path)
    assert run("certs", "init", folder)["is_authority"] is True
    issued = run("certs", "issue", folder, "--name", "c", "--role", "coordinator", "--host", "h")
    assert (issued["role"], issued["hosts"], issued["problem"]) == ("coordinator", ["h"], None)
    assert run("certs", "renew", folder, "--name", "c")["sha256"] != issued["sha256"]
    listed = run("certs", "show", folder)["certificates"]
    assert isinstance(listed, list)
    assert [one["name"] for one in listed] == ["Stagecoach private CA", "c"]
    key = run("keys", "new", str(tmp_path / "keys"), "--name", "alice")["key"]
    assert Callers.of_file(tmp_path / "keys").authenticate(f"Bearer {key}").name == "alice"
