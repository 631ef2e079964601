"""`load_settings`: what environment and file may say, who wins, and how each mistake is named."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llm.config import ENVIRONMENT, Limits, RoutingMode, Settings, load_settings
from llm.errors import ConfigError, UsageError
from llm.types import Candidate


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Write a configuration file; return the environment that names it."""

    def write(document: object, name: str = "llm.json") -> dict[str, str]:
        path = tmp_path / name
        path.write_bytes(document if isinstance(document, bytes) else json.dumps(document, ensure_ascii=False).encode())
        return {"LLM_CONFIG_PATH": str(path)}

    return write


Write = Callable[..., dict[str, str]]

EVERY_KEY = {
    "primary_backend": "big",
    "fallback_backend": "small",
    "primary_model": "big-1",
    "fallback_model": "small-1",
    "routing_mode": "remote",
    "complexity_threshold": 7,
    "chain": ["third", {"backend": "fourth"}, {"backend": "fifth", "model": "m"}],
    "backends": {"big": {"price_per_1k_tokens": 2, "max_tokens": 8000}, "small": {}},
    "models": {"big-1": {"price_per_1k_tokens": 0.5}},
}


def test_nothing_configured_gives_the_defaults() -> None:
    found = load_settings()
    assert found == Settings()
    assert (found.routing_mode, found.complexity_threshold, found.path) == (RoutingMode.AUTO, 50, None)


def test_every_key_of_the_file_is_read(write: Write) -> None:
    environ = write(EVERY_KEY)
    assert load_settings(environ) == Settings(
        primary_backend="big",
        fallback_backend="small",
        primary_model="big-1",
        fallback_model="small-1",
        routing_mode=RoutingMode.REMOTE,
        complexity_threshold=7,
        chain=(Candidate("third"), Candidate("fourth"), Candidate("fifth", "m")),
        backends={"big": Limits(2.0, 8000), "small": Limits()},
        models={"big-1": Limits(0.5)},
        path=environ["LLM_CONFIG_PATH"],
    )


def test_nothing_is_a_price_a_size_and_a_threshold(write: Write) -> None:
    found = load_settings(
        write({"complexity_threshold": 0, "models": {"żółć": {"price_per_1k_tokens": 0, "max_tokens": 0}}})
    )
    assert (found.complexity_threshold, found.models) == (0, {"żółć": Limits(0.0, 0)})


def test_the_table_of_keys_above_is_complete() -> None:
    assert EVERY_KEY.keys() == {name for name in Settings.__dataclass_fields__ if name != "path"}


def write_default(home: Path, document: object) -> Path:
    path = home / "d0ttino" / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_the_default_file_is_in_the_users_configuration_directory(clean_environment: Path) -> None:
    path = write_default(clean_environment / ".config", {"primary_backend": "mine"})
    found = load_settings()
    assert (found.primary_backend, found.path) == ("mine", str(path))


def test_the_default_place_is_that_of_the_environment_given(clean_environment: Path, tmp_path: Path) -> None:
    write_default(clean_environment / ".config", {"primary_backend": "this process's"})
    write_default(tmp_path, {"primary_backend": "the given one's"})
    assert load_settings({"XDG_CONFIG_HOME": str(tmp_path)}).primary_backend == "the given one's"
    assert load_settings().primary_backend == "this process's"


@pytest.mark.parametrize("config_home", [None, "", "relative/path"])
def test_without_xdg_the_default_place_is_in_the_home_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config_home: str | None
) -> None:
    if config_home is None:
        monkeypatch.delenv("XDG_CONFIG_HOME")
    else:
        monkeypatch.setenv("XDG_CONFIG_HOME", config_home)
    for user in ("ann", "bob"):
        monkeypatch.setenv("HOME", str(tmp_path / user))
        write_default(tmp_path / user / ".config", {"primary_backend": user})
        assert load_settings().primary_backend == user


def test_the_named_file_wins_over_the_default_one(write: Write, clean_environment: Path) -> None:
    write_default(clean_environment / ".config", {"primary_backend": "default", "fallback_backend": "default"})
    found = load_settings({**os.environ, **write({"primary_backend": "named"})})
    assert (found.primary_backend, found.fallback_backend) == ("named", None)


