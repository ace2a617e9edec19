"""Asks any of our servers whether it serves, by gRPC's health protocol."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stagecoach.client.call_timeout import call_timeout_s
from stagecoach.client.channel import Peer, TlsSetting, channel_options
from stagecoach.contract import status
from stagecoach.contract.errors import DeadlineExceededError, UnavailableError
from stagecoach.security.credentials import channel_credentials
from stagecoach.security.diagnosis import Trust, explained
from stagecoach.security.tls_files import TlsFiles


def check_health(
    address: str, *, tls: TlsFiles | TlsSetting, server_name: str | None, timeout_s: float
) -> None:
    """Returns when a stage server or a coordinator says that it is serving.

    Args:
        address: HOST:PORT.
        tls: The certificate that is shown to the server, and whose it has to show; or only the
            latter, as the clients take it.
        server_name: Name that its certificate bears, if that is not the host of `address`.
        timeout_s: Time limit of the answer.

    Raises:
        UnavailableError: It cannot be reached in time, or says that it is not serving.
        InvalidArgumentError: The TLS files are not good, or `timeout_s` is not above 0.
        StagecoachError: As the server answered.
    """
    options: list[tuple[str, int | str]] = [*channel_options(address)]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    trust, credentials = _trust(address, tls)
    if credentials is None:
        channel = grpc.insecure_channel(address, options)
    else:
        channel = grpc.secure_channel(address, credentials, options)
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=call_timeout_s(timeout_s)
            )
        except grpc.RpcError as error:
            read = status.from_rpc_error(error)
            if isinstance(read, DeadlineExceededError):
                raise UnavailableError(f"{address} did not answer in {timeout_s:g} s") from error
            read = explained(read, address, trust)
            raise type(read)(f"{address}: {read.message}") from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise UnavailableError(f"{address} says {name}")


def _trust(
    address: str, tls: TlsFiles | TlsSetting
) -> tuple[Trust | None, grpc.ChannelCredentials | None]:
    if isinstance(tls, TlsFiles):
        return Trust(files=tls), channel_credentials(tls)
    peer = Peer.of(address, tls=tls, api_key=None)
    return peer.trust, peer.credentials
