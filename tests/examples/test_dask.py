"""The plug-in `dask`: a scheduler and workers that are processes, killed on purpose, and a server that counts."""

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from llm.testing import write_distribution
from tests.peers import environment

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]

BACKENDS = """
import os, time
from llm.backends.plugin_sdk import register_backend

def slow(prompt):
    with open("asked", "a") as file:
        file.write(f"{prompt}\\n")
    time.sleep(0.02)
    if prompt == "hold" and not os.path.exists("holder"):
        with open("holder.new", "w") as file:
            file.write(str(os.getpid()))
        os.rename("holder.new", "holder")
        time.sleep(1000)
    return f"{prompt} {os.getpid()}"

def key(prompt, call):
    return f"{call.key('vault')} {os.environ.get('VAULT_API_KEY')}"

register_backend("slow", slow)
register_backend("key", key)
"""


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` directory of an environment with this checkout, the plug-in and Dask."""
    return environment(tmp_path_factory, "-e", str(ROOT), "-e", str(ROOT / "examples/plugins/dask")) / "bin"


class Site:
    """A directory with an environment of commands, and the processes that were started in it."""

    def __init__(self, bin: Path, directory: Path) -> None:
        self.bin = bin
        self.directory = directory
        self.site = directory / "site"
        write_distribution(
            self.site,
            "demo",
            entry_points={"llm.plugins": {"demo": "demo_backends"}},
            files={"demo_backends.py": BACKENDS},
        )
        self.home = directory / "home"
        self.home.mkdir()
        self.file = directory / "scheduler.json"
        self.processes: list[subprocess.Popen[str]] = []

    def configure(self, text: str) -> None:
        path = self.home / ".config/d0ttino/config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def start(
        self, *command: str, site: Path | None = None, env: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        environment = {
            **(env or {}),
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.home),
            "PYTHONPATH": str(site or self.site),
            "LLM_NO_CACHE": "1",
            "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "false",
        }
        process = subprocess.Popen(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if command[0] == "dask" else subprocess.PIPE,
            stderr=subprocess.DEVNULL if command[0] == "dask" else subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def scheduler(self) -> "subprocess.Popen[str]":
        self.file.unlink(missing_ok=True)
        process = self.start(
            "dask",
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--scheduler-file",
            str(self.file),
        )
        self.wait_for_scheduler()
        return process

    def wait_for_scheduler(self) -> None:
        wait_until(lambda: self.file.exists() and self.file.read_text().rstrip().endswith("}"))  # all is written

    def worker(self, site: Path | None = None) -> "subprocess.Popen[str]":
        options = ("--scheduler-file", str(self.file), "--nthreads", "1", "--no-nanny", "--no-dashboard")
        return self.start("dask", "worker", *options, site=site)

    def wait_for_workers(self, number: int) -> None:
        address = json.loads(self.file.read_text())["address"]
        program = f"from distributed import Client; Client({address!r}).wait_for_workers({number})"
        subprocess.run([self.bin / "python", "-c", program], check=True, timeout=200)

    @property
    def place(self) -> str:
        address: str = json.loads(self.file.read_text())["address"]
        return address.replace("tcp://", "dask://")

    def batch(self, *arguments: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        return self.start("ai-cli", "batch", *arguments, env=env)

    def prompts(self, number: int) -> list[str]:
        prompts = [f"p{one}" for one in range(number)]
        (self.directory / "in.txt").write_text("\n".join(prompts))
        return prompts

    def results(self) -> list[dict[str, Any]]:
        path = self.directory / "out.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]


@pytest.fixture
def site(dask: Path, tmp_path: Path) -> Iterator[Site]:
    made = Site(dask, tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def answers(results: list[dict[str, Any]]) -> list[str]:
    return [result["text"].split()[0] for result in results]


@pytest.mark.parametrize("place", [100, 300], ids=["in the middle", "at the end"])
def test_workers_of_a_cluster_answer_in_order_also_if_one_is_killed(site: Site, place: int) -> None:
    site.scheduler()
    workers = {worker.pid: worker for worker in (site.worker(), site.worker())}
    site.wait_for_workers(2)  # one that comes and goes between two looks at the cluster is not missed by it
    prompts = site.prompts(300)
    prompts.insert(place, "hold")
    (site.directory / "in.txt").write_text("\n".join(prompts))
    process = site.batch("in.txt", "-b", "slow", "--on", site.place, "--output", "out.jsonl", "--workers", "2")
    holder = site.directory / "holder"
    wait_until(holder.exists)
    workers[int(holder.read_text())].send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert answers(site.results()) == prompts
    assert "note: 2 workers of Dask at tcp://127.0.0.1:" in err
    assert ", dashboard http://127.0.0.1:" in err
    assert "was lost" in err
    assert "Traceback" not in err


def test_a_scheduler_that_dies_ends_the_batch_with_what_was_done_and_it_goes_on_elsewhere(site: Site) -> None:
    site.configure("[plugins.dask]\npatience = 2\n")
    scheduler = site.scheduler()
    site.worker()
    prompts = site.prompts(400)
    process = site.batch("in.txt", "-b", "slow", "--on", site.place, "--output", "out.jsonl", "--workers", "2")
    wait_until(lambda: len(site.results()) > 20)
    scheduler.kill()
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "error: no worker accepts prompts any more" in err
    assert "Dask" in err
    assert "Traceback" not in err
    done = site.results()
    assert 20 < len(done) < 400
    assert answers(done) == prompts[: len(done)]
    process = site.batch("in.txt", "-b", "slow", "--output", "out.jsonl", "--workers", "16")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert f"{len(done)} done before" in err
    assert answers(site.results()) == prompts


def test_ctrl_c_keeps_what_was_answered(site: Site) -> None:
    prompts = site.prompts(2000)
    process = site.batch("in.txt", "-b", "slow", "--on", "dask:2", "--output", "out.jsonl", "--workers", "2")
    wait_until(lambda: len(site.results()) > 20)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the workers of this machine as well
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    done = answers(site.results())
    assert set(done) < set(prompts)
    asked = (site.directory / "asked").read_text().split()
    # Each worker was asking for two: what was answered before came back, and nothing else was begun.
    assert len(done) == len(set(done)) >= len(asked) - 4


def test_a_place_that_cannot_be_used_is_named_with_the_reason(site: Site) -> None:
    site.configure("[plugins.dask]\npatience = 1\n")
    site.prompts(1)
    for where, words in {
        "dask://127.0.0.1:9": "error: the Dask scheduler at tcp://127.0.0.1:9 cannot be reached",
        "dask:none": "'dask:none' names neither a number of workers nor a scheduler",
    }.items():
        process = site.batch("in.txt", "-b", "slow", "--on", where)
        out, err = process.communicate(timeout=100)
        assert (process.returncode, out) == (2, "")
        assert words in err
        assert "Traceback" not in err
    site.scheduler()
    process = site.batch("in.txt", "-b", "slow", "--on", site.place)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "has no worker\n  start one there: dask worker tcp://127.0.0.1:" in err


CERTIFICATES = """
import sys
from distributed import Security
made = Security.temporary()
for name in ("ca_file", "client_cert", "client_key"):
    with open(f"{sys.argv[1]}/{name}.pem", "w") as file:
        file.write(getattr(made, f"tls_{name}"))
"""


def test_a_cluster_with_tls_is_reached_with_the_files_of_the_configuration(site: Site) -> None:
    subprocess.run([site.bin / "python", "-c", CERTIFICATES, site.directory], check=True)
    authority, certificate, key = (
        str(site.directory / f"{name}.pem") for name in ("ca_file", "client_cert", "client_key")
    )
    options = ["--protocol", "tls", "--tls-ca-file", authority, "--tls-cert", certificate, "--tls-key", key]
    common = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(site.file)]
    site.start("dask", "scheduler", *common, "--port", "0", *options)
    site.wait_for_scheduler()
    site.start("dask", "worker", *common, "--nthreads", "1", "--no-nanny", *options)
    address = json.loads(site.file.read_text())["address"]
    assert address.startswith("tls://")
    site.prompts(3)
    files = f'tls_ca_file = "{authority}"\ntls_cert = "{certificate}"\ntls_key = "{key}"'
    site.configure(f'[plugins.dask]\n{files}\nkeys = ["vault"]\n')
    process = site.batch(
        "in.txt", "-b", "key", "--on", address, "--output", "out.jsonl", env={"VAULT_API_KEY": "planted-1"}
    )
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert [result["text"] for result in site.results()] == ["planted-1 None"] * 3
    for text, words in (("tls_ca_file = 'none.pem'", "there is no file none.pem"), ("", "needs a certificate")):
        site.configure(f"[plugins.dask]\n{text}\n")
        process = site.batch("in.txt", "-b", "key", "--on", address)
        _, err = process.communicate(timeout=100)
        assert process.returncode == 2
        assert words in err


def test_a_worker_with_other_plugins_is_told(site: Site) -> None:
    other = site.directory / "other"
    write_distribution(
        other,
        "demo",
        version="2.0",
        entry_points={"llm.plugins": {"demo": "demo_backends"}},
        files={"demo_backends.py": BACKENDS},
    )
    site.scheduler()
    site.worker(other)
    site.prompts(3)
    process = site.batch("in.txt", "-b", "slow", "--on", site.place, "--output", "out.jsonl")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert " has demo 2.0 instead of 1.0" in err


def test_keys_go_to_workers_over_tls_alone(site: Site) -> None:
    site.configure('[plugins.dask]\nkeys = ["vault"]\n')
    site.prompts(1)
    refused = site.batch("in.txt", "-b", "key", "--on", "dask://127.0.0.1:9")
    _, err = refused.communicate(timeout=100)
    assert refused.returncode == 2
    assert "hands over keys (vault), and this cluster is not encrypted" in err
    missing = site.batch("in.txt", "-b", "key", "--on", "dask:1")
    _, err = missing.communicate(timeout=100)
    assert "there is no key 'vault'" in err
    path = site.home / ".config/d0ttino/keys.json"
    subprocess.run(
        [site.bin / "ai-cli", "keys", "set", "vault"],
        input="planted-secret-0123456789",
        text=True,
        env={"HOME": str(site.home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
    )
    assert not path.exists() or path.stat().st_mode & 0o077 == 0
    process = site.batch("in.txt", "-b", "key", "--on", "dask:1", "--columns", "answer", "--output", "out.jsonl")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "planted" not in err
    assert site.results() == [{"answer": "planted-secret-0123456789 None"}]


MANY = """
import gc
from llm import Request, current_host, send_many
from llm.routing.batch import executor_for

if __name__ == "__main__":
    most = 0
    with executor_for("dask:1", current_host()) as executor:
        prompts = (f"row {number}" for number in range(20_000))
        for outcome in send_many(prompts, backend="sample", executor=executor):
            if outcome.number % 2_000 == 1_999:
                most = max(most, sum(type(one) is Request for one in gc.get_objects()))
    print(outcome.text, most)
"""


def test_rows_are_not_kept_in_memory(site: Site) -> None:
    (site.directory / "many.py").write_text(MANY)
    process = site.start("python", "many.py")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "Sample answer to: row 19999" in out
    assert int(out.split()[-1]) < 6_000


class Limited(BaseHTTPRequestHandler):
    """Answers so many requests at a time, refuses others, and counts both."""

    slots = threading.BoundedSemaphore(2)
    counts: ClassVar[Counter[str]] = Counter()
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][-1]["content"]
        if not self.slots.acquire(blocking=False):
            with self.lock:
                self.counts["refused"] += 1
            self.send_response(429)
            self.send_header("retry-after", "0.2")
            self.send_header("content-length", "0")
            self.end_headers()
            return
        time.sleep(0.01)
        self.slots.release()
        with self.lock:
            self.counts[prompt] += 1
        choice = {"index": 0, "message": {"role": "assistant", "content": prompt}, "finish_reason": "stop"}
        content = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: object) -> None: ...


def test_a_server_with_limits_is_asked_once_for_each_prompt(site: Site) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Limited)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.configure(f'[servers.stub]\nbase_url = "http://127.0.0.1:{server.server_port}/v1"\nmodel = "m"\n')
    prompts = site.prompts(100)
    process = site.batch("in.txt", "-b", "stub", "--on", "dask:2", "--output", "out.jsonl", "--workers", "2")
    _, err = process.communicate(timeout=200)
    server.shutdown()
    server.server_close()
    assert process.returncode == 0, err
    assert [result["text"] for result in site.results()] == prompts
    refused = Limited.counts.pop("refused", 0)
    assert Limited.counts == Counter(prompts)
    assert refused < 100
