"""Answers batches of d0ttino on the workers of a Dask cluster: `ai-cli batch FILE --on dask://scheduler:8786`."""

import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from llm import current_host, hookimpl
from llm.errors import BackendConnectionError, ConfigError, UsageError
from llm.routing.batch import Done, Job, answer
from llm.routing.processes import cores

if TYPE_CHECKING:
    from distributed import Client, Security

__version__ = "0.1.0"

T = TypeVar("T")

CONFIG_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "keys": {"type": "array", "items": {"type": "string"}},
        "tls_ca_file": {"type": "string"},
        "tls_cert": {"type": "string"},
        "tls_key": {"type": "string"},
        "patience": {"type": "number", "exclusiveMinimum": 0},
    },
}

#: Seconds between two checks of the cluster.
PAUSE = 1.0
#: The packages that every worker needs; the versions of others are compared.
NEEDED = ("d0ttino", "d0ttino-dask")
#: Returns versions of packages on a worker: an expression, as a worker without this package has no function of it.
VERSIONS = """{{**{{name: one.version for one in __import__('importlib.metadata').metadata.distributions()
    for name in [str(one.metadata['Name']).lower().replace('_', '-')] if name in {names!r}}},
    'Python': '.'.join(__import__('platform').python_version_tuple()[:2])}}"""


@dataclass
class Configuration:
    """The section `[plugins.dask]`.

    Attributes:
        keys: names of the keys that are sent to workers; over TLS only.
        tls_ca_file, tls_cert, tls_key: files for `tls://`; by default those of Dask's own configuration.
        patience: seconds to wait for a scheduler, and for a worker where there is none.
    """

    keys: tuple[str, ...] = ()
    tls_ca_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    patience: float = 30.0


class State:
    """The state of this process: its configuration, and as a worker, the keys and the chunks of clients."""

    def __init__(self) -> None:
        self.configuration = Configuration()
        self.keys: Mapping[str, str] = {}
        self.versions: Mapping[str, str] | None = None
        self.running: dict[Callable[[], None], str] = {}
        self.ended: set[str] = set()


state = State()


@hookimpl
def llm_configure(settings: Any) -> None:
    """Take the configuration."""
    section = dict(settings.section)
    state.configuration = Configuration(**{**section, "keys": tuple(section.get("keys", ()))})


@hookimpl
def llm_key(name: str) -> str | None:
    """Return a key that the client of this worker sent."""
    return state.keys.get(name)


@hookimpl
def llm_executor(where: str) -> Executor | None:
    """Return the cluster at `dask://HOST:PORT` or `tls://HOST:PORT`; `dask` and `dask:N` start one on this machine.

    Raises:
        UsageError: there is no such cluster, or its workers cannot answer.
    """
    scheme, _, place = where.partition(":")
    if scheme not in {"dask", "tls", "tcp"} or (scheme != "dask" and not place.startswith("//")):
        return None
    is_local = scheme == "dask" and not place.startswith("//")
    address = None if is_local else f"{'tcp' if scheme == 'dask' else scheme}:{place}"
    if is_local and place and not (place.isascii() and place.isdecimal() and 0 < int(place) < 1000):
        raise UsageError(
            f"{where!r} names neither a number of workers nor a scheduler", hint="dask:4, dask://HOST:8786"
        )
    keys = keys_to_send(is_encrypted=is_local or scheme == "tls")
    return Cluster(address, int(place or cores()) if is_local else 0, state.configuration, keys)


