"""The process that holds a model: requests come in on standard input, documents of answers go out, a line each.

It is a process of its own because llama.cpp cannot be stopped while it reads a prompt, and ends the program where it
fails: so this one is ended, at once, and the program goes on. It is started as a script, and imports nothing of ours.
"""

import json
import os
import secrets
import signal
import sys
import tempfile
import threading
import time

#: What ends an answer.
END = "[DONE]"


def main() -> None:
    """Load a model and answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program decides what Ctrl-C means
    # llama.cpp writes to standard output, too: only what is written here must get there.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace", buffering=1)
    os.dup2(2, 1)
    wanted = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with, args=(wanted["parent"],), daemon=True).start()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = wanted["path"]
    params.n_ctx, params.n_parallel, params.fit_params, params.warmup = wanted["context"], 1, False, False
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads, cpu.poll = wanted["threads"], 0  # a thread that polls takes the time of others
    params.verbosity = 1  # errors
    params.ui, params.n_threads_http, params.cache_ram_mib = False, 1, 0
    # It always opens a server. This one wants a key that nobody knows, and its address is gone before anybody can ask.
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
    """End with the program, also where another process still holds its end of the pipes."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)