def test_a_tilde_in_the_path_is_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.json").write_text('{"primary_backend": "home"}', encoding="utf-8")
    assert load_settings({"LLM_CONFIG_PATH": "~/mine.json"}).primary_backend == "home"


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("LLM_PRIMARY_BACKEND", "env", "env"),
        ("LLM_PRIMARY_BACKEND", "42", "42"),
        ("LLM_FALLBACK_BACKEND", "env", "env"),
        ("LLM_ROUTING_MODE", "local", RoutingMode.LOCAL),
        ("LLM_ROUTING_MODE", "LOCAL", RoutingMode.LOCAL),
        ("LLM_COMPLEXITY_THRESHOLD", "0", 0),
        ("LLM_COMPLEXITY_THRESHOLD", " 12 ", 12),
    ],
)
def test_the_environment_wins_over_the_file(write: Write, variable: str, value: str, expected: object) -> None:
    file = write(EVERY_KEY)
    key = ENVIRONMENT[variable]
    assert getattr(load_settings(file), key) != expected
    assert getattr(load_settings({**file, variable: value}), key) == expected
    assert getattr(load_settings({variable: value}), key) == expected


def test_the_table_of_variables_above_is_complete() -> None:
    assert set(ENVIRONMENT) == {
        "LLM_PRIMARY_BACKEND",
        "LLM_FALLBACK_BACKEND",
        "LLM_ROUTING_MODE",
        "LLM_COMPLEXITY_THRESHOLD",
    }


