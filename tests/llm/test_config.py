"""`load_settings`: what environment and file may say, who wins, and how each mistake is named."""

import copy
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llm._config_file import fits, schema
from llm.config import ENVIRONMENT, ModelSettings, RoutingMode, Settings, check, default_path, load_settings
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

EVERY_KEY: dict[str, Any] = {
    "primary_backend": "big",
    "fallback_backend": "small",
    "primary_model": "big-1",
    "fallback_model": "small-1",
    "routing_mode": "remote",
    "complexity_threshold": 7,
    "chain": ["third", {"backend": "fourth"}, {"backend": "fifth", "model": "m"}],
    "backends": {"big": {"price_per_1k_tokens": 2, "max_tokens": 8000}, "small": {}},
    "models": {"big-1": {"price_per_1k_tokens": 0.5}},
    "required_plugins": ["policy"],
    "plugins": {"policy": {"deny": ["rm", "dd"], "limits": {"cpu": 1.5}, "strict": True}},
    "aliases": {"fast": "ollama/qwen3:4b", "large": "big-1"},
    "servers": {
        "ollama": {"base_url": "http://127.0.0.1:11434/v1"},
        "work": {
            "base_url": "https://llm.example/v1",
            "api_key": "work",
            "model": "m",
            "headers": {"X-Team": "infra"},
            "key_header": "api-key",
            "client_cert": "~/work.pem",
            "client_key": "~/work.key",
            "options": {"temperature": 0, "stop": ["\n"]},
            "timeout": 30,
            "local": False,
            "prices": {"input": 0.5, "output": 1.5},
            "rpm": 60,
            "tpm": 100000,
        },
    },
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
        backends={"big": ModelSettings(2.0, 8000), "small": ModelSettings()},
        models={"big-1": ModelSettings(0.5)},
        required_plugins=("policy",),
        plugins=EVERY_KEY["plugins"],
        aliases={"fast": "ollama/qwen3:4b", "large": "big-1"},
        servers=EVERY_KEY["servers"],
        path=environ["LLM_CONFIG_PATH"],
    )


