"""Who owns a registration, and what is left of a plug-in that fails half-way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm.hooks import Tier
from llm.hooks._entrypoints import EntryPoint
from llm.hooks._manager import Registration, owner_of
from llm.testing import installed
from tests.llm.hooks.test_loading import BACKENDS, RECIPES, ask, failures, write
from tests.llm.hooks.test_order import known, learn


def entry(name: str, value: str, distribution: str = "d", group: str = BACKENDS, tier: Tier = Tier.ENTRY_POINT) -> Any:
    return EntryPoint(distribution, group, name, value, "1.0", tier=tier)


def made(module: str, name: str = "made", during: EntryPoint | None = None) -> Registration:
    return Registration("backend", name, object(), str.upper, module, during, 0)


A, B, A_RECIPE = entry("a", "pkg"), entry("b", "pkg"), entry("a", "pkg", group=RECIPES)
DEEP, DEEPER = entry("deep", "pkg.sub"), entry("deeper", "pkg.sub:mod")
ELSEWHERE = entry("elsewhere", "other", "e")
OWN = entry("own", "pkg", "d0ttino", "", Tier.BUILTIN)


@pytest.mark.parametrize(
    ("registration", "entries", "owner"),
    [
        # The longest prefix that an entry point names, a submodule named as an attribute among them.
        (made("pkg"), [A, DEEP, DEEPER], A),
        (made("pkg.other"), [A, DEEP, DEEPER], A),
        (made("pkg.sub"), [A, DEEP, DEEPER], DEEP),
        (made("pkg.sub.mod"), [A, DEEP, DEEPER], DEEPER),
        (made("pkg.sub.mod.inner"), [DEEPER, DEEP, A], DEEPER),
        (made("pkg.submarine"), [A, DEEP], A),
        (made("pkgs"), [A, DEEP], None),
        # Two entry points of one module: the one of its name, else the one that is being imported, else the first.
        (made("pkg", "b"), [A, B], B),
        (made("pkg", "b", during=A), [A, B], B),
        (made("pkg", "c", during=B), [A, B], B),
        (made("pkg", "c", during=A), [A, B], A),
        (made("pkg", "c"), [A, B], A),
        (made("pkg", "c"), [B, A], B),
        # Of two that have its name, the one of the first group, whichever is being imported.
        (made("pkg", "a"), [A, A_RECIPE], A_RECIPE),
        (made("pkg", "a", during=A), [A_RECIPE, A], A_RECIPE),
        # This project's own modules stay its own.
        (made("pkg", "a", during=A), [A, OWN], OWN),
        # A module that no entry point names: whoever is being imported.
        (made("helper", during=B), [A, B], B),
        (made("helper", during=ELSEWHERE), [A, B], None),
        (made("helper"), [A, B], None),
        # The module decides before the import that happens to run it.
        (made("pkg", "c", during=ELSEWHERE), [A, ELSEWHERE], A),
    ],
)
def test_the_owner_of_a_registration(
    registration: Registration, entries: Sequence[EntryPoint], owner: EntryPoint | None
) -> None:
    assert owner_of(registration, entries) == owner


def test_two_entry_points_of_one_module_own_what_has_their_name(tmp_path: Path) -> None:
    source = """
    from llm.backends.plugin_sdk import register_backend
    for name in ("c", "b", "a"):
        register_backend(name, lambda prompt: "")
    """
    write(tmp_path, {BACKENDS: {"a": "three", "b": "three"}}, three=source)
    learn(tmp_path)
    expected = {"a": f"{BACKENDS}: a = three", "b": f"{BACKENDS}: b = three", "c": f"{BACKENDS}: a = three"}
    for make in (installed, known):
        with make(tmp_path) as host:
            assert {name: host.backends()[name].origin.entry_point for name in "abc"} == expected
            assert list(host.problems) == []


def test_of_an_entry_point_whose_second_plugin_is_faulty_nothing_is_left(tmp_path: Path) -> None:
    # the module registers two backends, and has a hook implementation with a mistake
    source = """
    from llm.backends.plugin_sdk import hookimpl, register_backend
    register_backend("first", lambda prompt: "")
    register_backend("taken", lambda prompt: "")
    @hookimpl
    def llm_prepare(promt): ...
    """
    write(tmp_path, {BACKENDS: {"half": "half"}}, name="half-dist", half=source)
    write(tmp_path, {BACKENDS: {"good": "good:run"}}, name="good-dist", good="def run(prompt): return 'fine'")
    with installed(tmp_path) as host:
        assert {"first", "taken"}.isdisjoint(host.backends())
        assert [name for name, _ in host.list_name_plugin() if "first" in name or "taken" in name] == []
        (problem,) = failures(host)
        assert (problem.origin.distribution, "asks for 'promt'" in problem.message) == ("half-dist", True)
        assert ask(host, "good").text == "fine"


def test_one_that_fails_at_its_last_registration_is_rolled_back(tmp_path: Path) -> None:
    # Its plug-ins are registered one by one; the last is of a name that a program took away before.
    source = """
    from llm.backends.plugin_sdk import register_backend
    register_backend("first", lambda prompt: "")
    register_backend("middle", lambda prompt: "")
    register_backend("second", lambda prompt: "")
    """
    write(tmp_path, {BACKENDS: {"half": "half"}}, name="half-dist", half=source)
    with installed(tmp_path) as found:
        import half  # type: ignore[import-not-found]

        second = half.__d0ttino_registrations__["backend:second"]
        host = type(found)()
        host.register(second.plugin, "somebody else's")
        host.load_plugins(found.entries)
        for name in ("first", "middle"):
            assert name not in host.backends()
            assert not host.has_plugin(f"backend:{name}")
        assert host.has_plugin("somebody else's")
        (problem,) = failures(host)
        assert "registered already, by somebody else's" in problem.message


def test_one_that_contributes_nothing_is_reported_beside_another_of_its_distribution(tmp_path: Path) -> None:
    works = "from llm.backends.plugin_sdk import register_backend\nregister_backend('works', str.upper)"
    write(tmp_path, {BACKENDS: {"empty": "empty", "works": "works"}}, name="two-dist", empty="x = 1", works=works)
    with installed(tmp_path) as host:
        assert ask(host, "works").text == "HI"
        (problem,) = failures(host)
        assert (problem.origin.plugin, "contributes nothing" in problem.message) == ("empty", True)


def test_one_that_fails_leaves_its_names_to_others(tmp_path: Path) -> None:
    failing = "from llm.backends.plugin_sdk import register_backend\nregister_backend('x', str.upper)\n1 / 0"
    write(tmp_path, {BACKENDS: {"a": "a_mod"}}, name="a-dist", a_mod=failing)
    write(tmp_path, {RECIPES: {"b": "b_mod"}}, name="b-dist", b_mod=failing.partition("1 /")[0])
    with installed(tmp_path) as host:
        assert host.backends()["x"].origin.distribution == "b-dist"
        assert host.backends().shadowed == {}
        assert [problem.origin.distribution for problem in host.problems] == ["a-dist"]
