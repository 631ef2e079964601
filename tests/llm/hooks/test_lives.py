"""The life of a plug-in (configured before its first hook, closed at the end), and guardrails that fail closed."""

import threading
from pathlib import Path
from typing import Any

import pytest

from llm import hookimpl
from llm.backends.plugin_sdk import Backend
from llm.config import Settings, load_settings
from llm.errors import ConfigError, NameTakenError, PluginLoadError
from llm.hooks import origin_of
from llm.hooks._entrypoints import Blocking
from llm.hooks._manifest import Manifests
from llm.host import Host
from llm.router import NoAnswerError, complete
from llm.testing import host_with
from llm.types import Request, Step, StepContext
from tests.llm.hooks.test_loading import BACKENDS, write
from tests.llm.hooks.test_order import known, learn


class Lives:
    """Records what happens to it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.fault: BaseException | None = None

    @hookimpl
    def llm_configure(self, settings: Any) -> None:
        self.seen.append(("configure", dict(settings.section)))
        if self.fault is not None:
            raise self.fault

    @hookimpl
    def llm_backends(self) -> Backend:
        self.seen.append("backends")
        return Backend("mine", self.run)

    def run(self, prompt: str) -> str:
        self.seen.append("run")
        return "answer"

    @hookimpl
    def llm_completed(self) -> None:
        self.seen.append("completed")

    @hookimpl
    def llm_close(self) -> None:
        self.seen.append("close")


@pytest.fixture
def configured(clean_environment: Path) -> Any:
    def write_config(text: str) -> Path:
        path = clean_environment / ".config" / "d0ttino" / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        load_settings()
        return path

    return write_config


def with_plugin(plugin: object, name: str = "mine") -> Host:
    host = host_with()
    host.register(plugin, name)
    return host


def test_it_is_configured_once_before_its_first_hook_with_its_own_section(configured: Any) -> None:
    configured("[plugins.mine]\nlevel = 3\n[plugins.other]\nlevel = 4\n")
    plugin = Lives()
    host = with_plugin(plugin)
    assert plugin.seen == []
    for _ in range(2):
        assert complete(Request("hi", backend="mine"), host=host).text == "answer"
    assert plugin.seen == [("configure", {"level": 3}), "backends", "run", "completed", "run", "completed"]
    host.close()
    host.close()
    assert plugin.seen[6:] == ["close"]


def test_without_a_section_it_gets_an_empty_one() -> None:
    plugin = Lives()
    complete(Request("hi", backend="mine"), host=with_plugin(plugin))
    assert plugin.seen[0] == ("configure", {})


def test_one_that_was_never_used_is_not_closed() -> None:
    plugin = Lives()
    with_plugin(plugin).close()
    assert plugin.seen == []


def test_it_is_closed_although_another_one_fails_to(configured: Any) -> None:
    class Fails(Lives):
        @hookimpl
        def llm_close(self) -> None:
            raise ValueError("stuck")

    good = Lives()
    host = with_plugin(Fails(), "bad")
    host.register(good, "good")
    complete(Request("hi", backend="mine"), host=host)
    host.close()
    assert good.seen[-1] == "close"
    assert ["llm_close raised ValueError: stuck" in problem.message for problem in host.problems if problem.hook] == [
        True
    ]


def test_one_that_cannot_be_configured_is_recorded_and_the_others_go_on() -> None:
    plugin = Lives()
    plugin.fault = ValueError("no database")
    host = with_plugin(plugin)
    assert complete(Request("hi", backend="sample"), host=host).text == "Sample answer to: hi"
    assert "mine" not in host.backends()
    (problem,) = host.problems
    assert (problem.origin.plugin, problem.hook) == ("mine", "llm_configure")
    assert problem.message.startswith(f"llm_configure raised ValueError: no database ({__file__}, line ")
    assert [one for one in plugin.seen if one != "close"] == [("configure", {})]  # it is not tried again and again


def test_a_guardrail_that_cannot_be_configured_refuses() -> None:
    class Guards:
        @hookimpl
        def llm_configure(self) -> None:
            raise ValueError("no list of secrets")

        @hookimpl
        def llm_prepare(self) -> None: ...

    host = with_plugin(Guards(), "guard")
    for _ in range(2):
        with pytest.raises(NoAnswerError) as caught:
            complete(Request("hi", backend="sample"), host=host)
        (attempt,) = caught.value.attempts
        assert attempt.origin is not None
        assert (attempt.origin.plugin, attempt.error) == ("guard", "ValueError: no list of secrets")


def test_a_backend_of_one_that_cannot_be_configured_fails_the_attempt(tmp_path: Path) -> None:
    source = """
    from llm.backends.plugin_sdk import hookimpl, register_backend
    register_backend("mine", lambda prompt: "unconfigured")
    @hookimpl
    def llm_configure(settings): raise ValueError("no database")
    """
    write(tmp_path, {BACKENDS: {"a_plugin": "mine"}}, mine=source)
    with known(tmp_path) as host, pytest.raises(NoAnswerError, match="no database") as caught:
        complete(Request("hi", backend="mine"), host=host)
    assert caught.value.attempts[0].origin is not None
    assert caught.value.attempts[0].origin.distribution == "my-package"


SCHEMA = {"type": "object", "properties": {"level": {"type": "integer"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("section", "words"),
    [("level = 'high'", ["plugins.mine.level", "toml:2"]), ("levle = 3", ["levle", "level", "toml:2"])],
)
def test_a_section_that_its_schema_forbids_names_file_line_and_key(
    configured: Any, section: str, words: list[str]
) -> None:
    path = configured(f"[plugins.mine]\n{section}\n")
    plugin = Lives()
    plugin.CONFIG_SCHEMA = SCHEMA  # type: ignore[attr-defined]
    host = with_plugin(plugin)
    host.backends()
    (problem,) = host.problems
    assert isinstance(problem.error, ConfigError)
    assert (problem.origin.plugin, problem.hook) == ("mine", "llm_configure")
    for word in (str(path), *words):
        assert word in f"{problem.message} {problem.error.hint}"
    assert plugin.seen == []


# --- guardrails that cannot be loaded ---------------------------------------------------------------------------------

GUARDRAILS = {
    "llm_prepare": "@hookimpl\ndef llm_prepare(request): return None",
    "llm_complete": "@hookimpl(wrapper=True)\ndef llm_complete(): return (yield)",
    "llm_prepare_step": "@hookimpl\ndef llm_prepare_step(step): return None",
    "llm_run_step": "@hookimpl(wrapper=True)\ndef llm_run_step(): return (yield)",
}

OTHERS = {
    "llm_completed": "@hookimpl\ndef llm_completed(): return None",
    "llm_route": "@hookimpl(wrapper=True)\ndef llm_route(): return (yield)",
    "llm_complete": "@hookimpl\ndef llm_complete(): return None",
    "llm_backends": "@hookimpl\ndef llm_backends(): return []",
}


def install(directory: Path, implementation: str) -> None:
    """Install a plug-in that was imported once, and cannot be any more."""
    source = f"import helper_of_guard\nfrom llm import hookimpl\n{implementation}\n"
    write(directory, {BACKENDS: {"guard": "guard"}}, name="guard-dist", guard=source, helper_of_guard="")
    learn(directory)
    (directory / "helper_of_guard.py").unlink()


def use(host: Host, hook: str) -> None:
    """Do what the guardrail of a hook checks."""
    if "step" not in hook:
        assert complete(Request("hi", backend="sample"), host=host).text == "Sample answer to: hi"
        return
    context = StepContext("mine", 1, 1, {})
    step, _ = host.fold("llm_prepare_step", Step("true"), context=context)
    host.caller("llm_run_step")(step=step, context=context)


@pytest.mark.parametrize("again", ["at once", "in the next process", "edited", "upgraded", "without its cause"])
@pytest.mark.parametrize("hook", [*GUARDRAILS, "a sandbox"])
def test_a_guardrail_that_cannot_be_imported_refuses_by_name(hook: str, again: str, tmp_path: Path) -> None:
    if hook == "a sandbox":  # runs the steps itself, and is not a wrapper
        hook = "llm_run_step"
        install(tmp_path, "@hookimpl\ndef llm_run_step(): return 0")
    else:
        install(tmp_path, GUARDRAILS[hook])
    if again == "in the next process":
        learn(tmp_path)
    elif again == "edited":
        (tmp_path / "guard.py").write_text("def broken(:")
    elif again == "upgraded":
        (tmp_path / "guard_dist-1.0.dist-info").rename(tmp_path / "guard_dist-2.0.dist-info")
        metadata = tmp_path / "guard_dist-2.0.dist-info" / "METADATA"
        metadata.write_text(metadata.read_text().replace("1.0", "2.0"))
    with known(tmp_path) as host:
        for _ in range(2):
            with pytest.raises((NoAnswerError, PluginLoadError)) as caught:
                use(host, hook)
            assert "it is a guardrail, so nothing goes on without it" in str(caught.value)
            assert "guard-dist" in f"{caught.value} {origin_of(caught.value)}"
        # What it does not check goes on.
        other = "llm_prepare_step" if hook in {"llm_prepare", "llm_complete"} else "llm_prepare"
        if other == "llm_prepare":
            use(host, other)
    if again == "without its cause":
        (tmp_path / "helper_of_guard.py").write_text("")
        with known(tmp_path) as host:
            use(host, hook if "step" not in hook else "llm_prepare")
            assert list(host.problems) == []


@pytest.mark.parametrize("hook", OTHERS)
def test_whatever_else_cannot_be_imported_is_recorded_and_all_goes_on(hook: str, tmp_path: Path) -> None:
    install(tmp_path, OTHERS[hook])
    learn(tmp_path)
    with known(tmp_path) as host:
        use(host, hook)
        (problem,) = host.problems
        assert "helper_of_guard" in problem.message


def test_a_guardrail_that_is_left_out_refuses_nothing(tmp_path: Path) -> None:
    install(tmp_path, GUARDRAILS["llm_prepare"])
    with known(tmp_path) as host:
        without = Host()
        without.load_plugins(host.entries, Blocking({"guard": "--no-plugin guard"}), Manifests.read())
        use(without, "llm_prepare")


def test_a_guardrail_that_was_never_imported_is_not_known_as_one(tmp_path: Path) -> None:
    """Nobody can tell what a plug-in would do: `required_plugins` in the configuration is for that."""
    write(tmp_path, {BACKENDS: {"guard": "guard"}}, name="guard-dist", guard="import nowhere_to_be_found")
    with known(tmp_path) as host:
        use(host, "llm_prepare")
        for name in ("guard", "guard-dist", "Guard_Dist"):
            with pytest.raises(PluginLoadError, match=f"'{name}' is required, and .*nowhere_to_be_found"):
                complete(Request("hi", backend="sample"), host=host, settings=Settings(required_plugins=(name,)))


def test_a_required_plugin_that_is_there_is_enough(tmp_path: Path) -> None:
    write(tmp_path, {BACKENDS: {"shout": "shouter:run"}}, name="my-dist", shouter="def run(prompt): return 'fine'")
    learn(tmp_path)
    with known(tmp_path) as host:
        for name in ("shout", "my-dist", "My_Dist", "backend:shout", "sample"):
            settings = Settings(required_plugins=(name,))
            assert complete(Request("hi", backend="shout"), host=host, settings=settings).text == "fine"
        with pytest.raises(PluginLoadError, match="'absent' is required, and it is not installed"):
            complete(Request("hi", backend="shout"), host=host, settings=Settings(required_plugins=("absent",)))
        without = Host()
        without.load_plugins(host.entries, Blocking({"shout": "--no-plugin shout"}))
        why = "'shout' is required, and it is left out because of --no-plugin"
        with pytest.raises(PluginLoadError, match=why) as caught:
            complete(Request("hi", backend="sample"), host=without, settings=Settings(required_plugins=("shout",)))
        assert "leave out --no-plugin shout" in str(caught.value.hint)


def test_a_mistake_in_the_configuration_is_not_blamed_on_the_plugin_that_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("primry_backend = 'x'\n")
    monkeypatch.setenv("LLM_CONFIG_PATH", str(file))

    class Plugin:
        @hookimpl
        def llm_configure(self) -> None: ...

        @hookimpl
        def llm_completed(self) -> None: ...

    host = host_with(Plugin())
    use(host, "llm_completed")
    (problem,) = host.problems
    assert problem.message == f"it is not configured: {file}:1: there is no key named 'primry_backend'"


def test_a_second_thread_waits_until_it_is_configured() -> None:
    reached, opened = threading.Event(), threading.Event()
    key: list[str] = []

    class Slow:
        @hookimpl
        def llm_configure(self) -> None:
            reached.set()
            assert opened.wait(30)
            key.append("key")

        @hookimpl
        def llm_prepare(self, request: Request) -> Request:
            return request.with_prompt(f"with {key[0]}")

    host = with_plugin(Slow())
    answers: list[str] = []

    def ask() -> None:
        try:
            answers.append(complete(Request("hi", backend="sample"), host=host).text)
        except NoAnswerError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
    threads[0].start()
    assert reached.wait(30)
    for thread in threads[1:]:
        thread.start()
    threads[1].join(0.2)  # time for it to go wrong
    assert answers == []
    opened.set()
    for thread in threads:
        thread.join(30)
    assert answers == ["Sample answer to: with key"] * 3
    assert key == ["key"]


def test_a_hook_that_is_called_while_it_is_configured_does_not_configure_it_again() -> None:
    class Curious:
        calls = 0

        @hookimpl
        def llm_configure(self) -> None:
            self.calls += 1
            host.fold("llm_prepare", Request("hi"), backend=None)

        @hookimpl
        def llm_prepare(self) -> None: ...

    plugin = Curious()
    host = with_plugin(plugin)
    complete(Request("hi", backend="sample"), host=host)
    assert plugin.calls == 1


def test_only_what_is_registered_is_configured_and_closed() -> None:
    gone, refused, plugin = Lives(), Lives(), Lives()
    host = with_plugin(gone)
    host.unregister(gone)
    host.register(plugin, "mine")
    with pytest.raises(NameTakenError):
        host.register(refused, "mine")
    assert complete(Request("hi", backend="mine"), host=host).text == "answer"
    host.close()
    assert gone.seen == refused.seen == []
    assert (plugin.seen[0], plugin.seen[-1], len(plugin.seen)) == (("configure", {}), "close", 5)
