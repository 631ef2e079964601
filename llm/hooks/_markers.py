"""The two pluggy markers of this project."""

import functools
from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

from pluggy import HookimplMarker, HookspecMarker

#: The pluggy project name. It is part of an attribute set on marked functions, so it must not be
#: one that another project uses too; `llm` would be.
PROJECT_NAME: Final = "d0ttino"

#: Every hook's name starts with this; `PluginManager` looks at no other attribute of a plug-in.
HOOK_PREFIX: Final = "llm_"

#: The attribute in which pluggy keeps the options of a hook implementation.
HOOKIMPL_ATTRIBUTE: Final = f"{PROJECT_NAME}_impl"

Function = TypeVar("Function", bound=Callable[..., Any])

hookspec = HookspecMarker(PROJECT_NAME)


class ImplementationMarker:
    """Marks hook implementations: `@hookimpl` by the function's name, `@hookimpl.llm_prepare` by that of the hook.

    Type checkers know the hook in the second form, and check the function's arguments and its result: a decorator is
    not given the name of what it decorates. Their types are in `llm/_hookimpl.pyi`.
    """

    def __init__(self, project_name: str) -> None:
        self._mark = HookimplMarker(project_name)

    @overload
    def __call__(self, function: Function, **options: bool | str) -> Function: ...
    @overload
    def __call__(self, function: None = None, **options: bool | str) -> Callable[[Function], Function]: ...
    def __call__(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Mark a function, or return the decorator that marks one with pluggy's options."""
        return self._mark(function, **options)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith(HOOK_PREFIX):
            raise AttributeError(f"a hook's name begins with {HOOK_PREFIX!r}: there is none named {name!r}")
        return functools.partial(self._mark, specname=name)


hookimpl: Final = ImplementationMarker(PROJECT_NAME)