def test_nothing_is_a_price_a_size_and_a_threshold(write: Write) -> None:
    found = load_settings(
        write({"complexity_threshold": 0, "models": {"żółć": {"price_per_1k_tokens": 0, "max_tokens": 0}}})
    )
    assert (found.complexity_threshold, found.models) == (0, {"żółć": ModelSettings(0.0, 0)})


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
        (b"", "this is not JSON: Expecting value"),
        (b'{"primary_backend": ', "this is not JSON: Expecting value: line 1 column 21"),
        (b"\xff\xfe", "this is not JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "this is not JSON"),
        (b'{"complexity_threshold": ' + b"9" * 5000 + b"}", "this is not JSON"),
        (["primary_backend"], "the file must be a JSON object, not a list"),
        (None, "the file must be a JSON object, not null"),
        (3, "the file must be a JSON object, not a number"),
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
        ({"chain": ["big", 3]}, ': chain[1] must be a name or {"backend": name, "model": name}, not a number'),
        ({"chain": [""]}, ': chain[0] must be a name or {"backend": name, "model": name}, not empty text'),
        ({"chain": [{"model": "m"}]}, ": chain[0]: the key 'backend' is missing"),
        ({"chain": [{"backend": "b", "modle": "m"}]}, ": chain[0]: there is no key named 'modle'"),
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
    if said.startswith(": "):
        assert caught.value.message.startswith(f"{environ['LLM_CONFIG_PATH']}:1{said}")
    else:
        assert re.match(rf"(:1)?: {re.escape(said)}", caught.value.message.removeprefix(environ["LLM_CONFIG_PATH"]))


ADDRESS = "base_url must be an address that begins with http:// or https://"
KEY_NAME = "api_key must be the name of a key, not the key: at most 40 letters, digits, '_', '.' and '-'"


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ({"base_url": "localhost:11434/v1"}, f"{ADDRESS}: neither is at its beginning"),
        ({"base_url": "https:/planted"}, f"{ADDRESS}: neither is at its beginning"),
        ({"base_url": "ftp://planted"}, f"{ADDRESS}: it begins with ftp://"),
        ({"base_url": "http://?planted"}, f"{ADDRESS}: no host follows http://"),
        ({"base_url": "http://planted 1"}, f"{ADDRESS}: it has a blank"),
        ({"base_url": "http://planted\n1"}, f"{ADDRESS}: it has a line break"),
        ({"base_url": " http://planted"}, f"{ADDRESS}: it begins or ends with a blank"),
        ({"base_url": ""}, f"{ADDRESS}, not empty text"),
        ({"base_url": 7}, f"{ADDRESS}, not a number"),
        ({"base_url": "http://a", "api_key": "sk-planted"}, f"{KEY_NAME}: it looks like the key itself"),
        ({"base_url": "http://a", "api_key": "planted/1"}, f"{KEY_NAME}: it has '/'"),
        ({"base_url": "http://a", "api_key": "-planted"}, f"{KEY_NAME}: it begins with '-'"),
        ({"base_url": "http://a", "api_key": "planted" * 7}, f"{KEY_NAME}: it has 49 characters"),
        (
            {"base_url": "http://a", "headers": {"X": "planted\x00"}},
            "headers.X must be text on one line: it has the ch",
        ),
    ],
)
def test_what_is_wrong_with_a_text_is_named_and_the_text_is_not_shown(write: Write, server: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(write({"servers": {"a": server}}))
    assert f": servers.a.{words}" in caught.value.message
    assert "planted" not in f"{caught.value.message}{caught.value.hint}"


@pytest.mark.parametrize("address", ["HTTP://localhost:1/v1", "Https://a/v1"])
def test_an_address_may_begin_with_capitals(write: Write, address: str) -> None:
    assert load_settings(write({"servers": {"a": {"base_url": address}}})).servers["a"]["base_url"] == address


@pytest.mark.parametrize(
    ("document", "said", "guess"),
    [
        ({"primary_backen": "big"}, ": there is no key named 'primary_backen'", "Did you mean 'primary_backend' or"),
        (
            {"LLM_ROUTING_MODE": "auto"},
            ": there is no key named 'LLM_ROUTING_MODE'",
            "Known: aliases, backends, chain,",
        ),
        (
            {"backends": {"b": {"max_token": 1}}},
            ": backends.b: there is no key named 'max_token'",
            "Did you mean 'max_tokens'?",
        ),
        (
            {"models": {"m": {"price": 1}}},
            ": models.m: there is no key named 'price'",
            "Known: max_tokens, options, price_per_1k_tokens.",
        ),
    ],
)
def test_an_unknown_key_gets_close_matches(write: Write, document: object, said: str, guess: str) -> None:
    environ = write(document)
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    assert caught.value.message == f"{environ['LLM_CONFIG_PATH']}:1{said}"
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
    with pytest.raises(ConfigError, match=f"cannot read {tmp_path}: it is a directory, and not a file"):
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
            limits["new"] = ModelSettings()
    with pytest.raises(AttributeError):
        found.primary_backend = "other"


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (Candidate("b"), ModelSettings(1.0, 100)),
        (Candidate("b", "unlisted"), ModelSettings(1.0, 100)),
        (Candidate("b", "priced"), ModelSettings(0.0, 100)),
        (Candidate("b", "sized"), ModelSettings(1.0, 0)),
        (Candidate("b", "both"), ModelSettings(3.0, 300)),
        (Candidate("other", "both"), ModelSettings(3.0, 300)),
        (Candidate("other"), ModelSettings()),
    ],
)
def test_limits_of_the_model_win_one_by_one_over_those_of_the_backend(
    candidate: Candidate, expected: ModelSettings
) -> None:
    found = Settings(
        backends={"b": ModelSettings(1.0, 100)},
        models={
            "priced": ModelSettings(price_per_1k_tokens=0.0),
            "sized": ModelSettings(max_tokens=0),
            "both": ModelSettings(3.0, 300),
        },
    )
    assert found.model_settings(candidate) == expected


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
        assert said.startswith(f"{environ['LLM_CONFIG_PATH']}:1: ")
        assert any(key in said for key in document)


def test_a_repeated_key_is_refused_and_a_byte_order_mark_is_not(tmp_path: Path) -> None:
    path = tmp_path / "llm.json"
    path.write_bytes(b'\xef\xbb\xbf{"routing_mode": "remote"}')
    assert load_settings({"LLM_CONFIG_PATH": str(path)}).routing_mode is RoutingMode.REMOTE
    path.write_text('{"models": {"a": {},\n"b": {},\n"a": {"max_tokens": 5}}}')
    with pytest.raises(ConfigError, match=r"llm\.json:3: the key 'a' stands in one object twice"):
        load_settings({"LLM_CONFIG_PATH": str(path)})
    (fault,) = check(str(path))
    assert (fault.line, fault.path) == (3, "models.a")


