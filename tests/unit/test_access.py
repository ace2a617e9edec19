"""API keys: how they are written down, recognized and watched; and who shares what."""

import hmac
from pathlib import Path
from typing import Any

import pytest

from coordinator.core.request_spec import MAX_CACHE_SALT_CHARS
from coordinator.doors.access import api_key
from coordinator.doors.access.api_key import ApiKeys, bearer, new_key
from coordinator.doors.access.caller_engine import salt_of
from coordinator.doors.access.callers import Caller, Callers
from stagecoach.contract.errors import InvalidArgumentError, UnauthenticatedError
from stagecoach.security.private_file import write_private

PLAIN = "0123456789abcdef"


def test_a_new_key_is_known_by_its_line_and_not_shown_in_it() -> None:
    made = new_key("alice")
    keys = ApiKeys.parse(made.line, source="test")
    assert keys.owner_of(made.key) == "alice"
    assert made.key not in made.line
    assert made.key not in repr(made)
    assert new_key("alice").key != made.key


def test_a_list_has_comments_hashes_and_plain_keys() -> None:
    made = new_key("bob@box-1.lan")
    keys = ApiKeys.parse(f"# ours\n\n alice:{PLAIN} \n{made.line}\n", source="test")
    assert keys.owner_of(PLAIN) == "alice"
    assert keys.owner_of(made.key) == "bob@box-1.lan"
    assert keys.owner_of(PLAIN.upper()) is None
    assert keys.owner_of("") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        PLAIN,
        f":{PLAIN}",
        "alice:short",
        f"alice:{'x' * 257}",
        f"alice:{PLAIN} {PLAIN}",
        f"alice:{PLAIN}é",
        f"a b:{PLAIN}",
        f"{'a' * 65}:{PLAIN}",
        f"alice:sha256:{'0' * 63}",
        f"alice:{PLAIN}\nalice:{PLAIN}x",
        f"alice:{PLAIN}\nbob:{PLAIN}",
    ],
)
def test_any_other_list_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ApiKeys.parse(text, source="test")
    assert caught.value.field == "api_keys"
    assert PLAIN not in caught.value.message


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Any] = []

    class Hmac:
        @staticmethod
        def compare_digest(one: bytes, other: bytes) -> bool:
            compared.append((len(one), len(other)))
            return hmac.compare_digest(one, other)

    keys = ApiKeys.parse(f"a:{PLAIN}\nb:{PLAIN}b\nc:{PLAIN}c\n", source="test")
    monkeypatch.setattr(api_key, "hmac", Hmac)
    for guess in (PLAIN, "x", "x" * 200):
        compared.clear()
        keys.owner_of(guess)
        assert compared == [(32, 32)] * 3


@pytest.mark.parametrize(
    ("header", "key"),
    [("Bearer k", "k"), ("bearer  k ", "k"), ("BEARER k", "k"), ("Bearer Kk", "Kk")],
)
def test_a_bearer_header_is_read(header: str, key: str) -> None:
    assert bearer(header) == key


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic k", "k", "Bearer " + 257 * "k"]
)
def test_any_other_header_is_refused(header: str | None) -> None:
    with pytest.raises(UnauthenticatedError):
        bearer(header)


def test_a_damaged_list_leaves_the_keys_before_it_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    write_private(file, f"alice:{PLAIN}\n".encode())
    callers = Callers.of_file(file)
    for content in (b"secret without a name", b"\xff\xfe", b""):
        write_private(file, content, overwrite=True)
        assert callers.authenticate(f"Bearer {PLAIN}") == Caller("alice")
        assert "the new API keys are not taken" in caplog.text
        assert "secret" not in caplog.text
        caplog.clear()
    file.unlink()
    assert callers.authenticate(f"Bearer {PLAIN}") == Caller("alice")
    write_private(file, f"bob:{PLAIN}\n".encode())
    assert callers.authenticate(f"Bearer {PLAIN}") == Caller("bob")


def test_a_list_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice:{PLAIN}\n")
    file.chmod(0o644)
    with pytest.raises(InvalidArgumentError, match="chmod 600"):
        Callers.of_file(file)


def test_salts_of_two_callers_never_meet() -> None:
    callers = [Caller("a"), Caller("b"), Caller("a.b")]
    wanted = [None, "", "a", "b", "a:b", "\ud800", "x" * MAX_CACHE_SALT_CHARS]
    salts = [salt_of(caller, salt) for caller in callers for salt in wanted]
    assert len(set(salts)) == len(salts)
    assert all(1 <= len(salt) <= MAX_CACHE_SALT_CHARS for salt in salts)
    assert salt_of(Caller("a"), "x") == salt_of(Caller("a"), "x")
