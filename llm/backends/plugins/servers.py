"""The user's servers: a backend for each `[servers.NAME]` of the configuration, and the stored keys."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from llm._state import user_dir
from llm.hooks._guard import hookimpl

if TYPE_CHECKING:
    from llm.contributions import Backend

#: What this plug-in contributes depends on the configuration, so no manifest can stand for it.
CONFIG_DECIDES: Final = True


@hookimpl
def llm_backends() -> "list[Backend]":
    """Return a backend for each server; without a configuration file nothing is imported for it."""
    place = user_dir("config")
    files = (os.path.join(place, name) for name in ("config.toml", "config.json"))
    if not os.environ.get("LLM_CONFIG_PATH") and not any(map(os.path.exists, files)):
        return []
    from llm.config import load_settings

    return [server_backend(name, server) for name, server in load_settings().servers.items()]


@hookimpl(trylast=True)
def llm_key(name: str) -> str | None:
    """Return a key of the system's keyring, or of the user's file; the stores of other plug-ins come first."""
    from llm._keys import stored_key

    return stored_key(name)


def server_backend(name: str, server: Mapping[str, Any]) -> "Backend":
    """Return the backend for a `[servers.NAME]` that conforms to `config.schema.json`."""
    from urllib.parse import urlsplit

    from llm._keys import key_name, variable_of
    from llm.backends.http import ChatCompletionsBackend, is_on_this_machine

    address = server["base_url"].rstrip("/")
    variable = variable_of(server["api_key"]) if "api_key" in server else ""
    model = server.get("model")
    return ChatCompletionsBackend(
        name,
        description=f"{model or 'any model'} at {urlsplit(address).netloc.rpartition('@')[2]}",
        models=(model,) if model else (),
        local=server.get("local", is_on_this_machine(address)),
        ready_env=(variable,) if variable else (),
        secret_env=(variable,) if variable else (),
        label=f"the server {name!r}",
        base_url_key=f"servers.{name}.base_url",
        default_base_url=address,
        api_key_env=variable,
        api_key_name=key_name(server["api_key"]) if variable else "",
        api_key_required=bool(variable),
        default_model=model,
        key_header=server.get("key_header", "Authorization"),
        key_prefix="" if "key_header" in server else "Bearer ",
        client_cert=_certificate(server),
        fixed_headers=server.get("headers", {}),
        fixed_options=server.get("options", {}),
        total_timeout=server.get("timeout"),
        requests_per_minute=server.get("rpm"),
        tokens_per_minute=server.get("tpm"),
    )


def _certificate(server: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the files of a certificate and of its key."""
    if "client_cert" not in server:
        return None
    return server["client_cert"], server.get("client_key", server["client_cert"])
