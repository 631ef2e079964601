"""The table of built-in plug-ins says what their modules register."""

import importlib

import pytest
from llm.hooks.declarations import declared_in
from llm.hooks.lazy import Deferred
from llm.hooks.learned import Declared, Learned
from llm.shims import revive

from llm.hooks._origin import Origin, Tier
from llm.host import BUILTINS, Host


@pytest.mark.parametrize("module_name", BUILTINS)
def test_the_table_says_what_the_module_brings(module_name: str) -> None:
    host, module = Host(), importlib.import_module(module_name)
    origin = Origin(module_name, Tier.BUILTIN, module=module_name)
    brought = [declaration.plugin(origin).manifest() for declaration in declared_in(vars(module))]
    implemented = Boundary(module, origin, host.contracts, host.problems).manifest()
    assert brought == [completed(one, origin) for one in BUILTINS[module_name].declared]
    assert [(one.attribute, one.hook) for one in implemented] == hooks(BUILTINS[module_name])
    for one, told in zip(implemented, BUILTINS[module_name].implementations, strict=True):
        assert {name for name, value in one.options.items() if value is True} == set(told.options)


def completed(declared: Declared, origin: Origin) -> object:
    """Return what the table says, with the fields that it leaves out."""
    return revive(declared, origin, Deferred(lambda: print)).manifest()


def hooks(learned: Learned) -> list[tuple[str, str]]:
    return [(one.attribute, one.hook) for one in learned.implementations]
