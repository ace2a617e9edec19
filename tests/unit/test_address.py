"""HOST:PORT is read once, by one grammar, and written back as it was."""

import pytest

from stagecoach.contract.address import Address
from stagecoach.contract.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051),
        ("localhost:0", "localhost", 0),
        ("stage-1.lan:65535", "stage-1.lan", 65535),
        ("my_box.lan.:1", "my_box.lan.", 1),
        ("bücher.lan:1", "bücher.lan", 1),
        (f"{63 * 'a'}:1", 63 * "a", 1),
        ("[::1]:50051", "::1", 50051),
        ("[::]:1", "::", 1),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("[fe80::1%br-lan]:1", "fe80::1%br-lan", 1),
    ],
)
def test_an_address_is_read_and_written_back(text: str, host: str, port: int) -> None:
    address = Address.parse(text, field="listen")
    assert address == (host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":50051",
        "host",
        "host:",
        "host:x",
        "host:65536",
        "::1:50051",
        "[::1]",
        "a b:1",
        "h:-1",
        "host:123456",
        "h\udcff:1",
        "h\0:1",
        "a..b:1",
        f"{64 * 'a'}:1",
    ],
)
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="HOST:PORT") as caught:
        Address.parse(text, field="listen")
    assert caught.value.field == "listen"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9400", "metrics_listen '9400' is not HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051"),
        ("::1:1", "metrics_listen '::1:1' is not HOST:PORT: put an IPv6 host in brackets"),
        ("127.0.0.1::5", "metrics_listen '127.0.0.1::5' is not HOST:PORT, such as 127.0.0.1:50051"),
        ("fe80::1", "metrics_listen 'fe80::1' is not HOST:PORT: put an IPv6 host in brackets"),
        ("h:65536", "metrics_listen 'h:65536' is not HOST:PORT: port is above 65535"),
        ("a..b:1", "metrics_listen 'a..b:1' is not HOST:PORT: no such host can be looked up"),
    ],
)
def test_a_refusal_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Address.parse(text, field="metrics_listen")
    assert caught.value.message.startswith(message)


def test_an_ipv6_host_has_brackets_in_a_url() -> None:
    assert Address("::1", 1).url_host == "[::1]"
    assert Address("localhost", 1).url_host == "localhost"
