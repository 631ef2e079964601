"""The plug-in registry: what a document may hold, where it comes from, and what stands in for a bad one."""

import contextlib
import gc
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from packaging.requirements import Requirement

import scripts.packages.registry
from scripts.packages import RegistryError, bundled_directory
from scripts.packages.registry import (
    PLUGIN,
    RECIPE,
    Registry,
    _registry,
    faults_of,
    load_registry,
    parse,
    shown,
)
from tests.servers import Exchange, FaultServer, http_answer

GOOD = {"plugins": {"mine": "acme-internal-greeter>=1"}, "recipes": {"clean": "acme-internal-recipes"}}


class Loaded:
    """What loading a registry gave, and what it warned of."""

    def __init__(self, registry: Registry, warnings: list[str]) -> None:
        self.registry = registry
        self.warnings = warnings

    @property
    def is_bundled(self) -> bool:
        return "openrouter" in self.registry.of(PLUGIN)


def load(place: object) -> Loaded:
    warnings: list[str] = []
    with mock.patch.object(os, "environ", {**os.environ, "PLUGIN_REGISTRY_URL": str(place)}):
        return Loaded(load_registry(warnings.append), warnings)


def load_exactly(place: object) -> Registry:
    with mock.patch.object(os, "environ", {**os.environ, "PLUGIN_REGISTRY_URL": str(place)}):
        return load_registry(print, exact=True)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def write(document: Any) -> Path:
        path = tmp_path / "registry.json"
        path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
        return path

    return write


def values(registry: Registry) -> dict[str, dict[str, str]]:
    return {
        kind.section: {name: package.value for name, package in registry.of(kind).items()} for kind in (PLUGIN, RECIPE)
    }


def test_the_schema_is_one_and_the_bundled_registry_fits_it() -> None:
    Draft202012Validator.check_schema(json.loads((bundled_directory() / "plugin-registry.schema.json").read_bytes()))
    assert faults_of(parse((bundled_directory() / "plugin-registry.json").read_bytes())) == {}


def test_the_bundled_registry_names_every_example_package_and_describes_it() -> None:
    loaded = load("")
    assert not loaded.warnings
    examples = {path.parent.name for path in (bundled_directory() / "examples/plugins").glob("*/pyproject.toml")}
    assert len(examples) >= 9
    assert {package.name: package.distribution() for package in loaded.registry.packages} == {
        name: f"d0ttino-{name}" for name in examples
    }
    assert set(loaded.registry.of(RECIPE)) == {"echo"}
    for package in loaded.registry.packages:
        description = package.info["description"]
        assert 10 < len(description) < 100, package.name
        assert description[0].isupper(), package.name
        assert not description.endswith("."), package.name


def test_both_forms_can_be_mixed(write: Callable[[Any], Path]) -> None:
    path = write({"$schema": "x.json", "my_backend": "acme-internal-greeter", **GOOD})
    loaded = load(path)
    assert not loaded.warnings
    assert values(loaded.registry) == {
        "plugins": {"my_backend": "acme-internal-greeter", "mine": "acme-internal-greeter>=1"},
        "recipes": {"clean": "acme-internal-recipes"},
    }
    assert loaded.registry.of(PLUGIN)["mine"].distribution() == "acme-internal-greeter"


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}", "file:{}", "FILE://{}"])
def test_a_file_can_be_named_in_every_way(write: Callable[[Any], Path], form: str) -> None:
    loaded = load(form.format(write(GOOD)))
    assert (values(loaded.registry), loaded.warnings) == (GOOD, [])


