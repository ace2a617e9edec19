"""What an operator may set on a coordinator, as frozen, validated values.

What belongs to one model is a `ClusterConfig`, what belongs to the process a `CoordinatorConfig`.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.core.limits import MAX_STAGES
from stagecoach.contract.address import Address
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.security.bind import check_bind, is_loopback
from stagecoach.security.tls_files import TlsFiles

DEFAULT_LISTEN = Address("127.0.0.1", 50050)
DEFAULT_HTTP_LISTEN = Address("127.0.0.1", 8000)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """A model, the stages that hold it, and how it is served.

    Limits left at None are taken from the stages: a coordinator never exceeds its smallest stage,
    and lower values here only narrow it further.

    Raises:
        InvalidArgumentError: A value is out of range; the error names the field.
    """

    model: str
    """Local Hugging Face folder, hub id, `.gguf` file, `demo` or `shape:NAME`."""
    stages: tuple[tuple[Address, ...], ...]
    """HOST:PORT of each of 1 to 16 stages, several with commas between for replicas; in any order:
    the stages' own layer ranges order them."""
    served_model_names: tuple[str, ...] = ()
    """Names of the model, the one that answers show first. None given: its own."""
    stage_tls: TlsFiles | None = None
    """What this coordinator shows to stages, and whom it takes for one. None: plain text."""
    max_num_batched_tokens: int | None = None
    """Most tokens in one micro-batch."""
    max_num_seqs: int | None = None
    """Most requests that run at once."""
    max_model_len: int | None = None
    """Most tokens of one request, prompt and output together."""
    num_micro_batches: int | None = None
    """Micro-batches in flight. None: as many as are best, which is measured while running."""
    max_thinking_tokens: int | None = None
    """Tokens of thinking after which a conversation's output goes on with its answer. None: no
    limit but that of the request."""
    max_num_waiting: int = 1024
    """Most requests that wait; more are refused."""
    prefix_cache: bool = True
    """Whether requests share the KV of a common prefix, with each other and with later ones."""
    prompt_lookup: bool = True
    """Whether tokens are guessed by looking up what followed the same tokens before, in the prompt
    and the output, and are checked in the pass that computes the next one, where that pays."""
    draft_acceptance: float | None = None
    """Share [0, 1] of guessed tokens that are right, of emulated stages: they are guessed as by a
    draft model that takes no time. None: no draft is emulated."""
    connect_timeout_s: float = 60.0
    """Seconds to wait at start until every stage serves."""
    stage_wait_s: float = 60.0
    """Seconds that requests wait for a lost stage before they fail."""

    def __post_init__(self) -> None:
        if not self.model:
            raise InvalidArgumentError("model is empty", field="model")
        if not 1 <= len(self.stages) <= MAX_STAGES:
            raise InvalidArgumentError(
                f"stage is given {len(self.stages)} times, must be 1 to {MAX_STAGES} times",
                field="stage",
            )
        for address in self.addresses:
            if address.port == 0:
                raise InvalidArgumentError(f"stage {address} has port 0", field="stage")
            if self.addresses.count(address) > 1:
                raise InvalidArgumentError(f"stage {address} is given twice", field="stage")
        for name in self.served_model_names:
            if not (name and name.isprintable()):
                raise InvalidArgumentError(
                    f"served_model_name {name!r} is empty or cannot be printed",
                    field="served_model_name",
                )
            if self.served_model_names.count(name) > 1:
                raise InvalidArgumentError(
                    f"served_model_name {name!r} is given twice", field="served_model_name"
                )
        _check_counts(
            self,
            "max_num_batched_tokens",
            "max_num_seqs",
            "max_model_len",
            "num_micro_batches",
            "max_thinking_tokens",
            "max_num_waiting",
        )
        _check_seconds(self, "connect_timeout_s", "stage_wait_s")
        if self.draft_acceptance is not None and not 0 <= self.draft_acceptance <= 1:
            raise InvalidArgumentError(
                f"draft_acceptance is {self.draft_acceptance:g}, must be from 0 to 1",
                field="draft_acceptance",
            )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The servers of all stages."""
        return tuple(address for stage in self.stages for address in stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """Configuration of one coordinator process.

    Raises:
        InvalidArgumentError: A value is out of range; the error names the field.
    """

    clusters: tuple[ClusterConfig, ...]
    """Each model that is served, with its stages; at least one. Where there are several, each has
    names, and they have neither a name nor a server of a stage in common."""
    listen: Address = DEFAULT_LISTEN
    """HOST:PORT of GenerationService; port 0 takes a free one."""
    http_listen: Address | None = DEFAULT_HTTP_LISTEN
    """HOST:PORT of the HTTP API; port 0 takes a free one. None: there is none."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, beside localhost, by which clients call the HTTP API; `*` for any. The names are
    looked at where nobody needs a key on a loopback address, or where some are given."""
    cors_origins: tuple[str, ...] = ()
    """Origins of pages that may use the HTTP API, such as `https://chat.example`; `*` for all."""
    door_tls: TlsFiles | None = None
    """What it shows to clients, over gRPC and HTTP. None: plain text."""
    api_keys_file: Path | None = None
    """File of API keys, made by `coordinator-cli keys new`; clients have to show one of them."""
    api_keys: str | None = field(default=None, repr=False)
    """API keys as text, in place of a file. None of both: clients need no key."""
    max_requests_per_key: int | None = None
    """Most requests at once with one API key. None: a key has no limit of its own."""
    insecure_bind: bool = False
    """Listen where other machines can reach it even without TLS or keys."""
    drain_grace_s: float = 30.0
    """Seconds that running requests may go on after SIGTERM, Ctrl-C, or the end of the terminal."""
    metrics_listen: Address | None = None
    """HOST:PORT that Prometheus scrapes; port 0 takes a free one. None: no metrics are served."""
    otlp_endpoint: str | None = None
    """URL of an OpenTelemetry collector, http:// or https://. None: the standard `OTEL_*`
    environment decides."""

    def __post_init__(self) -> None:
        self._check_clusters()
        self._check_http()
        self._check_access()
        if self.otlp_endpoint is not None and not re.fullmatch(r"https?://\S+", self.otlp_endpoint):
            raise InvalidArgumentError(
                f"otlp_endpoint {self.otlp_endpoint!r} is not a URL, such as http://localhost:4317",
                field="otlp_endpoint",
            )
        _check_counts(self, "max_requests_per_key")
        _check_seconds(self, "drain_grace_s")

    @property
    def checks_hosts(self) -> bool:
        """True when the HTTP API answers only to names that are its own.

        A page of a foreign site can rebind its own name to a loopback address; nothing else keeps
        it away from a door that asks for no key.
        """
        if self.http_listen is None:
            return False
        is_local = is_loopback(self.http_listen.host)
        return bool(self.allowed_hosts) or (is_local and not self.needs_key)

    @property
    def needs_key(self) -> bool:
        """True when clients have to show an API key."""
        return self.api_keys is not None or self.api_keys_file is not None

    def _check_clusters(self) -> None:
        """Refuses models that cannot be told from each other, or that share a server."""
        assert self.clusters, "a coordinator serves something"
        if len(self.clusters) == 1:
            return
        names, addresses = set[str](), set[Address]()
        for index, cluster in enumerate(self.clusters):
            at = f"models[{index}]"
            assert cluster.served_model_names, "each of several models has a name"
            for name in cluster.served_model_names:
                if name in names:
                    raise InvalidArgumentError(
                        f"{at}.served_model_name {name!r} is of another model too",
                        field=f"{at}.served_model_name",
                    )
            for address in cluster.addresses:
                if address in addresses:
                    raise InvalidArgumentError(
                        f"{at}.stages: {address} is of another model too", field=f"{at}.stages"
                    )
            names.update(cluster.served_model_names)
            addresses.update(cluster.addresses)

    def _check_http(self) -> None:
        """Checks what the HTTP API answers to."""
        for host in self.allowed_hosts:
            if not re.fullmatch(r"\*|[\w.-]+|\[[0-9A-Fa-f:.]+\]", host):
                raise InvalidArgumentError(
                    f"allowed_host {host!r} is not the name of a host, without a port",
                    field="allowed_host",
                )
        for origin in self.cors_origins:
            if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise InvalidArgumentError(
                    f"cors_origin {origin!r} is not an origin, such as https://chat.example, or *",
                    field="cors_origin",
                )

    def _check_access(self) -> None:
        """Refuses doors that anyone in the network could come through."""
        if self.api_keys is not None and self.api_keys_file is not None:
            raise InvalidArgumentError(
                "api_keys_file is given beside STAGECOACH_API_KEYS: give one of them",
                field="api_keys_file",
            )
        if self.max_requests_per_key is not None and not self.needs_key:
            raise InvalidArgumentError(
                "max_requests_per_key needs API keys", field="max_requests_per_key"
            )
        wanted = {
            "--door-tls-cert and --door-tls-key": self.door_tls is not None,
            "--api-keys-file": self.needs_key,
        }
        missing = ", ".join(flags for flags, given in wanted.items() if not given)
        for name, address in (("listen", self.listen), ("http_listen", self.http_listen)):
            if address is not None:
                check_bind(
                    address.url_host,
                    what="the coordinator",
                    remedy=f"give {missing}" if missing else None,
                    insecure=self.insecure_bind,
                    field=name,
                )
        if self.metrics_listen is not None:
            check_bind(
                self.metrics_listen.url_host,
                what="the metrics port",
                remedy="it has neither TLS nor keys",
                insecure=self.insecure_bind,
                field="metrics_listen",
            )


def _check_counts(config: ClusterConfig | CoordinatorConfig, *names: str) -> None:
    """Refuses limits below 1; None is none."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InvalidArgumentError(f"{name} is {value}, must be at least 1", field=name)


def _check_seconds(config: ClusterConfig | CoordinatorConfig, *names: str) -> None:
    """Refuses times that are no times."""
    for name in names:
        seconds = getattr(config, name)
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InvalidArgumentError(
                f"{name} is {seconds}, must be a number of seconds from 0", field=name
            )


def parse_stages(texts: Iterable[str], *, field: str = "stage") -> tuple[tuple[Address, ...], ...]:
    """Reads the servers of each stage: HOST:PORT, several with commas between for replicas.

    Args:
        texts: One for each stage.
        field: What they were given as, for the error.

    Raises:
        InvalidArgumentError: One has another form.
    """
    return tuple(
        tuple(Address.parse(one.strip(), field=field) for one in text.split(",")) for text in texts
    )
