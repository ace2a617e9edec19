"""API keys: how they are made, written down and recognized. Pure.

A key is 32 random bytes, so its plain SHA-256 cannot be turned back and needs no slow hash. Lists
hold one key a line, `NAME:KEY` or `NAME:sha256:HEX`; empty lines and those with `#` are left out.
"""

import hmac
import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from stagecoach.contract.errors import InvalidArgumentError, UnauthenticatedError

KEY_PREFIX = "stagecoach-"
"""So that people and secret scanners see what it is."""
MIN_KEY_CHARS = 16
MAX_KEY_CHARS = 256
MAX_KEYS = 10_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_KEY = re.compile(rf"[\x21-\x39\x3b-\x7e]{{{MIN_KEY_CHARS},{MAX_KEY_CHARS}}}")
"""Printable ASCII without blanks and colons: what a header carries as it is."""


class NewKey(NamedTuple):
    """A key that was just made. Only its owner ever sees `key`."""

    name: str
    key: str
    line: str
    """What stands in the list of keys."""

    def __repr__(self) -> str:
        """Without the key."""
        return f"NewKey(name={self.name!r})"


def new_key(name: str) -> NewKey:
    """Makes a key.

    Args:
        name: Name of the key's owner: up to 64 letters, digits, dots, hyphens, underscores and
            at signs.

    Raises:
        InvalidArgumentError: The name has another form.
    """
    _check_name(name)
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return NewKey(name, key, f"{name}:sha256:{_digest(key).hex()}")


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys that are good, as digests."""

    digests: tuple[tuple[str, bytes], ...]
    """Name and SHA-256 of each, in the order of the list."""

    @classmethod
    def parse(cls, text: str, *, source: str) -> "ApiKeys":
        """Reads a list.

        Args:
            text: The list.
            source: Where it is from, for errors.

        Raises:
            InvalidArgumentError: A line has another form, a name or key is there twice, or there
                is no key. The message names the line, and never what stands in it.
        """
        digests: dict[str, bytes] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            where = f"{source} line {number}"
            name, _, rest = line.partition(":")
            known = _DIGEST.fullmatch(rest)
            # A name that is none may be a key whose name was forgotten: nothing is shown.
            if _NAME.fullmatch(name) is None or not (known or _KEY.fullmatch(rest)):
                raise InvalidArgumentError(
                    f"{where} is neither NAME:KEY with a key of {MIN_KEY_CHARS} to "
                    f"{MAX_KEY_CHARS} printable characters nor NAME:sha256:HEX",
                    field="api_keys",
                )
            digest = bytes.fromhex(known[1]) if known else _digest(rest)
            if name in digests or digest in digests.values():
                raise InvalidArgumentError(
                    f"{where} repeats a name or a key of an earlier line", field="api_keys"
                )
            digests[name] = digest
            if len(digests) > MAX_KEYS:
                raise InvalidArgumentError(
                    f"{source} has more than {MAX_KEYS} keys", field="api_keys"
                )
        if not digests:
            raise InvalidArgumentError(
                f"{source} holds no key; `coordinator-cli keys new` makes one", field="api_keys"
            )
        return cls(tuple(digests.items()))

    def owner_of(self, key: str) -> str | None:
        """Names the owner of a key, or None.

        Compares with every key, each in constant time, so that the time tells nothing about how
        much of a guess is right or which key it is near to.
        """
        wanted = _digest(key)
        owner = None
        for name, digest in self.digests:
            if hmac.compare_digest(digest, wanted):
                owner = name
        return owner


def bearer(authorization: str | None) -> str:
    """Reads the key from the value of an `authorization` header.

    Raises:
        UnauthenticatedError: There is none, or it has another form.
    """
    if authorization is None:
        raise UnauthenticatedError(
            "an API key is needed: send the header `authorization: Bearer KEY`; for commands, set"
            " STAGECOACH_API_KEY"
        )
    scheme, _, key = authorization.partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key or len(key) > MAX_KEY_CHARS:
        raise UnauthenticatedError("the authorization header is not `Bearer KEY`")
    return key


def _digest(key: str) -> bytes:
    return sha256(key.encode(errors="surrogatepass")).digest()


def _check_name(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"name {name[:80]!r} is not 1 to 64 letters, digits and . - _ @", field="name"
        )