def test_an_escaped_file_url_is_unescaped(tmp_path: Path) -> None:
    (tmp_path / "my registry.json").write_text(json.dumps(GOOD))
    assert values(load(f"file://{tmp_path}/my%20registry.json").registry) == GOOD


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"recipes": []}, "recipes: [] is not of type 'object'"),
        ({"plugins": "acme-internal-greeter"}, "plugins: 'acme-internal-greeter' is not of type 'object'"),
        ([], "the document: [] is not of type 'object'"),
        ({"message": "Not Found", "error": {"code": 404}}, "it names no package"),
        (
            {"acme": {"version": "1"}},
            "it names no package that can be used: is it another document? (acme: 'package' is a required property)",
        ),
        (b'{"plugins": {"x": "a"}, "plugins": {"x": "b"}}', "plugins: this name is there twice"),
        (b'{"x": NaN}', "it is not JSON: NaN is not a JSON number"),
        (b"{", "it is not JSON"),
        (b"", "it is not JSON"),
        (b"\xff", "it is not JSON"),
        (b"[" * 200_000, "it is not JSON"),
        (b'{"x": "' + b"a" * 1024 * 1024 + b'"}', "it is larger than"),
    ],
)
def test_a_bad_document_is_told_with_the_place_and_the_bundled_one_is_used_for_lists_only(
    write: Callable[[Any], Path], document: Any, message: str
) -> None:
    path = write(document)
    loaded = load(path)
    assert loaded.is_bundled
    assert len(loaded.warnings) == 1
    assert f"{path} cannot be used: {message}" in loaded.warnings[0]
    assert loaded.warnings[0].endswith("the bundled registry is used instead")
    assert len(loaded.warnings[0]) < 1000
    with pytest.raises(RegistryError, match="cannot be used") as caught:
        load_exactly(path)
    assert caught.value.message == loaded.warnings[0].removesuffix("; the bundled registry is used instead")
    assert "unset PLUGIN_REGISTRY_URL" in str(caught.value.hint)


BAD_ENTRIES = [
    ({"plugins": {"x": 3}}, "plugins.x", "3 is not of type 'string'"),
    ({"x": None}, "plugins.x", "None is not of type 'string'"),
    ({"plugins": {"x": "-e ."}}, "plugins.x", "'-e .' is neither a requirement nor a path"),
    ({"plugins": {"x": "--index-url=http://evil"}}, "plugins.x", "'--index-url=http://evil' is neither"),
    ({"plugins": {"x": "/etc"}}, "plugins.x", "'/etc' is neither"),
    ({"plugins": {"x": "../y"}}, "plugins.x", "'../y' is neither"),
    ({"plugins": {"x": ""}}, "plugins.x", "'' is neither"),
    ({"plugins": {"x": "a\nb"}}, "plugins.x", "'a\\nb' has a character"),
    ({"plugins": {"x": "a\n"}}, "plugins.x", "'a\\n' has a character"),
    ({"plugins": {"x": "a b"}}, "plugins.x", "'a b' is not a requirement"),
    ({"plugins": {"-x": "a"}}, "plugins.-x", "'-x' has a character"),
    ({"recipes": {"x y": "a"}}, "recipes.x y", "'x y' has a character"),
    ({"x\n": "a"}, "plugins.'x\\n'", "'x\\n' has a character"),
    ({"x\u202ey": "a"}, "plugins.'x\\u202ey'", "'x\\u202ey' has a character"),
    ({"x": "a", "plugins": {"x": "b"}}, "plugins.x", "named here and in plugins"),
    (b'{"plugins": {"x": "a", "x": "b"}}', "plugins.x", "this name is there twice"),
    (b'{"x": "a", "y": "b", "x": "b"}', "plugins.x", "this name is there twice"),
    ({"x": "nice.zip"}, "plugins.x", "'nice.zip' looks like the name of a file"),
    ({"x": "nice-1.0.tar.gz"}, "plugins.x", "looks like the name of a file"),
    ({"x": {"version": "1"}}, "plugins.x", "'package' is a required property"),
    ({"x": {"package": "a", "verson": "1"}}, "plugins.x", "'verson' was unexpected"),
    ({"x": {"package": "a", "version": "latest"}}, "plugins.x", "Invalid version: 'latest'"),
    ({"x": {"package": "a>2", "version": "1"}}, "plugins.x", "version: 1 is not among >2"),
    ({"x": {"package": "a", "sha256": "abc"}}, "plugins.x", "sha256: 'abc' does not match"),
    ({"x": {"package": "a", "sha256": ["abc"]}}, "plugins.x", "sha256.0: 'abc' does not match"),
    ({"x": {"package": "a", "requires-d0ttino": "one"}}, "plugins.x", "Invalid specifier: 'one'"),
    ({"x": {"package": "a", "homepage": "javascript:x"}}, "plugins.x", "homepage: 'javascript:x' does not"),
    ({"x": {"package": "./a", "version": "1"}}, "plugins.x", "version: a path has none"),
    ({"x": {"package": "a @ https://example.org/a.whl", "version": "1"}}, "plugins.x", "names a URL itself"),
]


