"""The two pluggy markers of this project."""

from typing import Final

from pluggy import HookimplMarker, HookspecMarker

#: The pluggy project name. It is part of an attribute set on marked functions, so it must not be
#: one that another project uses too; `llm` would be.
PROJECT_NAME: Final = "d0ttino"

#: Every hook's name starts with this; `PluginManager` looks at no other attribute of a plug-in.
HOOK_PREFIX: Final = "llm_"

#: The attribute in which pluggy keeps the options of a hook implementation.
HOOKIMPL_ATTRIBUTE: Final = f"{PROJECT_NAME}_impl"

hookspec = HookspecMarker(PROJECT_NAME)
hookimpl = HookimplMarker(PROJECT_NAME)
