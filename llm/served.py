"""Whether the model that a server says it used is the one that was asked for."""

import re
from typing import Final

#: Names that leave the choice to the server.
_ANY: Final = frozenset({"auto", "default"})
#: What servers add to the name of a model: the version that the name stands for at the time.
_VERSION: Final = re.compile(r"[-@:.]v?\d[\d.@:-]*$")


def is_served(asked: str | None, served: str | None) -> bool:
    """Whether a served model is the one asked for, or one that it stands for.

    `gpt-4o` stands for `gpt-4o-2024-08-06`, `vendor/m:free` for `vendor/m`, `m-latest` for `m-2503`, and
    `openrouter/auto` for any.

    Args:
        asked: the model asked for; `None`: any.
        served: the model that the server says it used; `None`: it does not say.

    """
    if asked is None or served is None or asked == served or leaves_choice(asked):
        return True
    wanted, got = _plain(asked), _plain(served)
    if "/" not in wanted or "/" not in got:
        wanted, got = wanted.rpartition("/")[2], got.rpartition("/")[2]
    return wanted == got or wanted == _VERSION.sub("", got)


def leaves_choice(asked: str) -> bool:
    """Whether the name of a model leaves the choice to the server, as `openrouter/auto` does."""
    return asked.rpartition("/")[2].casefold() in _ANY


def _plain(model: str) -> str:
    name = model.casefold().partition(":")[0] if "/" in model else model.casefold()
    return name.removesuffix("-latest")