@pytest.mark.parametrize(("document", "place", "message"), BAD_ENTRIES)
def test_a_bad_entry_cannot_be_used_and_the_others_can(
    write: Callable[[Any], Path], document: Any, place: str, message: str
) -> None:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    loaded = load(write(text.rstrip()[:-1] + b', "good": "good-package"}'))
    assert loaded.registry.of(PLUGIN)["good"].distribution() == "good-package"
    (fault,) = [package.fault() for package in loaded.registry.packages if package.damage]
    assert loaded.warnings == [fault]
    assert f"{place} of the plug-in registry: " in str(fault)
    assert message in str(fault)
    assert "Traceback" not in str(fault)
    assert len(str(fault)) < 500


#: Objects that look like entries, and things that do not.
ENTRIES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["a", "a>=1", "./a", "a @ file:///x", "nice.zip", "-e .", "a @ git+https://x/y", "\ud800", "\x1b[2J"]
    ),
    st.none() | st.booleans() | st.integers() | st.floats(),
    st.dictionaries(
        st.sampled_from(["package", "version", "sha256", "source", "requires-d0ttino", "yanked", "homepage", "other"]),
        st.sampled_from(["a", "1", "==1", "a" * 64, "https://example.org/a.whl", "file:///x", "", "\ud800"])
        | st.none()
        | st.booleans()
        | st.lists(st.text(max_size=3), max_size=2),
    ),
)
DOCUMENTS = st.one_of(
    st.recursive(ENTRIES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)),
    st.dictionaries(
        st.sampled_from(["plugins", "recipes", "$schema", "x", "openrouter", "a b", "\ud800"]) | st.text(max_size=5),
        ENTRIES | st.dictionaries(st.sampled_from(["x", "y", "", "-z"]) | st.text(max_size=5), ENTRIES),
    ),
)


def use(content: bytes, place: str) -> None:
    """Use a document in every way in which commands do."""
    with contextlib.suppress(RegistryError):
        registry = _registry(place, content)
        for package in registry.packages:
            assert f"{package.name}{package.value}".isprintable()
            fault = package.fault()
            assert fault is None or (fault.isprintable() and len(fault) < 5000)
            if fault is None:
                assert package.unfit() is None or package.info
                assert package.is_path or Requirement(package.requirement()).name
                assert not (package.is_path and package.root is None)
        assert json.dumps([package.info for package in registry.packages])


@settings(max_examples=int(os.environ.get("REGISTRY_EXAMPLES", "300")), deadline=None)
@given(document=DOCUMENTS, place=st.sampled_from(["https://example.org/r.json", "/nowhere/r.json"]))
def test_every_document_is_used_or_refused(document: Any, place: str) -> None:
    use(json.dumps(document).encode(), place)


@settings(max_examples=int(os.environ.get("REGISTRY_EXAMPLES", "300")), deadline=None)
@given(document=DOCUMENTS, cut=st.integers(0, 300), more=st.binary(max_size=5), length=st.integers(0, 5))
def test_every_mutated_document_is_used_or_refused(document: Any, cut: int, more: bytes, length: int) -> None:
    content = json.dumps(document).encode()
    use(content[:cut] + more + content[cut + length :], "https://example.org/r.json")