@pytest.mark.parametrize("variable", [*ENVIRONMENT, "LLM_CONFIG_PATH"])
def test_a_variable_that_is_set_but_empty_counts_as_not_set(write: Write, variable: str) -> None:
    file = write(EVERY_KEY)
    expected = Settings() if variable == "LLM_CONFIG_PATH" else load_settings(file)
    assert load_settings({**file, variable: ""}) == expected


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("LLM_ROUTING_MODE", "cheap", "must be one of auto, remote, local, not 'cheap'"),
        ("LLM_COMPLEXITY_THRESHOLD", "many", "must be a whole number, 0 or more, not 'many'"),
        ("LLM_COMPLEXITY_THRESHOLD", "-1", "must be a whole number, 0 or more, not -1"),
        ("LLM_COMPLEXITY_THRESHOLD", "1.5", "must be a whole number, 0 or more, not '1.5'"),
        ("LLM_COMPLEXITY_THRESHOLD", "9" * 5000, "must be a whole number"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(variable: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({variable: value})
    assert caught.value.message.startswith(f"{variable} {said}")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"", "is not JSON: Expecting value"),
        (b'{"primary_backend": ', "is not JSON: Expecting value: line 1 column 21"),
        (b"\xff\xfe", "is not JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"complexity_threshold": ' + b"9" * 5000 + b"}", "is not JSON"),
        (["primary_backend"], "must hold a JSON object, not a list"),
        (None, "must hold a JSON object, not null"),
        (3, "must hold a JSON object, not a number"),
        ({"primary_backend": 3}, ": primary_backend must be a name, not a number"),
        ({"fallback_backend": None}, ": fallback_backend must be a name, not null"),
        ({"primary_model": ["m"]}, ": primary_model must be a name, not a list"),
        ({"fallback_model": ""}, ": fallback_model must be a name, not empty text"),
        ({"fallback_model": True}, ": fallback_model must be a name, not true or false"),
        ({"routing_mode": "best"}, ": routing_mode must be one of auto, remote, local, not 'best'"),
        ({"routing_mode": ["auto"]}, ": routing_mode must be one of auto, remote, local, not ['auto']"),
        ({"complexity_threshold": "50"}, ": complexity_threshold must be a whole number, 0 or more, not '50'"),
        ({"complexity_threshold": 5.5}, ": complexity_threshold must be a whole number, 0 or more, not 5.5"),
        ({"complexity_threshold": -1}, ": complexity_threshold must be a whole number, 0 or more, not -1"),
        ({"complexity_threshold": True}, ": complexity_threshold must be a whole number, 0 or more, not True"),
        ({"chain": "big"}, ": chain must be a list of backends, not text"),
        ({"chain": {"backend": "big"}}, ": chain must be a list of backends, not an object"),
        ({"chain": ["big", 3]}, ': chain[1] must be a name or {"backend": name, "model": name}'),
        ({"chain": [""]}, ": chain[0] must be a name, not empty text"),
        ({"chain": [{"model": "m"}]}, ': chain[0] must be a name or {"backend": name, "model": name}'),
        ({"chain": [{"backend": "b", "modle": "m"}]}, ': chain[0] must be a name or {"backend": name, "model": name}'),
        ({"chain": [{"backend": 1}]}, ": chain[0].backend must be a name, not a number"),
        ({"chain": [{"backend": "b", "model": 1}]}, ": chain[0].model must be a name, not a number"),
        ({"backends": ["big"]}, ": backends must be an object, not a list"),
        ({"models": {"m": 3}}, ": models.m must be an object, not a number"),
        ({"backends": {"b": {"max_tokens": "8k"}}}, ": backends.b.max_tokens must be a whole number, 0 or more"),
        ({"backends": {"b": {"max_tokens": -1}}}, ": backends.b.max_tokens must be a whole number, 0 or more, not -1"),
        ({"models": {"m": {"price_per_1k_tokens": -0.1}}}, ": models.m.price_per_1k_tokens must be a number, 0 or mor"),
        ({"models": {"m": {"price_per_1k_tokens": "1"}}}, ": models.m.price_per_1k_tokens must be a number, 0 or more"),
        ({"models": {"m": {"price_per_1k_tokens": True}}}, ": models.m.price_per_1k_tokens must be a number, 0 or mo"),
        ({"models": {"m": {"price_per_1k_tokens": None}}}, ": models.m.price_per_1k_tokens must be a number, 0 or mo"),
        ({"models": {"m": {"price_per_1k_tokens": 10**400}}}, ": models.m.price_per_1k_tokens must be a number, 0"),
        (
            b'{"models": {"m": {"price_per_1k_tokens": NaN}}}',
            ": models.m.price_per_1k_tokens must be a number, 0 or mo",
        ),
        (b'{"models": {"m": {"price_per_1k_tokens": 1e999}}}', ": models.m.price_per_1k_tokens must be a number, 0 or"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_key(write: Write, document: object, said: str) -> None:
    environ = write(document)
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    message = caught.value.message
    path = environ["LLM_CONFIG_PATH"]
    assert message.startswith(path)
    assert message.removeprefix(path).lstrip().startswith(said)


@pytest.mark.parametrize(
    ("document", "said", "guess"),
    [
        ({"primary_backen": "big"}, ": there is no key named 'primary_backen'", "Did you mean 'primary_backend' or"),
        ({"LLM_ROUTING_MODE": "auto"}, ": there is no key named 'LLM_ROUTING_MODE'", "Known: backends, chain,"),
        (
            {"backends": {"b": {"max_token": 1}}},
            ": backends.b: there is no key named 'max_token'",
            "Did you mean 'max_tokens'?",
        ),
        (
            {"models": {"m": {"price": 1}}},
            ": models.m: there is no key named 'price'",
            "Known: max_tokens, price_per_1k_tokens.",
        ),
    ],
)
def test_an_unknown_key_gets_close_matches(write: Write, document: object, said: str, guess: str) -> None:
    environ = write(document)
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    assert caught.value.message == environ["LLM_CONFIG_PATH"] + said
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(guess)


def test_a_mistake_in_the_configuration_is_the_callers_to_mend(write: Write) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(write([]))
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["missing.json", "file/below-a-file.json", "~no-such-user-here/config.json"])
def test_a_named_file_that_does_not_exist_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"LLM_CONFIG_PATH names {name}, which does not exist"):
        load_settings({"LLM_CONFIG_PATH": name})


def test_a_directory_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot read {tmp_path}: Is a directory"):
        load_settings({"LLM_CONFIG_PATH": str(tmp_path)})