# TOML and JSON ------------------------------------------------------------------------------------


def inline(value: Any) -> str:
    """Return a JSON value as TOML has it on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{inline(key)} = {inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, float):
        return repr(value).replace("e", ".0e" if "." not in repr(value) else "e")
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def tables(document: dict[str, Any], above: tuple[str, ...] = (), *, depth: int = 3) -> str:
    """Return a document as TOML with headers down to a depth, values of several lines, and misleading text."""
    lines = ['# key = "in a comment"'] if above else []
    for key, value in document.items():
        if isinstance(value, list) and value and not isinstance(value[0], dict):
            lines += [f"{inline(key)} = [", *(f"  {inline(item)}," for item in value), "]"]
        elif not (isinstance(value, dict) and depth):
            lines.append(f"{inline(key)} = {inline(value)}")
    for key, value in document.items():
        if isinstance(value, dict) and depth:
            path = (*above, key)
            lines += ["", f"[{'.'.join(map(inline, path))}]", tables(value, path, depth=depth - 1)]
    return "\n".join(lines)


WRITERS: dict[str, Callable[[Any], str]] = {
    "toml": tables,
    "flat.toml": lambda document: tables(document, depth=0),
    "json": json.dumps,
    "indented.json": lambda document: json.dumps(document, indent=2, ensure_ascii=False),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("suffix", ["", ".conf"])
def test_every_format_is_read_the_same(tmp_path: Path, write: Write, name: str, suffix: str) -> None:
    path = tmp_path / f"config.{name}{suffix}"
    path.write_text(WRITERS[name](EVERY_KEY), encoding="utf-8")
    found = vars(load_settings({"LLM_CONFIG_PATH": str(path)}))
    assert found == vars(load_settings(write(EVERY_KEY))) | {"path": str(path)}
    assert check(str(path)) == []


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.sampled_from(
    ["mark = 1", "[servers.x]", '"', "'''", '"""', "[[chain]]", "\n[plugins]\n", "a.b", "{", "}", "]", "#", "\\"]
)
TOML = st.recursive(
    st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
FREE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)