def test_a_byte_order_mark_does_no_harm(write: Callable[[Any], Path]) -> None:
    assert values(load(write(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())).registry) == GOOD


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/nowhere/registry.json", "there is no such file"),
        ("/", "it cannot be read: it is a directory, and not a file"),
        ("file://elsewhere/registry.json", "cannot name another machine"),
        ("ftp://example.org/registry.json", "must be an http or https URL or a file, not ftp"),
        ("nowhere\0.json", "cannot be used"),
        ("http://[::1", "cannot be used"),
        ("https://", "cannot be used"),
    ],
)
def test_a_place_that_cannot_be_read_is_told(place: str, message: str) -> None:
    loaded = load(place)
    assert loaded.is_bundled
    assert message in loaded.warnings[0]


def test_no_copy_is_kept_of_a_file(write: Callable[[Any], Path], clean_environment: Path) -> None:
    path = write(GOOD)
    load(path)
    assert not (clean_environment / ".cache/d0ttino").exists()
    path.write_text("{")
    loaded = load(path)
    assert loaded.is_bundled
    assert loaded.warnings[0].endswith("the bundled registry is used instead")


def test_one_directory_does_not_get_the_registry_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, document in {"mine": b'{"x": "./package"}', "theirs": b"{"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "registry.json").write_bytes(document)
    monkeypatch.chdir(tmp_path / "mine")
    assert load("registry.json").registry.of(PLUGIN)["x"].root == tmp_path / "mine"
    monkeypatch.chdir(tmp_path / "theirs")
    assert load("registry.json").is_bundled


@pytest.mark.parametrize("place", ["registry.json", "./registry.json", "file:registry.json"])
def test_a_working_directory_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    loaded = load(place)
    assert loaded.is_bundled
    (warning,) = loaded.warnings
    assert f"{place} cannot be used: it is relative to the working directory, which is gone; the bundled" in warning


def test_a_home_directory_that_nobody_has_is_told() -> None:
    loaded = load("~nobody-has-this-name/registry.json")
    assert loaded.is_bundled
    assert "there is no home directory" in loaded.warnings[0]