def keys_to_send(*, is_encrypted: bool) -> dict[str, str]:
    """Return the keys that the configuration names.

    Raises:
        UsageError: the connection to the workers is not encrypted.
        ConfigError: there is no such key.
    """
    names = state.configuration.keys
    if names and not is_encrypted:
        raise UsageError(
            f"[plugins.dask] hands over keys ({', '.join(names)}), and this cluster is not encrypted",
            hint="use tls://HOST:PORT, or take `keys` out and set them on the workers: they look for them by name",
        )
    host = current_host()
    found = {name: os.environ.get(f"{name.upper().replace('-', '_')}_API_KEY") or host.key(name) for name in names}
    for name, key in found.items():
        if not key:
            raise ConfigError(f"[plugins.dask] keys: there is no key {name!r}", hint=f"ai-cli keys set {name}")
    return {name: key for name, key in found.items() if key}


# --- on the workers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Task:
    """A call for a worker. It has no `repr`: Dask logs the arguments of calls that fail, and it has prompts and keys.

    Attributes:
        function: the function to call.
        arguments: its arguments.
        expected: the versions of packages on the client.
        keys: the keys of the client.
        client: the id of the client.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    expected: Mapping[str, str]
    keys: Mapping[str, str]
    client: str


def call(task: Task) -> Any:
    """Run a task on a worker; a result has notes on how this worker differs from the client."""
    from distributed import get_worker

    state.keys = task.keys
    if task.function is not answer:
        return task.function(*task.arguments)
    done = ended_by_client(task.client, *task.arguments)
    if state.versions is None:
        state.versions = eval(VERSIONS.format(names=set(task.expected)))  # noqa: S307 - our own text
    differences = differences_of(task.expected, state.versions)
    if differences:
        done = replace(done, notes=(*done.notes, f"the worker {get_worker().address} has {', '.join(differences)}"))
    return done


def ended_by_client(client: str, job: Job) -> Done:
    """Answer a chunk until it is done, or until its client calls `end_early`."""
    ends: list[Callable[[], None]] = []

    def note(end: Callable[[], None]) -> None:
        ends.append(end)
        state.running[end] = client
        if client in state.ended:
            end()

    try:
        return answer(job, on_start=note)
    finally:
        for end in ends:
            del state.running[end]


def end_early(client: str) -> None:
    """End the chunks of a client on this worker, with the answers so far; begin no further one."""
    state.ended.add(client)
    for end, owner in list(state.running.items()):
        if owner == client:
            end()


def ignore_ctrl_c() -> None:
    """Ignore Ctrl-C in a worker on this machine: a terminal sends it to all processes, and the client handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def versions_here() -> dict[str, str]:
    """Return the versions of d0ttino, of its plug-ins and of Python."""
    from importlib.metadata import entry_points, version

    found = {"d0ttino": version("d0ttino"), "d0ttino-dask": __version__}
    for group in ("llm.plugins", "d0ttino.recipes"):
        for one in entry_points(group=group):
            if one.dist is not None:
                found[one.dist.name.lower().replace("_", "-")] = one.dist.version
    return {**found, "Python": ".".join(platform.python_version_tuple()[:2])}


