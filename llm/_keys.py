"""The built-in key store: the system's keyring where there is one, else a file that only its owner can read."""

import functools
import json
import os
import re
from collections.abc import Mapping
from typing import Final

from llm._state import locked, read_named, user_dir, write_atomically
from llm.errors import ConfigError, D0ttinoError

_SERVICE: Final = "d0ttino"
_SUFFIX: Final = "_API_KEY"
_NAME: Final = re.compile(r"(?!sk-)[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


def key_name(name: str) -> str:
    """Return the name of a key in stores: `openrouter` for that, and for `OPENROUTER_API_KEY`."""
    return name.removesuffix(_SUFFIX).lower() if name.isupper() else name


def variable_of(name: str) -> str:
    """Return the environment variable of a key: `WORK_API_KEY` for `work`; the name of a variable is its own."""
    if name.isupper():
        return name
    return re.sub(r"[^A-Z0-9]", "_", name.upper()) + _SUFFIX


def checked_name(name: str) -> str:
    """Return the name of a key in stores, or refuse it."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "this is not the name of a key",
            hint="give the name, not the key: at most 40 letters, digits, '_', '.' and '-'",
        )
    return key_name(name)


def checked_key(key: str, name: str) -> str:
    """Return a key without the blanks around it; errors call it `name`."""
    key = key.strip()
    if not key.isprintable() or max(key, default="") > "\xff":
        raise ConfigError(
            f"{name} holds a character that no API key can have",
            hint="copy the key again: line breaks and typographic characters are not part of it",
        )
    return key


def path(environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of the store, a JSON object with keys by name; `null`: the key is in the keyring."""
    return os.path.join(user_dir("config", environ), "keys.json")


def stored_names(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Return the names of the keys in the store; none if it cannot be read, which the use of a key reports."""
    try:
        return frozenset(_stored(path(environ)))
    except D0ttinoError:
        return frozenset()


def check_store() -> None:
    """Raise a `ConfigError` if the store cannot be used: it is damaged, not a file, or readable by other users."""
    _stored(path())


def stored_key(name: str) -> str | None:
    """Return a key of the store; `None`: there is no such key."""
    found = _stored(path())
    if name not in found:
        return None
    value = found[name]
    if value is not None:
        return value
    try:
        import keyring

        secret: str | None = keyring.get_password(_SERVICE, name)
    except Exception as error:  # noqa: BLE001 - its back ends raise anything
        raise D0ttinoError(
            f"the system's keyring did not return the key {name!r}: {error}",
            hint=f"unlock it, or set the key anew: `ai-cli keys set {name}`",
        ) from None
    return secret


def store_key(name: str, key: str) -> tuple[str, str | None]:
    """Store a key, and return its place for users, and why it is not in the system's keyring if that failed."""
    file = path()
    # Not within the lock, which blocks other processes: a keyring may prompt the user to unlock it.
    place, fault = _put_into_keyring(name, key)
    with locked(file, tidy=True):
        known = dict(_stored(file))
        was_in_keyring = known.get(name, "") is None
        known[name] = key if place is None else None
        write_atomically(file, json.dumps(known, indent=1, sort_keys=True).encode())
    if place is None and was_in_keyring:
        _delete_from_keyring(name)
    return f"in {place}" if place is not None else f"in {file}, which only you can read", fault


def remove_key(name: str) -> bool:
    """Remove a key from the store, and return whether it was there."""
    file = path()
    if name not in _stored(file):
        return False
    with locked(file, tidy=True):
        known = dict(_stored(file))
        was_in_keyring = known.pop(name, "") is None
        write_atomically(file, json.dumps(known, indent=1, sort_keys=True).encode())
    if was_in_keyring:
        _delete_from_keyring(name)
    return True


def is_in_keyring(name: str) -> bool:
    """Whether a key of the store is in the system's keyring, not in the file."""
    return _stored(path()).get(name, "") is None


def _delete_from_keyring(name: str) -> None:
    try:
        import keyring

        keyring.delete_password(_SERVICE, name)
    except Exception:  # noqa: BLE001 - out of reach, or removed already: the store has no such key either way
        return


def _put_into_keyring(name: str, key: str) -> tuple[str | None, str | None]:
    """Store a key in the system's keyring; return its name, or `None` and why it failed, if there is one."""
    try:
        import keyring
    except ImportError:
        return None, None
    try:
        ring = keyring.get_keyring()
        if ring.priority < 1:  # there is none, or it is not secure
            return None, None
        keyring.set_password(_SERVICE, name, key)
        return str(ring.name), None
    except Exception as error:  # noqa: BLE001 - its back ends raise anything
        return None, str(error) or type(error).__name__


def _stored(file: str) -> Mapping[str, str | None]:
    try:
        found = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    return _read(file, found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode & 0o077)


@functools.lru_cache(maxsize=2)
def _read(file: str, _mtime: int, _size: int, _inode: int, others: int) -> Mapping[str, str | None]:
    if others and os.name == "posix":
        raise ConfigError(f"other users can read the keys in {file}", hint=f"chmod 600 {file}")
    try:
        keys = json.loads(read_named(file))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError):
        keys = None
    if not isinstance(keys, dict) or not all(isinstance(key, str | None) for key in keys.values()):
        # Raised outside of the handler: the exception as its context would hold the file's content.
        raise ConfigError(f"{file} is damaged", hint="remove it, and set the keys again: `ai-cli keys set NAME`")
    return keys
