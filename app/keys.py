"""API keys: who may ask, when the operator gave a file of keys."""

import hmac
from pathlib import Path

from starlette.datastructures import Headers

from app.errors import SettingsError, UnauthorizedError


class ApiKeys:
    """The keys of a file, one a line; empty lines and lines that start with # are skipped."""

    def __init__(self, keys: list[str]) -> None:
        self._keys = [key.encode() for key in keys]

    @classmethod
    def read(cls, path: Path) -> "ApiKeys":
        """Raises: SettingsError when the file cannot be read or holds no key."""
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"CONVSERVE_API_KEYS_FILE={path} cannot be read: {error}") from error
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise SettingsError(f"CONVSERVE_API_KEYS_FILE={path} holds no key: write one key per line")
        return cls(keys)

    def check(self, headers: Headers) -> None:
        """Takes `X-API-Key: KEY` or `Authorization: Bearer KEY`. Raises: UnauthorizedError."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = (headers.get("x-api-key") or (token if scheme.lower() == "bearer" else "")).encode("latin-1")
        # Every key is compared, each in constant time, so that timing tells nothing.
        if not sum(hmac.compare_digest(given, key) for key in self._keys):
            raise UnauthorizedError("send a valid key as X-API-Key or as Authorization: Bearer")
