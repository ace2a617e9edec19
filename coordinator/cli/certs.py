"""`coordinator-cli certs`: a private CA and the certificates of a cluster's boxes."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coordinator.cli.shared.failures import reported_failures

if TYPE_CHECKING:
    from stagecoach.security.certificate_folder import StoredCertificate

certs = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the certificates.")]
Name = Annotated[str, typer.Option(help="Of the box: letters, digits, dots and hyphens.")]
Days = Annotated[int, typer.Option(help="How long it is valid.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@certs.callback()
def certificates() -> None:
    """Makes, renews and shows the certificates with which boxes know each other."""


@certs.command()
def init(
    folder: Folder, days: Days = 3650, overwrite: Overwrite = False, json_output: Json = False
) -> None:
    """Makes a private CA in DIR: ca.pem, which every box trusts, and ca.key, which stays in DIR."""
    with reported_failures(init):
        from stagecoach.security.certificate_folder import CertificateFolder

        made = CertificateFolder(folder).init(now=datetime.now(UTC), days=days, overwrite=overwrite)
        _print_made(made, json_output=json_output)


@certs.command()
def issue(
    folder: Folder,
    name: Name,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or IP address under which others reach the box; repeatable. Default: --name."
        ),
    ] = None,
    role: Annotated[
        Literal["stage", "coordinator"],
        typer.Option(help="Only a coordinator may use stages."),
    ] = "stage",
    days: Days = 365,
    overwrite: Overwrite = False,
    json_output: Json = False,
) -> None:
    """Makes the certificate and the key of one box: NAME.pem and NAME.key."""
    with reported_failures(issue):
        from stagecoach.security.certificate_folder import CertificateFolder
        from stagecoach.security.role import Role

        made = CertificateFolder(folder).issue(
            name,
            role=Role(role),
            hosts=host or [name],
            now=datetime.now(UTC),
            days=days,
            overwrite=overwrite,
        )
        _print_made(made, json_output=json_output)


@certs.command()
def renew(folder: Folder, name: Name, days: Days = 365, json_output: Json = False) -> None:
    """Replaces certificate and key of one box; running servers take the new files up."""
    with reported_failures(renew):
        from stagecoach.security.certificate_folder import CertificateFolder

        made = CertificateFolder(folder).renew(name, now=datetime.now(UTC), days=days)
        _print_made(made, json_output=json_output)


@certs.command()
def show(folder: Folder, json_output: Json = False) -> None:
    """Shows every certificate of DIR and when it expires."""
    with reported_failures(show):
        from stagecoach.security.certificate_folder import CertificateFolder

        found = CertificateFolder(folder).certificates()
        if json_output:
            print(json.dumps({"certificates": [_as_json(stored) for stored in found]}))
        else:
            _print_table(found)


def _print_made(made: "StoredCertificate", *, json_output: bool) -> None:
    if json_output:
        print(json.dumps(_as_json(made)))
        return
    certificate = made.certificate
    print(f"{made.path} and {made.path.with_suffix('.key').name}: {_use(made)}")
    print(f"valid until {certificate.not_after:%Y-%m-%d}, SHA-256 {certificate.sha256}")


def _print_table(found: "Sequence[StoredCertificate]") -> None:
    from coordinator.cli.shared.console import plain_table, table_console

    table = plain_table()
    for heading in ("file", "use", "valid until", "days left"):
        table.add_column(heading)
    now = datetime.now(UTC)
    for stored in found:
        end = stored.certificate.not_after
        left = stored.certificate.problem_at(now) or str((end - now).days)
        table.add_row(stored.path.name, _use(stored), f"{end:%Y-%m-%d}", left)
    table_console().print(table)


def _use(stored: "StoredCertificate") -> str:
    """What a certificate is good for, in words."""
    certificate = stored.certificate
    if certificate.is_authority:
        return "CA: give ca.pem to every box, keep ca.key here"
    role = "no role" if certificate.role is None else certificate.role.value
    return f"{role} {certificate.name} at {', '.join(certificate.hosts)}"


def _as_json(stored: "StoredCertificate") -> dict[str, object]:
    certificate = stored.certificate
    return {
        "certificate": str(stored.path),
        "key": str(stored.path.with_suffix(".key")),
        "name": certificate.name,
        "role": None if certificate.role is None else certificate.role.value,
        "is_authority": certificate.is_authority,
        "hosts": certificate.hosts,
        "not_before": certificate.not_before.isoformat(),
        "not_after": certificate.not_after.isoformat(),
        "problem": certificate.problem_at(datetime.now(UTC)),
        "sha256": certificate.sha256,
    }