class TestPaths:
    """A path in a registry stays below the registry."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "registry"
        for package in (root / "inside", tmp_path / "outside"):
            package.mkdir(parents=True)
            (package / "pyproject.toml").write_text(f'[project]\nname = "the-{package.name}"\n')
        (root / "link").symlink_to(tmp_path / "outside")
        (root / "empty").mkdir()
        (root / "nameless").mkdir()
        (root / "nameless/pyproject.toml").write_text("[project\n")
        return root

    def load(self, root: Path, value: str) -> Registry:
        (root / "registry.json").write_text(json.dumps({"x": value}))
        loaded = load(root / "registry.json")
        assert not loaded.warnings
        return loaded.registry

    def test_it_is_relative_to_the_file(self, root: Path) -> None:
        package = self.load(root, "./inside").of(PLUGIN)["x"]
        assert (package.directory(), package.distribution(), package.fault()) == (root / "inside", "the-inside", None)

    def test_a_direct_reference_to_a_file_is_used(self, root: Path) -> None:
        package = self.load(root, f"the-outside @ file://{root.parent}/outside").of(PLUGIN)["x"]
        assert (package.distribution(), package.fault()) == ("the-outside", None)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("./../outside", "leads out of the registry's directory"),
            ("./link", "leads out of the registry's directory"),
            ("./inside/../../outside", "leads out of the registry's directory"),
            ("./empty", "it has no pyproject.toml"),
            ("./nowhere", "it has no pyproject.toml"),
            ("./nameless", "gives no name"),
        ],
    )
    def test_one_that_cannot_be_used_is_refused_alone(self, root: Path, value: str, message: str) -> None:
        fault = self.load(root, value).of(PLUGIN)["x"].fault()
        assert fault is not None
        assert fault.startswith("plugins.x of the plug-in registry: ")
        assert message in fault


class TestServer:
    """A registry from a server."""

    def test_it_is_fetched(self) -> None:
        with FaultServer(http_answer(GOOD)) as server:
            loaded = load(f"{server.url}/registry.json?channel=stable")
        assert (values(loaded.registry), loaded.warnings) == (GOOD, [])
        assert server.requests[0].target == "/registry.json?channel=stable"

    def test_a_path_in_it_is_refused_alone(self) -> None:
        with FaultServer(http_answer({"x": "./here", "y": "fine"})) as server:
            packages = load(server.url).registry.of(PLUGIN)
        assert packages["y"].fault() is None
        assert "plugins.x of the plug-in registry: './here' is a path" in str(packages["x"].fault())

    @pytest.mark.parametrize(
        "url",
        [
            "file:///tmp/x",
            "FILE:///tmp/x",
            "file:/tmp/x",
            "file://localhost/tmp/x.whl",
            "git+file:///tmp/x",
            "git+https://example.org/x",
            "git+ssh://git@example.org/x",
            "http://example.org/x.whl",
            "/tmp/x",
            "./x",
            "C:/x",
        ],
    )
    def test_a_direct_reference_to_anything_but_https_is_refused_alone(self, url: str) -> None:
        document = {"x": f"x @ {url}", "y": "y @ https://example.org/y.whl", "z": {"package": "z", "source": url}}
        with FaultServer(http_answer(document)) as server:
            loaded = load(server.url)
        packages = loaded.registry.of(PLUGIN)
        assert packages["y"].fault() is None
        assert len(loaded.warnings) == 2
        assert str(packages["x"].fault()).startswith(f"plugins.x of the plug-in registry: 'x @ {shown(url)}' names ")
        assert packages["z"].fault() is not None

    def test_it_cannot_give_a_bundled_name_to_another_package(self) -> None:
        with FaultServer(http_answer({"openrouter": "evil", "recipes": {"openrouter": "fine"}})) as server:
            registry = load(server.url).registry
        assert "is the name of a bundled plug-in" in str(registry.of(PLUGIN)["openrouter"].fault())
        assert registry.of(RECIPE)["openrouter"].fault() is None

    def test_it_must_be_https_but_for_this_machine(self) -> None:
        loaded = load("http://user:secret@registry.example.org/r.json")
        assert "it must be an https URL" in loaded.warnings[0]
        assert "secret" not in loaded.warnings[0]

    def test_no_redirect_leads_to_http_and_no_password_elsewhere(self) -> None:
        away = http_answer(status=302, headers={"Location": "http://registry.example.org/r.json"})
        with FaultServer(away) as server:
            assert "it redirects to a server without https" in load(server.url).warnings[0]
        with FaultServer(http_answer(GOOD)) as other:
            there = http_answer(status=302, headers={"Location": f"{other.url}/there"})
            with FaultServer(there) as server:
                loaded = load(f"http://user:secret@{server.host}/r.json")
            assert values(loaded.registry) == GOOD
            assert server.requests[0].headers["authorization"].startswith("Basic ")
            assert "authorization" not in other.requests[0].headers
        with FaultServer(http_answer(status=302, headers={"Location": "/again"})) as server:
            assert "it redirects more than 5 times" in load(server.url).warnings[0]

    @pytest.mark.parametrize(
        ("headers", "words"),
        [
            ({"Location": "http://[::1"}, "its address, or that of a redirect, is not a URL"),
            ({"Content-Encoding": "gzip"}, "its answer is not compressed in the way that it names"),
            ({"Content-Length": "5, 6"}, "its answer is not HTTP that can be read"),
            ({"X": "y" * 200_000}, "answered with no HTTP"),
        ],
    )
    def test_an_answer_that_cannot_be_read_is_described(self, headers: dict[str, str], words: str) -> None:
        with FaultServer(http_answer(GOOD, status=302 if "Location" in headers else 200, headers=headers)) as server:
            (warning,) = load(server.url).warnings
        assert words in warning

    def test_the_connection_of_an_answer_that_cannot_be_read_is_closed_without_the_collector(self) -> None:
        def descriptors() -> int:
            return len(os.listdir("/dev/fd"))

        gc.collect()
        gc.disable()
        try:
            before = descriptors()
            with FaultServer(http_answer(GOOD, headers={"Content-Length": "5, 6"})) as server:
                assert load(server.url).warnings
            end = time.monotonic() + 30
            while descriptors() > before and time.monotonic() < end:  # the server ends on its own
                time.sleep(0.01)
            assert descriptors() <= before
        finally:
            gc.enable()

    def test_a_proxy_that_is_down_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        (warning,) = load("http://127.0.0.1:2/r.json").warnings
        assert "it cannot be reached through a proxy: Connection refused" in warning

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("p\u043elicy", "mixes Latin and Cyrillic letters"),
            ("\u0441\u0430\u0441\u04bb\u0435", "has Cyrillic letters alone that look like Latin ones"),
            ("\u03bf\u03c1\u03b1", "has Greek letters alone"),
            ("cache\ufe0f", "has characters that nobody sees"),
            ("\U0001d4ec\U0001d4ea\U0001d4ec\U0001d4f1\U0001d4ee2", "has characters that stand for others"),
            ("\u044f\u043d\u0434\u0435\u043a\u0441", None),
            ("\u6a21\u578b-gpt", None),
            ("\u03bb-calculus".replace("calculus", "\u03c4\u03ad\u03c3\u03c4"), None),
            ("\u00e9t\u00e9", None),
        ],
    )
    def test_a_name_that_passes_for_another_one_is_refused_in_escapes(self, name: str, why: str | None) -> None:
        with FaultServer(http_answer({"plugins": {name: "fine"}})) as server:
            loaded = load(server.url)
        fault = loaded.registry.of(PLUGIN)[name].fault()
        if why is None:
            assert fault is None
        else:
            assert why in str(fault)
            assert ascii(name)[1:-1] in str(fault)

    @pytest.mark.parametrize("name", ["sample", "Sample", "\uff53ample"])
    def test_no_spelling_of_a_bundled_name_is_given_to_another_package(self, name: str) -> None:
        with FaultServer(http_answer({"plugins": {name: "evil"}})) as server:
            (warning,) = load(server.url).warnings
        assert "is the name of a bundled plug-in, which a server cannot give to another package" in warning

    def test_passwords_of_other_programs_are_not_used(self, clean_environment: Path) -> None:
        (clean_environment / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
        (clean_environment / ".netrc").chmod(0o600)
        with FaultServer(http_answer(GOOD)) as server:
            load(server.url)
        assert "authorization" not in server.requests[0].headers

    def test_what_has_not_changed_is_not_sent_again(self) -> None:
        with FaultServer(http_answer(GOOD, headers={"ETag": '"one"'}), http_answer(status=304)) as server:
            loaded = [load(server.url), load(server.url)]
        assert [values(each.registry) for each in loaded] == [GOOD, GOOD]
        assert loaded[1].warnings == []
        assert "if-none-match" not in server.requests[0].headers
        assert server.requests[1].headers["if-none-match"] == '"one"'

    def test_a_server_that_is_down_is_an_error_for_what_installs(self) -> None:
        with FaultServer(http_answer(GOOD), http_answer(status=503)) as server:
            assert load_exactly(server.url).of(PLUGIN)["mine"].distribution() == "acme-internal-greeter"
            with pytest.raises(RegistryError, match="status 503"):
                load_exactly(server.url)

    def test_the_last_good_copy_stands_in(self) -> None:
        with FaultServer(http_answer(GOOD), http_answer(status=503), http_answer({"plugins": 3})) as server:
            load(server.url)
            loaded = [load(server.url), load(server.url)]
            place = server.url
        loaded.append(load(place))
        assert [values(each.registry) for each in loaded] == [GOOD] * 3
        for each, message in zip(
            loaded, ("status 503", "plugins: 3 is not of type 'object'", "Connection refused"), strict=True
        ):
            assert message in each.warnings[0]
            assert each.warnings[0].endswith("its last good copy is used instead")

    def test_the_copy_of_one_place_does_not_stand_in_for_another(self) -> None:
        with FaultServer(http_answer(GOOD), http_answer(status=404)) as server:
            load(f"{server.url}/a")
            assert load(f"{server.url}/b").is_bundled

    def test_a_damaged_copy_does_not_stand_in(self, clean_environment: Path) -> None:
        with FaultServer(http_answer(GOOD), http_answer(status=404)) as server:
            load(server.url)
            (copy,) = (clean_environment / ".cache" / "d0ttino" / "registries").iterdir()
            copy.write_bytes(copy.read_bytes()[:-5])
            assert load(server.url).is_bundled

    def test_no_copy_is_kept_where_the_cache_is_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLM_NO_CACHE", "1")
        with FaultServer(http_answer(GOOD), http_answer(status=404)) as server:
            load(server.url)
            assert load(server.url).is_bundled

    def test_secrets_of_the_url_are_never_told(self) -> None:
        with FaultServer(http_answer(status=500)) as server:
            asked = f"http://user:hunter2@{server.host}/r.json?token=hunter3#hunter4"
            warnings = load(asked).warnings
        warnings += load(asked).warnings
        warnings += load("https://user:hunter2@[bad/r.json?token=hunter3").warnings
        assert len(warnings) == 3
        assert "hunter" not in "".join(warnings)
        assert f"http://{server.host}/r.json cannot be used" in warnings[0]

    def test_a_redirect_to_a_file_is_not_followed(self, write: Callable[[Any], Path]) -> None:
        with FaultServer(http_answer(status=302, headers={"Location": f"file://{write(GOOD)}"})) as server:
            loaded = load(server.url)
        assert loaded.is_bundled

    def test_an_endless_answer_is_cut_off(self) -> None:
        def endless(exchange: Exchange) -> None:
            exchange.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while not exchange.stopping.is_set():
                exchange.connection.sendall(b" " * 65536)

        with FaultServer(endless) as server:
            assert "it is larger than" in load(server.url).warnings[0]

    @pytest.mark.parametrize(
        ("start", "piece"),
        [
            (b"", b""),
            (b"HTTP/1.1 200 OK\r\n\r\n{", b""),
            (b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
            (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n", b" "),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ],
        ids=["silent", "silent body", "header", "headers", "body", "interim answers"],
    )
    def test_a_slow_server_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch, start: bytes, piece: bytes) -> None:
        monkeypatch.setattr(scripts.packages.registry, "TIMEOUT_SECONDS", 0.3)

        def slow(exchange: Exchange) -> None:
            exchange.connection.sendall(start)
            with contextlib.suppress(OSError):
                while not exchange.stopping.wait(0.05):
                    exchange.connection.sendall(piece)

        with FaultServer(slow) as server:
            assert "did not answer within 0.3 seconds" in load(server.url).warnings[0]

    def test_a_broken_connection_is_told(self) -> None:
        with FaultServer(lambda exchange: exchange.reset()) as server:
            loaded = load(server.url)
        assert loaded.is_bundled
        assert loaded.warnings


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("/home/me/registry.json", "/home/me/registry.json"),
        ("https://me:secret@example.org:8443/a@b?token=secret", "https://example.org:8443/a@b"),
        ("https://me@secret@example.org#secret", "https://example.org"),
        ("https://example.org/\x1b[2J", "https://example.org/?[2J"),
    ],
)
def test_a_place_is_shown_without_its_secrets(place: str, text: str) -> None:
    assert shown(place) == text
