"""What the flags of `coordinator-cli serve`, and its file, make of a coordinator."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from coordinator.cli.cluster_file import (
    OF_MODEL,
    OF_ONE_MODEL,
    ClusterFile,
    read_cluster_file,
)
from coordinator.config import (
    DEFAULT_HTTP_LISTEN,
    ClusterConfig,
    CoordinatorConfig,
    parse_stages,
)
from stagecoach.contract.address import Address
from stagecoach.contract.error_words import in_words_of
from stagecoach.contract.errors import InvalidArgumentError, StagecoachError
from stagecoach.model_files import model_id_of
from stagecoach.security.tls_files import TlsFiles

Options = Mapping[str, Any]
"""Values of the parameters of `serve`, by their names."""


class ServeOptions:
    """The parameters of `serve`: from its flags, from its environment, and from a file.

    Args:
        command: `serve`, whose parameters name what a file may say.
        flags: All of them, defaults included.
        given: Names of the flags that were given, or stand in the environment. They win over what a
            file says of all models, and what it says of one wins over them.
    """

    def __init__(
        self, command: Callable[..., object], flags: Options, given: Collection[str]
    ) -> None:
        self._flags = flags
        self._given = {name: flags[name] for name in given}
        self._file: ClusterFile | None = None
        path = flags["config"]
        if path is None:
            return
        for name in OF_ONE_MODEL:
            if name in given:
                raise InvalidArgumentError(
                    f"{name} is given beside config, and {path} names the models",
                    field=name,
                    other_field="config",
                )
        self._file = read_cluster_file(Path(path), command)

    @property
    def of_all(self) -> Options:
        """What holds for the process, and for each model that does not say otherwise."""
        return {**self._flags, **(self._file.options if self._file else {}), **self._given}

    def coordinator(self, *, api_keys: str | None) -> CoordinatorConfig:
        """Makes the configuration.

        Args:
            api_keys: API keys that the environment has.

        Raises:
            InvalidArgumentError: A value is missing or out of range; names the flag's parameter, or
                the place in the file.
        """
        file = self._file
        if file is None:
            return _coordinator(self._flags, (self._only_cluster(),), api_keys)
        clusters = tuple(self._cluster(file, index) for index in range(len(file.models)))
        try:
            return _coordinator(self.of_all, clusters, api_keys)
        except StagecoachError as error:
            raise in_words_of(error, self._place_of_all) from error

    def _only_cluster(self) -> ClusterConfig:
        for name in ("model", "stage"):
            if self._flags[name] is None:
                raise InvalidArgumentError(
                    f"{name} is missing: give --model and --stage, or --config for several models",
                    field=name,
                )
        stages = parse_stages(self._flags["stage"])
        return _cluster(self._flags, stages, _names(self._flags["served_model_name"]))

    def _cluster(self, file: ClusterFile, index: int) -> ClusterConfig:
        """One model of a file."""
        own = file.models[index]
        for name in ("model", "stage"):
            if name not in own:
                place = file.place(name, index)
                raise InvalidArgumentError(f"{place} is missing", field=place)
        options = {**self.of_all, **own}
        names = _names(own.get("served_model_name"))
        if len(file.models) > 1:
            names = names or (model_id_of(own["model"]),)
        place = file.place("stage", index)
        stages = tuple(
            stage
            for number, text in enumerate(own["stage"])
            for stage in parse_stages([text], field=f"{place}[{number}]")
        )

        def name_of(field: str) -> str:
            is_flag = field in self._given and field not in own
            return field if is_flag or field not in OF_MODEL else file.place(field, index)

        try:
            return _cluster(options, stages, names)
        except StagecoachError as error:
            raise in_words_of(error, name_of) from error

    def _place_of_all(self, field: str) -> str:
        """Where the value of a field comes from, in the words of the operator."""
        assert self._file is not None, "there is a file"
        is_of_file = field in self._file.options and field not in self._given
        return self._file.place_of_all(field) if is_of_file else field


def _names(texts: list[str] | None) -> tuple[str, ...]:
    """Names that were given one by one, or with commas between."""
    return tuple(name.strip() for text in texts or () for name in text.split(","))


def _cluster(
    options: Options, stages: tuple[tuple[Address, ...], ...], names: tuple[str, ...]
) -> ClusterConfig:
    limits = set(OF_MODEL) - {*OF_ONE_MODEL, "tls_ca", "tls_cert", "tls_key"}
    return ClusterConfig(
        model=options["model"],
        stages=stages,
        served_model_names=names,
        stage_tls=TlsFiles.mutual(options["tls_ca"], options["tls_cert"], options["tls_key"]),
        **{name: options[name] for name in limits},
    )


def _coordinator(
    options: Options, clusters: tuple[ClusterConfig, ...], api_keys: str | None
) -> CoordinatorConfig:
    listen = Address.parse(options["listen"], field="listen")
    metrics_listen = options["metrics_listen"]
    return CoordinatorConfig(
        clusters=clusters,
        listen=listen,
        http_listen=_http_listen(options["http_listen"], listen, no_http=options["no_http"]),
        allowed_hosts=tuple(options["allowed_host"] or ()),
        cors_origins=tuple(options["cors_origin"] or ()),
        door_tls=TlsFiles.of_server(
            options["door_tls_cert"], options["door_tls_key"], prefix="door_tls"
        ),
        api_keys_file=options["api_keys_file"],
        api_keys=api_keys,
        max_requests_per_key=options["max_requests_per_key"],
        insecure_bind=options["insecure_bind"],
        drain_grace_s=options["drain_grace_s"],
        metrics_listen=None
        if metrics_listen is None
        else Address.parse(metrics_listen, field="metrics_listen"),
        otlp_endpoint=options["otlp_endpoint"],
    )


def _http_listen(http_listen: str | None, listen: Address, *, no_http: bool) -> Address | None:
    """The address of the HTTP API; None for none.

    Raises:
        InvalidArgumentError: One is given, and none is wanted; or it is not HOST:PORT.
    """
    if no_http:
        if http_listen is not None:
            raise InvalidArgumentError(
                "give either --http-listen or --no-http", field="http_listen"
            )
        return None
    if http_listen is not None:
        return Address.parse(http_listen, field="http_listen")
    return Address("127.0.0.1", 0) if listen.port == 0 else DEFAULT_HTTP_LISTEN
