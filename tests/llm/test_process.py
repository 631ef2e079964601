"""The host of a process: programs that register without an entry point, before or after."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from llm.testing import write_distribution

pytestmark = pytest.mark.e2e


def run_program(source: str, path: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(path)} if path else None
    return subprocess.run(
        [sys.executable, "-c", dedent(source)], capture_output=True, text=True, check=check, env=environ
    )


def test_a_program_registers_before_and_after_the_host_was_made() -> None:
    result = run_program(
        """
        from llm import send_prompt
        from llm.backends.plugin_sdk import register_backend
        register_backend("early", lambda prompt: "early " + prompt)
        print(send_prompt("a", backend="early"))
        register_backend("late", lambda prompt: "late " + prompt)
        print(send_prompt("b", backend="late"))
        """
    )
    assert result.stdout == "early a\nlate b\n"


def test_a_program_wins_over_installed_and_builtin_plugins_whenever_it_registers(tmp_path: Path) -> None:
    write_distribution(
        tmp_path,
        "third-party",
        entry_points={"llm.plugins": {"sample": "third:run", "other": "third:run"}},
        files={"third.py": "def run(prompt): return 'third party'"},
    )
    result = run_program(
        """
        from llm import current_host, send_prompt
        from llm.backends.plugin_sdk import register_backend
        register_backend("sample", lambda prompt: "program")
        print(send_prompt("x", backend="sample"))
        register_backend("other", lambda prompt: "program too")
        print(send_prompt("x", backend="other"))
        host = current_host()
        print([str(info.origin) for info in host.backends().shadowed["sample"]])
        print(list(host.problems))
        """,
        tmp_path,
    )
    assert result.stdout.splitlines() == [
        "program",
        "program too",
        "['backend:sample@third-party (third-party 1.0)', 'backend:sample (built in)']",
        "[]",
    ]


@pytest.mark.parametrize("make_host_first", [True, False])
def test_a_program_that_registers_a_name_twice_is_told(make_host_first: bool) -> None:
    result = run_program(
        f"""
        from llm import current_host
        from llm.backends.plugin_sdk import register_backend
        if {make_host_first}: current_host()
        register_backend("x", lambda prompt: "1")
        try:
            register_backend("x", lambda prompt: "2")
        except ValueError as error:
            print(type(error).__name__, error)
        """
    )
    assert result.stdout == "NameTakenError module __main__ registers the backend 'x' twice\n"


def test_two_modules_of_a_program_cannot_have_the_same_name(tmp_path: Path) -> None:
    registration = "from llm.backends.plugin_sdk import register_backend\nregister_backend('x', lambda prompt: '')\n"
    (tmp_path / "one.py").write_text(registration)
    (tmp_path / "two.py").write_text(registration)
    program = """
        from llm import current_host
        from llm.errors import NameTakenError
        current_host()
        import one
        try:
            import two
        except NameTakenError as error:
            print(error)
        """
    result = run_program(program, tmp_path)
    assert "backend 'x' is registered already, by backend:x (this program, module one)" in result.stdout


def test_a_function_that_is_defined_anew_replaces_the_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "mod.py").write_text(
        "from llm.backends.plugin_sdk import register_backend\nimport time\nstamp = time.perf_counter_ns()\n"
        "def run(prompt): return str(stamp)\nregister_backend('x', run)\n"
    )
    program = """
        import importlib, mod
        from llm import send_prompt
        first = send_prompt("hi", backend="x")
        importlib.reload(mod)
        second = send_prompt("hi", backend="x")
        print(first != second, second == str(mod.stamp))
        """
    assert run_program(program, tmp_path).stdout == "True True\n"


def test_a_plugin_module_imported_by_the_program_first_belongs_to_its_distribution(tmp_path: Path) -> None:
    write_distribution(
        tmp_path,
        "third-party",
        entry_points={"llm.plugins": {"mine": "third.plugins:backend"}},
        files={
            "third/__init__.py": "",
            "third/plugins/__init__.py": "",
            "third/plugins/backend.py": (
                "from llm.backends.plugin_sdk import register_backend\nregister_backend('mine', str.upper)"
            ),
        },
    )
    program = """
        import third.plugins.backend
        from llm import Request, complete, current_host
        print(complete(Request("hi", backend="mine")).distribution, len(list(current_host().problems)))
        """
    assert run_program(program, tmp_path).stdout == "third-party 0\n"


def test_a_plugin_that_uses_the_host_while_it_is_imported_is_named(tmp_path: Path) -> None:
    write_distribution(
        tmp_path,
        "eager",
        entry_points={"llm.plugins": {"eager": "eager"}},
        files={"eager.py": "from llm import send_prompt\nsend_prompt('hi')"},
    )
    program = """
        from llm import current_host
        for problem in current_host().problems: print(problem)
        """
    stdout = run_program(program, tmp_path).stdout
    assert "eager (eager 1.0)" in stdout
    assert "while it is being imported" in stdout


def test_importing_the_package_imports_nothing_else() -> None:
    program = """
        import sys
        import llm
        print(sorted(name for name in sys.modules if name.startswith(("llm", "pluggy", "requests", "click"))))
        """
    assert run_program(program).stdout == "['llm']\n"


def test_every_public_name_exists() -> None:
    import llm

    for name in llm.__all__:
        assert getattr(llm, name) is not None
    assert set(llm.__all__) <= set(dir(llm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(llm, "nothing")  # noqa: B009


@pytest.mark.parametrize("make_host_first", [True, False])
def test_a_name_is_free_again_when_its_plugin_was_unregistered(make_host_first: bool) -> None:
    program = f"""
        from llm import current_host, send_prompt
        from llm.backends.plugin_sdk import register_backend
        if {make_host_first}: current_host()
        register_backend("x", lambda prompt: "1")
        current_host().unregister(name="backend:x")
        register_backend("x", lambda prompt: "2")
        print(send_prompt("hi", backend="x"))
        """
    assert run_program(program).stdout == "2\n"


def test_a_blocked_plugin_stays_out_when_the_program_imports_it(tmp_path: Path) -> None:
    write_distribution(
        tmp_path,
        "third-party",
        entry_points={"llm.plugins": {"mine": "third"}},
        files={"third.py": "from llm.backends.plugin_sdk import register_backend\nregister_backend('mine', str.upper)"},
    )
    program = """
        import os
        os.environ["LLM_DISABLE_PLUGINS"] = "mine"
        from llm import current_host
        current_host()
        import third
        print("mine" in current_host().backends())
        """
    assert run_program(program, tmp_path).stdout == "False\n"