def test_a_symbolic_link_to_itself_cannot_be_read(tmp_path: Path) -> None:
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match=f"cannot read {loop}: Too many levels"):
        load_settings({"LLM_CONFIG_PATH": str(loop)})


@pytest.mark.parametrize("forbidden", [".", "llm.json"])
def test_a_file_without_permission_cannot_be_read(write: Write, tmp_path: Path, forbidden: str) -> None:
    environ = write({})
    (tmp_path / forbidden).chmod(0)
    if os.access(environ["LLM_CONFIG_PATH"], os.R_OK):
        pytest.skip("this user may read everything")
    try:
        with pytest.raises(ConfigError, match=r"cannot read .*llm\.json: Permission denied"):
            load_settings(environ)
    finally:
        (tmp_path / forbidden).chmod(0o700)


def test_a_changed_file_is_read_again(write: Write) -> None:
    environ = write({"primary_backend": "before"})
    assert load_settings(environ).primary_backend == "before"
    write({"primary_backend": "after it changed"})
    assert load_settings(environ).primary_backend == "after it changed"
    Path(environ["LLM_CONFIG_PATH"]).unlink()
    with pytest.raises(ConfigError):
        load_settings(environ)


def test_a_mended_file_is_read_again(write: Write) -> None:
    with pytest.raises(ConfigError):
        load_settings(write(b"{"))
    assert load_settings(write({"primary_backend": "mended"})).primary_backend == "mended"


def test_settings_cannot_be_changed_by_who_gets_them(write: Write) -> None:
    found: Any = load_settings(write(EVERY_KEY))
    mappings: list[Any] = [found.backends, found.models, Settings().backends]
    for limits in mappings:
        with pytest.raises(TypeError):
            limits["new"] = Limits()
    with pytest.raises(AttributeError):
        found.primary_backend = "other"


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (Candidate("b"), Limits(1.0, 100)),
        (Candidate("b", "unlisted"), Limits(1.0, 100)),
        (Candidate("b", "priced"), Limits(0.0, 100)),
        (Candidate("b", "sized"), Limits(1.0, 0)),
        (Candidate("b", "both"), Limits(3.0, 300)),
        (Candidate("other", "both"), Limits(3.0, 300)),
        (Candidate("other"), Limits()),
    ],
)
def test_limits_of_the_model_win_one_by_one_over_those_of_the_backend(candidate: Candidate, expected: Limits) -> None:
    found = Settings(
        backends={"b": Limits(1.0, 100)},
        models={"priced": Limits(price_per_1k_tokens=0.0), "sized": Limits(max_tokens=0), "both": Limits(3.0, 300)},
    )
    assert found.limits(candidate) == expected


numbers = itertools.count()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["b", "", "backend", "model", "max_tokens", "price_per_1k_tokens"]), inner)
    ),
    max_leaves=6,
)


def refusal(environ: dict[str, str]) -> str | None:
    try:
        load_settings(environ)
    except ConfigError as error:
        return error.message
    return None


@given(st.dictionaries(st.sampled_from([*EVERY_KEY, "nonsense"]), JSON, max_size=3))
@example({"models": {"m": {"price_per_1k_tokens": 10**400}}})
@example(EVERY_KEY)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_file_holds_is_used_or_refused_by_name(write: Write, document: dict[str, Any]) -> None:
    environ = write(document, f"{next(numbers)}.json")
    said = refusal(environ)
    if said is None:
        assert "nonsense" not in document
    else:
        assert said.startswith(f"{environ['LLM_CONFIG_PATH']}: ")
        assert any(key in said for key in document)


def test_a_repeated_key_is_refused_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    path = tmp_path / "llm.json"
    path.write_bytes(b'\xef\xbb\xbf{"routing_mode": "remote"}')
    assert load_settings({"LLM_CONFIG_PATH": str(path)}).routing_mode is RoutingMode.REMOTE
    path.write_text('{"models": {"a": {}, "a": {"max_tokens": 5}}}')
    with pytest.raises(ConfigError, match="the key 'a' stands in one object twice"):
        load_settings({"LLM_CONFIG_PATH": str(path)})
