"""The process with a model: each line of stdin is a request, each line of stdout a part of an answer.

llama.cpp cannot be stopped while it reads a prompt, and ends its process when it fails. In a process of its own it can
be killed at any time, and a failure does not end the program. It runs as a script, and imports nothing of d0ttino.
"""

import json
import os
import secrets
import signal
import sys
import tempfile
import threading
import time

#: The line after an answer.
END = "[DONE]"


def main() -> None:
    """Load a model and answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program handles Ctrl-C
    # llama.cpp prints to standard output as well: that is sent to standard error.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace", buffering=1)
    os.dup2(2, 1)
    wanted = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with, args=(wanted["parent"],), daemon=True).start()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = wanted["path"]
    params.n_ctx, params.n_parallel, params.fit_params, params.warmup = wanted["context"], 1, False, False
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads, cpu.poll = wanted["threads"], 0  # no busy waiting
    params.verbosity = 1  # errors
    params.ui, params.n_threads_http, params.cache_ram_mib = False, 1, 0
    # xllamacpp always opens a server. This one has a secret key, and a socket whose directory is deleted at once.
    params.api_keys = [secrets.token_urlsafe(32)]
    with tempfile.TemporaryDirectory(prefix="d0ttino-local-") as place:
        params.hostnames = [f"{place}/closed.sock"]
        server = xllamacpp.Server(params)
    print(json.dumps({"ready": True}), file=out)
    for line in sys.stdin:
        try:
            server.handle_chat_completions(line, lambda document: print(document.replace("\n", " "), file=out))
        except (ValueError, RuntimeError) as error:  # a request that it does not take
            print(json.dumps({"error": {"code": 400, "message": str(error)}}), file=out)
        print(END, file=out)


def _end_with(parent: int) -> None:
    """End with the program, even if another process still has its end of the pipes open."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)