@pytest.mark.parametrize("name", WRITERS)
@given(sections=st.dictionaries(TEXT, st.dictionaries(TEXT, TOML, max_size=3), max_size=3), at=st.integers(0, 3))
@FREE
def test_the_line_of_a_mistake_is_that_of_its_key(tmp_path: Path, name: str, sections: dict[str, Any], at: int) -> None:
    limits: dict[str, Any] = {f"model {index}": {"max_tokens": index} for index in range(4)}
    limits[f"model {at}"]["m@rk"] = 1
    document = {"chain": ["a", {"backend": "b"}], "plugins": sections, "models": limits, "aliases": {"x": "y"}}
    path = tmp_path / name
    path.write_text(WRITERS[name](document), encoding="utf-8", newline="")
    (fault,) = check(str(path))
    lines = path.read_bytes().decode().replace("\r\n", "\n").split("\n")
    assert fault.line is not None
    assert "m@rk" in lines[fault.line - 1] or name == "flat.toml"
    assert fault.line == next(number for number, line in enumerate(lines, 1) if "m@rk" in line)
    assert fault.path == f"models.model {at}.m@rk"
    with pytest.raises(ConfigError) as caught:
        load_settings({"LLM_CONFIG_PATH": str(path)})
    assert caught.value.message == f"{path}:{fault.line}: models.model {at}: there is no key named 'm@rk'"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a.b = 1\n", 1, "there is no key named 'a'. "),
        (
            'primary_backend = "a"\n\n[[chain]]\nbackend = "b"\n[[chain]]\nbackend = 3',
            6,
            "chain[1].backend must be a name",
        ),
        ('[[chain]]\nmodel = "m"', 1, "chain[0]: the key 'backend' is missing"),
        ("chain = [\n  'a',\n  3,\n]\n", 1, "chain[1] must be a name or"),
        (
            "[servers.a]\nbase_url = 'http://x'\n[servers.a.prices]\ninput = -1",
            4,
            "servers.a.prices.input must be a number",
        ),
        ("[servers.a]\nmodel = 'm'", 1, "servers.a: the key 'base_url' is missing"),
        ("[servers]\n'a b'.base_url = 'http://x'", 2, "servers: the name 'a b' must be letters"),
        (
            '[plugins.p]\nx = """\n[servers.x]\n"""\n[servers.x]\nbase_url = "y"',
            6,
            "servers.x.base_url must be an address",
        ),
        (
            "[plugins.p]\nsince = 2024-01-01",
            2,
            "plugins.p.since must be text, a number, true, false, a list or an object, ",
        ),
        ("[plugins.p]\nx = nan", 2, "plugins.p.x must be text, a number, true, false, a list or an object, not nan"),
        (
            "[models.m]\nprice_per_1k_tokens = inf",
            2,
            "models.m.price_per_1k_tokens must be a number, 0 or more, not inf",
        ),
        ("complexity_threshold = 0x-1", 1, "this is not TOML: "),
        (
            'routing_mode = "auto"\nrouting_mode = "auto"',
            2,
            "this is not TOML: Cannot overwrite a value (at end of doc",
        ),
        (
            "[models.m]\nmax_tokens = 1\n[models.m]",
            3,
            "this is not TOML: Cannot declare ('models', 'm') twice (at line 3",
        ),
    ],
)
def test_a_mistake_in_toml(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings({"LLM_CONFIG_PATH": str(path)})
    assert f"{caught.value.message}. ".startswith(f"{path}:{line}: {said}")


@pytest.mark.parametrize(
    "text",
    [
        "plugins.p.x = " + "[" * 300 + "]" * 300,
        "complexity_threshold = 0x" + "f" * 5000,
        "models.m.price_per_1k_tokens = 0x" + "f" * 5000,
        "plugins.p.x = [0x" + "f" * 5000 + "]",
    ],
)
def test_what_is_too_deep_or_too_large_is_used_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    refused = f"{path}: the file is nested too deeply, or has too large a number"
    said = refusal({"LLM_CONFIG_PATH": str(path)})
    assert said == refused or (said is None and "[[[" in text)
    assert [str(fault) for fault in check(str(path))] in ([], [refused])


def test_a_key_that_stands_there_twice_is_told_as_that(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[aliases]\na = 'x'\na = 'y'\n", encoding="utf-8")
    (fault,) = check(str(path))
    assert (fault.line, fault.hint) == (3, "A key or a table stands there twice.")


def test_the_lines_below_a_very_long_value_are_not_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for lines, found in ((150, 153), (5000, None)):
        path.write_text("plugins.p.x = [\n" + "[1],\n" * lines + "]\nprimary_model = 3\n", encoding="utf-8")
        (fault,) = check(str(path))
        assert (fault.line, fault.path) == (found, "primary_model")


def test_the_toml_file_of_the_configuration_directory_is_read(clean_environment: Path) -> None:
    path = clean_environment / ".config" / "d0ttino" / "config.toml"
    assert default_path(os.environ) == str(path)
    path.parent.mkdir(parents=True)
    path.write_text('primary_backend = "mine"', encoding="utf-8")
    found = load_settings()
    assert (found.primary_backend, found.path, default_path(os.environ)) == ("mine", str(path), str(path))


def test_of_two_files_none_is_guessed(clean_environment: Path) -> None:
    old = write_default(clean_environment / ".config", {"primary_backend": "old"})
    assert default_path(os.environ) == str(old)
    new = old.with_suffix(".toml")
    new.write_text('primary_backend = "new"', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert caught.value.message == f"there are two configuration files, {new} and {old}"
    assert f"remove {old}" in str(caught.value.hint)
    assert load_settings({**os.environ, "LLM_CONFIG_PATH": str(old)}).primary_backend == "old"
    old.unlink()
    assert load_settings().primary_backend == "new"


# The schema ---------------------------------------------------------------------------------------


def parts(part: Any) -> list[dict[str, Any]]:
    """Return a schema and every schema in it that describes a key."""
    found = [part] if isinstance(part, dict) else []
    for word in ("properties", "$defs"):
        found += [one for inner in found[0].get(word, {}).values() for one in parts(inner)] if found else []
    return found


def test_the_schema_is_one_and_describes_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["properties"].keys() == EVERY_KEY.keys()
    assert schema()["$defs"]["server"]["properties"].keys() == EVERY_KEY["servers"]["work"].keys()
    for part in parts(schema()):
        for key, described in part.get("properties", {}).items():
            assert described["description"].endswith("."), key


NEAR: dict[str, st.SearchStrategy[Any]] = {
    "primary_backend": st.text(max_size=2),
    "routing_mode": st.sampled_from(["auto", "remote", "local", "LOCAL", "no"]),
    "complexity_threshold": st.integers(-1, 3) | st.floats() | st.just(10**400),
    "chain": st.lists(
        st.text(max_size=1)
        | st.dictionaries(st.sampled_from(["backend", "model", "x"]), st.none() | st.text(max_size=1), max_size=3)
    ),
    "models": st.dictionaries(
        st.text(max_size=1),
        st.dictionaries(st.sampled_from(["max_tokens", "price_per_1k_tokens"]), st.integers(-1, 9) | st.floats()),
    ),
    "required_plugins": st.lists(st.text(max_size=2), max_size=2),
    "plugins": st.dictionaries(st.text(max_size=2), JSON | st.dictionaries(st.text(max_size=2), JSON), max_size=2),
    "aliases": st.dictionaries(st.text(max_size=2), st.text(max_size=2)),
    "servers": st.dictionaries(
        st.sampled_from(["a", "a.b", "-a", "a b", "", "a\n", "é"]),
        st.fixed_dictionaries(
            {
                "base_url": st.sampled_from(
                    ["http://a", "https://a:1/v1", "a", "http://", "http://a b", "http://a\n", ""]
                )
            },
            optional={
                "api_key": st.sampled_from(["work", "WORK_KEY", "sk-abc", "a" * 41, "a b", "a\n", ""]),
                "headers": st.dictionaries(
                    st.sampled_from(["X-A", "a b", "", "é"]), st.sampled_from(["b", "", "a\nb"])
                ),
                "timeout": st.integers(-1, 1) | st.floats(),
                "prices": st.dictionaries(st.sampled_from(["input", "output", "x"]), st.integers(-1, 2)),
                "options": JSON,
                "local": st.booleans() | st.integers(0, 1),
                "rpm": st.integers(-1, 2) | st.sampled_from([60.0, 1.5]),
            },
        ),
        max_size=2,
    ),
}


@given(st.fixed_dictionaries({}, optional={**NEAR, "nonsense": st.none()}))
@example({"complexity_threshold": 5.0, "models": {"m": {"price_per_1k_tokens": 10**400}}})
@FREE
def test_the_quick_check_and_jsonschema_agree(write: Write, document: dict[str, Any]) -> None:
    environ = write(document, f"{next(numbers)}.json")
    faults = check(environ["LLM_CONFIG_PATH"])
    read = {**document, "routing_mode": document.get("routing_mode", "auto").lower()}
    assert fits(read, schema()) == (faults == [])
    assert refusal(environ) == (str(faults[0]) if faults else None)


@pytest.mark.e2e
def test_a_file_without_a_mistake_does_not_cost_jsonschema(write: Write) -> None:
    program = "import sys, llm.config; llm.config.load_settings(); print('jsonschema' in sys.modules)"
    printed = subprocess.check_output(
        [sys.executable, "-c", program], env={**os.environ, **write(EVERY_KEY)}, text=True
    )
    assert printed == "False\n"


# All mistakes at once -----------------------------------------------------------------------------


def test_all_mistakes_are_found_in_the_order_of_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        'primery_backend = "a"\nrouting_mode = "best"\nchain = ["a", 3]\n'
        "[servers.x]\nbase_ulr = 'http://x'\n[plugins.p]\nretires = 3\nmode = 'c'\n[plugins.q]\nanything = 1\n",
        encoding="utf-8",
    )
    p = {
        "title": "Settings of p",
        "type": "object",
        "required": ["token"],
        "additionalProperties": False,
        "properties": {"retries": {"type": "integer"}, "mode": {"title": "Mode", "enum": ["a", "b"]}, "token": {}},
    }
    faults = check(str(path), {"p": p, "not configured": {}})
    assert [(fault.line, fault.path) for fault in faults] == [
        (1, "primery_backend"),
        (2, "routing_mode"),
        (3, "chain[1]"),
        (4, "servers.x"),
        (5, "servers.x.base_ulr"),
        (6, "plugins.p"),
        (7, "plugins.p.retires"),
        (8, "plugins.p.mode"),
    ]
    assert [str(fault) for fault in faults[4:]] == [
        f"{path}:5: servers.x: there is no key named 'base_ulr'",
        f"{path}:6: plugins.p: the key 'token' is missing",
        f"{path}:7: plugins.p: there is no key named 'retires'",
        f"{path}:8: plugins.p.mode must be one of a, b, not 'c'",
    ]
    assert [fault.hint for fault in faults[4:7]] == ["Did you mean 'base_url'?", None, "Did you mean 'retries'?"]
    with pytest.raises(ConfigError) as caught:
        load_settings({"LLM_CONFIG_PATH": str(path)})
    assert caught.value.message == str(faults[0])
    assert all(str(fault) in str(caught.value.hint) for fault in faults[1:4])
    assert str(caught.value.hint).endswith("and 1 more.")
    assert pickle.loads(pickle.dumps(caught.value)).message == caught.value.message


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "nonsense"}, "the schema of the plug-in p is none: 'nonsense' is not valid"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "the schema of the plug-in p cannot be used: "),
        ({"$ref": "#/$defs/missing"}, "the schema of the plug-in p cannot be used: "),
        ({"patternProperties": {"(": {}}}, "the schema of the plug-in p "),
        (
            {"properties": {"token": {"maxLength": 3}}},
            "plugins.p.token must be as maxLength of its schema says (3), not te",
        ),
        (
            {"properties": {"token": {"type": ["integer", "null"]}}},
            "plugins.p.token must be a whole number or null, not ",
        ),
        ({"properties": {"token": False}}, "plugins.p is or has something that its schema forbids"),
        (False, "plugins.p is or has something that its schema forbids"),
        ([], "the schema of the plug-in p is none: [] is not of type 'object', 'boolean'"),
        (5, "the schema of the plug-in p is none: 5 is not of type 'object', 'boolean'"),
        ({"not": {}}, "plugins.p must be as not of its schema says ({}), not an object"),
        (
            {"additionalProperties": {"pattern": "^x"}},
            "plugins.p.token must be as pattern of its schema says ('^x'), n",
        ),
        (
            {"propertyNames": {"maxLength": 2}},
            "plugins.p: the name 'token' must be as maxLength of its schema says (2)",
        ),
    ],
)
def test_a_section_that_does_not_fit_or_a_schema_that_is_none(write: Write, part: Any, said: str) -> None:
    path = write({"plugins": {"p": {"token": "s3cret"}}})["LLM_CONFIG_PATH"]
    (fault,) = check(path, {"p": part})
    assert fault.message.startswith(said)
    assert fault.line == 1


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    for path, said in (
        (tmp_path, "it is a directory, and not a file"),
        (tmp_path / "none.toml", "No such file or directory"),
    ):
        (fault,) = check(str(path))
        assert str(fault) == f"{path}: the file cannot be read: {said}"


