"""API keys: who may ask, when the operator gave a file of keys. It holds their SHA-256, never the keys.

Keys are random (docs/security.md says how to make one), so no list of likely ones finds them, and one round of it is enough.
"""

import hashlib
import hmac
import logging
import re
import time
from pathlib import Path

from starlette.datastructures import Headers

from app.errors import SettingsError, UnauthorizedError

log = logging.getLogger("convserve")

READ_SECONDS = 1.0
_LINE = re.compile(r"([A-Za-z0-9._@-]{1,64})\s+sha256:([0-9a-f]{64})")


class ApiKeys:
    """The keys of a file, `NAME sha256:HEX` a line; empty lines and lines that start with # are skipped.

    A file that changed is read again within a second, at the next request; one that cannot be used changes nothing.
    """

    def __init__(self, path: Path) -> None:
        """Raises: SettingsError when the file cannot be read, or holds no key or another kind of line."""
        self._path, self._keys, self._trouble, self._read_at = path, _read(path), "", time.monotonic()

    def check(self, headers: Headers) -> str:
        """The name of the key in `X-API-Key: KEY` or `Authorization: Bearer KEY`. Raises: UnauthorizedError."""
        if time.monotonic() - self._read_at > READ_SECONDS:
            self._read_again()
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (token if scheme.lower() == "bearer" else "")
        digest = hashlib.sha256(given.encode("latin-1")).hexdigest()
        # Every key is compared, each in constant time, so that timing tells nothing.
        names = [name for name, key in self._keys if hmac.compare_digest(digest, key)]
        if not names:
            raise UnauthorizedError("send a valid key as X-API-Key or as Authorization: Bearer")
        return names[0]

    def _read_again(self) -> None:
        before = self._keys, self._trouble
        self._read_at = time.monotonic()
        try:
            self._keys, self._trouble = _read(self._path), ""
        except SettingsError as error:
            self._trouble = f", the old ones hold: {error}"
        if (self._keys, self._trouble) != before:
            log.log(logging.ERROR if self._trouble else logging.INFO, "API keys read again%s", self._trouble)


def _read(path: Path) -> list[tuple[str, str]]:
    """Names and digests. No error tells what a line says: it may be a key."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"CONVSERVE_API_KEYS_FILE={path} cannot be read: {type(error).__name__}") from error
    found = [(number, _LINE.fullmatch(line)) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if wrong := [number for number, match in found if match is None]:
        raise SettingsError(f"CONVSERVE_API_KEYS_FILE={path}: line {wrong[0]} is not NAME sha256:HEX, see docs/security.md")
    if not found:
        raise SettingsError(f"CONVSERVE_API_KEYS_FILE={path} holds no key: write NAME sha256:HEX, see docs/security.md")
    return [(match[1], match[2]) for _, match in found if match]
