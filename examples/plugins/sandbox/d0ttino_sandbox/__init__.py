"""Runs the steps of d0ttino's recipes in a sandbox, with bubblewrap."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import llm
import scripts
from llm import Step, StepContext, StepResult, hookimpl
from llm.backends.plugin_sdk import make_private, user_dir
from llm.errors import D0ttinoError
from scripts.plugin_sdk import arguments, run_locally

__version__ = "0.1.0"

#: Directories that steps may write to besides their working directory, separated by colons.
WRITABLE = "D0TTINO_SANDBOX_WRITABLE"
#: `1` lets steps use the network; a list of recipes lets theirs.
NETWORK = "D0TTINO_SANDBOX_NETWORK"
#: Unix sockets that steps may connect to, separated by colons.
SOCKETS = "D0TTINO_SANDBOX_SOCKETS"
#: The path of bwrap, if it is not in a directory of the system.
BWRAP = "D0TTINO_SANDBOX_BWRAP"

#: Not by PATH: a directory of the project may be on it, and a step can write there.
PLACES = ("/usr/bin/bwrap", "/bin/bwrap", "/usr/local/bin/bwrap", "/run/current-system/sw/bin/bwrap")

#: The directories with sockets of daemons, besides that of the session; see `hidden`.
RUNTIME = ("/run", "/var/run", "/tmp")  # noqa: S108

#: Variables by which the loader and the C library read files into a program: a step may have written them.
LOADS = ("LD_", "GCONV_PATH", "LOCPATH", "GLIBC_TUNABLES", "NLSPATH")

#: Variables that lead to sockets, which are hidden.
LEADS = ("DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "XDG_RUNTIME_DIR", "DOCKER_HOST", "WAYLAND_DISPLAY")


def bwrap() -> str:
    """Return the absolute path of bubblewrap.

    Raises:
        D0ttinoError: it is not installed.
    """
    named = os.environ.get(BWRAP)
    if named and not os.path.isabs(named):
        raise D0ttinoError(f"{BWRAP} is no absolute path: {named}")
    for place in (named,) if named else PLACES:
        if os.access(place, os.X_OK):
            return place
    raise D0ttinoError("there is no sandbox: bwrap is not installed", hint="install the package bubblewrap")


def options(program: str, directory: str, cwd: str, context: StepContext) -> Iterator[str]:
    """Yield the options of bwrap: only `directory` is writable, and there is no network, and no socket of a daemon.

    Args:
        program: absolute path of bwrap.
        directory: the working directory of the run.
        cwd: the working directory of the step; any may be named, and it is writable below `directory` only.
        context: the recipe and the environment of the step.
    """
    yield from ("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc")
    yield from kernel()
    network = os.environ.get(NETWORK, "").split(",")
    networked = "1" in network or context.recipe in network
    writable = [os.path.realpath(path) for path in (directory, *filter(None, os.environ.get(WRITABLE, "").split(":")))]
    named = own_files()
    own = {os.path.realpath(path) for path in named}
    for path in writable:
        if path in {"/", "/dev"} or _is_below(path, {"/proc", "/sys"}):
            raise D0ttinoError("the sandbox does not make the whole system writable", hint="run it in a directory")
        if _is_below(path, own):
            raise D0ttinoError(
                f"the sandbox does not make {path} writable: what is there decides about later steps",
                hint="run it in another directory",
            )
    yield from hidden(writable, networked=networked)
    imported_from = {path for path in sys.path if os.path.exists(path)}
    imports = {os.path.realpath(path) for path in imported_from} | with_links({*named, *imported_from})
    yield from protected(writable, own | imports)
    if not networked:
        yield "--unshare-net"
    # With its capabilities, root could undo these mounts.
    yield from ("--cap-drop", "ALL", "--unshare-pid", "--unshare-ipc", "--die-with-parent", "--chdir", cwd)
    yield from no_user_namespaces(program)


def kernel() -> Iterator[str]:
    """Yield the options that make settings of the kernel read-only: root owns them, also without capabilities."""
    for name in sorted(os.listdir("/proc")):
        mode = os.lstat(path := f"/proc/{name}").st_mode if not name.isdigit() else 0
        # `/proc/sys/kernel/core_pattern` names a program that the kernel runs outside of the sandbox.
        if stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and mode & 0o222):
            yield from ("--ro-bind", path, path)


def hidden(writable: Iterable[str], *, networked: bool) -> Iterator[str]:
    """Yield the options for writable directories, and those that hide sockets, in these and everywhere else."""
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    directories = [*RUNTIME, *([session] if os.path.isdir(session) else [])]
    covered = {os.path.realpath(directory) for directory in directories if os.path.isdir(directory)}
    for directory in sorted(covered):
        yield from ("--tmpfs", directory)
    # Parts of these directories that programs need.
    needed = ["/run/current-system", "/run/opengl-driver"]
    if networked:
        needed.append(os.path.realpath("/etc/resolv.conf"))
    for path in filter(os.path.exists, needed):
        if _is_below(path, covered):
            yield from ("--ro-bind", path, path)
    allowed = {os.path.realpath(path) for path in filter(None, os.environ.get(SOCKETS, "").split(":"))}
    for directory in writable:
        yield from ("--bind", directory, directory)
    for path in sorted(bound_sockets() - allowed):
        if not _is_below(path, covered) or _is_below(path, writable):
            yield from ("--ro-bind", "/dev/null", path)
    for path in sorted(filter(os.path.exists, allowed)):
        yield from ("--bind", path, path)
    if not allowed:
        for name in LEADS:
            yield from ("--unsetenv", name)


def bound_sockets() -> set[str]:
    """Return the paths of Unix sockets: a read-only file system does not keep steps from connecting to them."""
    found = set()
    with suppress(OSError), open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            path = line.rstrip("\n").split(maxsplit=7)[7:]
            if path and path[0].startswith("/") and os.path.exists(path[0]):
                found.add(os.path.realpath(path[0]))
    return found


def protected(writable: Iterable[str], own: set[str]) -> Iterator[str]:
    """Yield the options that make this program's own files read-only, also in writable directories.

    Each directory on the way becomes a mount of its own: any other could be renamed, and replaced.
    """
    places: dict[str, str] = {}
    for path in own:
        roots = [root for root in writable if _is_below(path, {root}) and path != root]
        if roots:
            root = min(roots, key=len)
            above = [str(parent) for parent in Path(path).parents if _is_below(str(parent), {root})]
            places = {**dict.fromkeys(above, "--bind"), **places, path: "--ro-bind"}
    # Parents first: a mount hides earlier ones below it.
    read_only: set[str] = set()
    for path, how in sorted(places.items()):
        if path not in writable and not _is_below(path, read_only):
            yield from (how, path, path)
            read_only |= {path} if how == "--ro-bind" else set()


def own_files() -> set[str]:
    """Return the files that decide what this program does: its caches, configuration, state and code."""
    directories = {user_dir(kind) for kind in ("cache", "config", "state")}
    for directory in directories:
        make_private(directory)  # before a step can make it
    code = {os.path.dirname(str(module.__file__)) for module in (llm, scripts)} | {
        os.path.dirname(__file__),
        sys.prefix,
    }
    named = {os.environ[name] for name in ("LLM_CONFIG_PATH", "D0TTINO_POLICY") if os.environ.get(name)}
    return {os.path.abspath(path) for path in directories | code | named if os.path.exists(path)}


def with_links(paths: Iterable[str]) -> set[str]:
    """Return the directories with a link on the way to a path: to change the link is to replace the path."""
    ways = {way for path in map(Path, paths) for way in (path, *path.parents)}
    return {os.path.realpath(way.parent) for way in ways if way.is_symlink()}


def no_user_namespaces(program: str) -> Iterator[str]:
    """Yield the options that forbid user namespaces, in which steps would have capabilities again, if bwrap can."""
    wanted = ("--unshare-user", "--disable-userns")
    command = [program, "--ro-bind", "/", "/", *wanted, "/bin/true"]
    tried = subprocess.run(command, env=_divided(os.environ)[0], capture_output=True, check=False)
    if tried.returncode == 0:
        yield from wanted


def _divided(env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables for bwrap itself, and those that load files into a program, for inside the sandbox only."""
    loads = {name: value for name, value in env.items() if name.startswith(LOADS)}
    return {name: value for name, value in env.items() if name not in loads}, loads


def _is_below(path: str, directories: Iterable[str]) -> bool:
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)


@hookimpl
def llm_run_step(step: Step, context: StepContext) -> StepResult:
    """Run the step in a sandbox; where there is none, refuse it."""
    program = bwrap()
    with arguments(step) as words:
        directory = os.path.realpath(context.cwd or os.getcwd())
        cwd = os.path.realpath(step.cwd or directory)
        env, loads = _divided(context.env)
        inside = [word for name, value in loads.items() for word in ("--setenv", name, value)]
        # `arguments` writes a command above 100 kB to a file in /tmp, which the sandbox hides.
        script = [] if words[-1] in {step.command, *step.command} else ["--ro-bind", words[-1], words[-1]]
        command = [program, *options(program, directory, cwd, context), *inside, *script, "--", *words]
        # Without open files: the descriptor of a directory would lead out of the sandbox.
        return run_locally(replace(step, command=command, cwd="/"), replace(context, env=env), open_files=False)