@pytest.mark.parametrize(
    "server",
    [
        {"api_key": "sk-s3cret"},
        {"api_key": "s3cret" + "x" * 40},
        {"api_key": ["s3cret"]},
        {"headers": {"Authorization": "Bearer s3cret\n"}},
        {"headers": "s3cret"},
    ],
)
def test_a_mistake_does_not_show_what_may_be_secret(write: Write, server: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(write({"servers": {"work": {"base_url": "https://x", **server}}}))
    assert "servers.work." in caught.value.message
    assert "s3cret" not in f"{caught.value.message} {caught.value.hint}"


# Settings are values ------------------------------------------------------------------------------


def test_settings_can_be_hashed_copied_and_pickled(write: Write) -> None:
    environ = write(EVERY_KEY)
    found = load_settings(environ)
    other = write(dict(reversed(EVERY_KEY.items())), "other.json")
    again = Settings(**{**vars(load_settings(other)), "path": found.path})
    for same in (again, copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (same, hash(same)) == (found, hash(found))
    assert found != Settings()


def test_a_section_is_the_plugins_own(write: Write) -> None:
    environ = write(EVERY_KEY)
    section = load_settings(environ).section("policy")
    assert section == EVERY_KEY["plugins"]["policy"]
    assert load_settings(environ).section("nobody") == {}
    section["deny"].append("mine")
    assert load_settings(environ).section("policy") == EVERY_KEY["plugins"]["policy"]


def test_what_may_be_secret_is_not_in_the_text_of_settings() -> None:
    servers = {"x": {"base_url": "https://x", "headers": {"Authorization": "s3cret"}}}
    assert "s3cret" not in repr(Settings(servers=servers, plugins={"p": {"token": "s3cret"}}))


def test_a_file_that_can_be_read_once_only_is_named_with_its_mistake() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write('primary_backend = "a"\nprimary_model = 3\n')
    try:
        with pytest.raises(ConfigError, match=rf"^/dev/fd/{reading}:2: primary_model must be a name, not a number"):
            load_settings({"LLM_CONFIG_PATH": f"/dev/fd/{reading}"})
    finally:
        os.close(reading)
