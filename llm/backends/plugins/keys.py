"""The built-in key store as a plug-in, asked after those of other plug-ins."""

from llm.hooks._guard import hookimpl


@hookimpl(trylast=True)
def llm_key(name: str) -> str | None:
    """Return a key of the system's keyring, or of the user's file."""
    from llm._keys import stored_key

    return stored_key(name)