def differences_of(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Return the differences between two sets of versions, in words."""
    return [
        f"{name} {there[name]} instead of {mine}" if name in there else f"no {name}"
        for name, mine in here.items()
        if there.get(name) != mine
    ]


# --- on the client --------------------------------------------------------------------------------------------------


class Cluster(Executor):
    """An executor with the workers of a Dask cluster.

    Args:
        address: the address of the scheduler; `None`: start a cluster on this machine.
        number: the number of workers of that cluster.
        configuration: the section `[plugins.dask]`.
        keys: the keys that are sent to workers.

    Attributes:
        max_workers: the number of chunks that the workers answer at a time; it changes with the cluster.
        notes: notes for the user on the cluster, one line each.

    Raises:
        UsageError: it cannot be used.
    """

    def __init__(self, address: str | None, number: int, configuration: Configuration, keys: Mapping[str, str]) -> None:
        self.max_workers = max(number, 1)
        self.notes: list[str] = []
        self._patience = configuration.patience
        self._keys = keys
        self._expected = versions_here()
        self._lock = threading.Lock()
        self._pending: dict[Any, Future[Any]] = {}
        self._workers: dict[str, int] = {}
        self._fit: list[str] | None = None
        self._lost: list[str] = []
        self._stranded: list[Future[Any]] = []
        self._failure: str | None = None
        self._is_down = threading.Event()
        self._stack = ExitStack()
        try:
            self._client = self._connected(address, number, configuration)
            self._check()
            if address is None:
                self._client.run(ignore_ctrl_c)
        except BaseException:
            self._stack.close()
            raise
        threading.Thread(target=self._watch, name="d0ttino-dask", daemon=True).start()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Call a function on one of the workers."""
        if self._failure is not None:
            raise RuntimeError(self._failure)
        if self._is_down.is_set():
            raise RuntimeError("the cluster has been left")
        assert not kwargs  # `send_many` gives none
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # not cancellable from here on: `interrupt` ends it
        task = Task(fn, args, self._expected, self._keys, self._client.id)
        remote = self._client.submit(call, task, pure=False, workers=self._fit, allow_other_workers=False)
        with self._lock:
            self._pending[remote] = future
        remote.add_done_callback(self._ended)
        return future

    def interrupt(self) -> None:
        """End chunks under way early, with the answers so far. A signal handler may call this."""
        threading.Thread(target=self._end_early, name="d0ttino-dask-interrupt", daemon=True).start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - as `Executor`
        """Disconnect from the cluster, and end it if it was started here."""
        self._is_down.set()
        self._end_all("the cluster was left")
        self._stack.close()

    def _connected(self, address: str | None, number: int, configuration: Configuration) -> "Client":
        import dask
        from distributed import Client, LocalCluster, Security

        self._stack.enter_context(silence())
        # Dask keeps the last messages for each worker, for debugging: these contain prompts.
        logs = {"low-level-log-length": 0, "large-graph-warning-threshold": "1 GB"}
        self._stack.enter_context(dask.config.set({f"distributed.admin.{name}": value for name, value in logs.items()}))
        if address is None:
            # If a worker dies, `send_many` sends its chunk again, with a note; Dask must not do so unseen.
            self._stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 0}))
            security = Security.temporary()
            where: Any = self._stack.enter_context(
                LocalCluster(
                    n_workers=number,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    protocol="tls://",
                    security=security,
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                )
            )
        else:
            where, security = address, security_for(address, configuration)
        try:
            return self._stack.enter_context(Client(where, security=security, timeout=self._patience))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise UsageError(
                f"the Dask scheduler at {address or 'this machine'} cannot be reached: {error}",
                hint="`dask scheduler` starts one, and prints its address",
            ) from error

    def _check(self) -> None:
        """Compare the versions of the workers with ours, and leave out the workers that cannot answer."""
        try:
            self._client.wait_for_workers(1, timeout=self._patience)
        except TimeoutError:
            raise UsageError(
                f"the Dask scheduler at {self._client.scheduler.address} has no worker",
                hint=f"start one there: dask worker {self._client.scheduler.address} --nthreads 1",
            ) from None
        found = self._client.run(eval, VERSIONS.format(names=set(self._expected)))
        lacking = {worker for worker, there in found.items() if not set(NEEDED) <= there.keys()}
        if lacking:
            words = (
                f"{len(lacking)} of {len(found)} workers lack {' or '.join(NEEDED)}: {', '.join(sorted(lacking)[:5])}"
            )
            if len(lacking) == len(found):
                raise UsageError(words, hint=f"on each of them: python -m pip install {' '.join(NEEDED)}")
            self.notes.append(f"{words}; they are left out")
            self._fit = sorted(found.keys() - lacking)
        for worker, there in found.items():
            differences = differences_of(self._expected, there)
            if differences and worker not in lacking:
                self.notes.append(f"the worker {worker} has {', '.join(differences)}")
        self._look()
        workers = f"{len(self._workers)} worker{'s' if len(self._workers) > 1 else ''}"
        self.notes.append(
            f"{workers} of Dask at {self._client.scheduler.address}, dashboard {self._client.dashboard_link}"
        )

    def _look(self) -> None:
        info = self._client.scheduler_info(n_workers=-1)
        workers = {address: one["nthreads"] for address, one in info["workers"].items()}
        with self._lock:  # two threads call this: `_watch`, and the one with the last result
            self._lost += sorted(self._workers.keys() - workers.keys())
            self._workers = workers
        self.max_workers = max(sum(workers.values()), 1)

    def _watch(self) -> None:
        """Check the cluster until it is left; without a scheduler or a worker for `patience` seconds, end it."""
        well = time.monotonic()
        while not self._is_down.wait(PAUSE):
            why = "the Dask scheduler does not answer"
            with suppress(Exception):
                if self._client.status == "running":
                    self._look()
                    why = "" if self._workers else "no worker is left"
            if not why:
                well = time.monotonic()
                self._send_again()
            elif time.monotonic() - well > self._patience or self._client.status == "closed":
                self._failure = f"{why} ({self._client.scheduler.address})"
                self._end_all(self._failure)
                return

    def _ended(self, remote: Any) -> None:
        """Settle the future of a call that ended; called in a thread of Dask."""
        with self._lock:
            future = self._pending.pop(remote, None)
            if future is None:
                return
            if remote.status != "finished" and self._client.status != "running":
                # The connection broke: `_watch` has it sent again once there is a connection.
                self._stranded.append(future)
                return
        try:
            result = remote.result()
        except BaseException as error:  # noqa: BLE001 - the future has it
            settle(future, error)
            return
        if isinstance(result, Done):  # the next result reports the workers that were lost
            if not self._pending:  # it is the last one, and `_watch` may not have looked since
                with suppress(Exception):
                    self._look()
            with self._lock:
                lost, self._lost = self._lost, []
            notes = [f"the worker {worker} was lost; its prompts are sent again" for worker in lost]
            result = replace(result, notes=(*result.notes, *notes))
        settle(future, result)

    def _end_early(self) -> None:
        with suppress(Exception):
            self._client.run(end_early, self._client.id)

    def _send_again(self) -> None:
        with self._lock:
            stranded, self._stranded = self._stranded, []
        for future in stranded:
            settle(future, BackendConnectionError("the connection to the scheduler broke"))

    def _end_all(self, why: str) -> None:
        with self._lock:
            pending, self._pending = self._pending, {}
            futures = [*pending.values(), *self._stranded]
            self._stranded = []
        for future in futures:
            settle(future, BackendConnectionError(why))
        if self._client.status == "running":
            with suppress(Exception):
                self._client.cancel(list(pending))


def security_for(address: str, configuration: Configuration) -> "Security":
    """Return the certificates for a connection to a scheduler, from our configuration or from Dask's own.

    Raises:
        UsageError: a file does not exist, or TLS lacks a certificate.
    """
    from distributed import Security

    files = {
        "tls_ca_file": configuration.tls_ca_file,
        "tls_client_cert": configuration.tls_cert,
        "tls_client_key": configuration.tls_key,
    }
    given = {name: os.path.expanduser(file) for name, file in files.items() if file is not None}
    for file in given.values():
        if not os.path.isfile(file):
            raise UsageError(f"[plugins.dask]: there is no file {file}")
    security = Security(**given)
    if address.startswith("tls:") and not (security.tls_ca_file and security.tls_client_cert):
        raise UsageError(
            f"{address} needs a certificate, and that of its authority",
            hint="set tls_ca_file, tls_cert and tls_key in [plugins.dask]",
        )
    return security


def settle(future: "Future[Any]", outcome: Any) -> None:
    """Give a future its result or exception, unless it was cancelled meanwhile."""
    with suppress(InvalidStateError):
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


@contextmanager
def silence() -> Iterator[None]:
    """Silence Dask's own log: its important messages are in our errors and notes."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
