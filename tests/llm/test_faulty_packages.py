# ruff: noqa: E501 - each line of the tables is a whole plug-in
"""Faulty packages, at least ten for each kind of plug-in: the kit finds what authors get wrong, by the check named.

The line at fault ends with `# HERE`; `project` changes the `pyproject.toml`.
"""

import textwrap
from pathlib import Path

import pytest

from llm.testing import conformance
from tests.llm.test_conformance import Fault, package

pytestmark = pytest.mark.e2e

HEAD = "from llm import *\nfrom llm import hookimpl\nfrom llm.errors import *\nimport os, sys, threading, time, subprocess, json\n"


def backend(body: str, head: str = "") -> str:
    return f"{HEAD}{textwrap.dedent(head)}\nclass Faulty(Backend):\n    name = 'faulty'\n{textwrap.indent(textwrap.dedent(body), '    ')}\n@hookimpl\ndef llm_backends(): return Faulty()\n"


def recipe(body: str, head: str = "") -> str:
    return f"{HEAD}{head}\ndef make(goal):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n@hookimpl\ndef llm_recipes(): return Recipe('faulty', make)\n"


def server(body: str, head: str = "") -> str:
    """Return a backend that asks a server, without the errors of the HTTP client that belongs to d0ttino."""
    return backend(body, "import urllib.request, urllib.error\n" + textwrap.dedent(head)).replace(
        "name = 'faulty'", "name = 'faulty'\n    ready_env = ('ACME_URL', 'ACME_KEY')\n    secret_env = ('ACME_KEY',)"
    )


ASK = """
def ask(prompt, call, url=None, headers=None):
    body = json.dumps({"messages": [{"role": "user", "content": prompt}]}).encode()
    request = urllib.request.Request(url or os.environ["ACME_URL"] + "/chat/completions", body, headers or {"Authorization": "Bearer " + os.environ["ACME_KEY"]})
    return urllib.request.urlopen(request, timeout=max(0.01, call.deadline - time.monotonic()) if call else 5)
def text_of(answer):
    return json.load(answer)["choices"][0]["message"]["content"]
"""


def plugin(body: str) -> str:
    return f"{HEAD}{textwrap.dedent(body)}\n"


RUN = """
def run(step, context, **more):
    given = {"env": dict(context.env), "cwd": step.cwd, "timeout": step.timeout, **more}
    done = subprocess.run(step.command if not isinstance(step.command, str) else ["sh", "-c", step.command], capture_output=True, check=False, **given)
    if context.output: context.output(done.stdout + done.stderr)
    return done.returncode
"""

BACKENDS = {
    "prints": Fault("answers", "writes to stdout", backend("def run(self, prompt):\n    print('thinking')  # HERE\n    return prompt")),
    "prints to stderr": Fault("answers", "writes to stderr", backend("def run(self, prompt):\n    print('thinking', file=sys.stderr)  # HERE\n    return prompt"), severity="warning"),
    "reads stdin": Fault("answers", "reads stdin", backend("def run(self, prompt):\n    sys.stdin.read()  # HERE\n    return prompt")),
    "asks with input()": Fault("answers", "reads stdin", backend("def run(self, prompt):\n    input('key? ')  # HERE\n    return prompt")),
    "bytes": Fault("answers", "bytes", backend("def run(self, prompt): return prompt.encode('utf-8', 'replace')  # HERE")),
    "dict": Fault("answers", "dict", backend("def run(self, prompt): return {'text': prompt}  # HERE")),
    "pieces of bytes": Fault("answers", "bytes", backend("def run(self, prompt): return prompt\ndef stream(self, prompt): yield prompt.encode('utf-8', 'replace')  # HERE")),
    "mutable default": Fault("metadata", "default", backend("def run(self, prompt, seen=[]):  # HERE\n    seen.append(prompt)\n    return ' '.join(seen)")),
    "another working directory": Fault("answers", "changes the working directory", backend("def run(self, prompt):\n    os.chdir('/')  # HERE\n    return prompt")),
    "environment": Fault("answers", "changes the environment", backend("def run(self, prompt):\n    os.environ['ACME_LAST'] = 'x'  # HERE\n    return prompt")),
    "locale": Fault("import", "changes the locale", backend("def run(self, prompt): return prompt", "import locale\nlocale.setlocale(locale.LC_ALL, 'C')  # HERE")),
    "logging at import": Fault("import", "changes the logging", backend("def run(self, prompt): return prompt", "import logging\nlogging.basicConfig(level=10)  # HERE")),
    "logging in an answer": Fault("answers", "changes the logging", backend("def run(self, prompt):\n    import logging\n    logging.basicConfig(level=10)  # HERE\n    return prompt")),
    "signal handler": Fault("answers", "changes the handlers of signals", backend("def run(self, prompt):\n    import signal\n    signal.signal(signal.SIGINT, signal.SIG_IGN)  # HERE\n    return prompt")),
    "escapes in an error": Fault("answers", "control characters", backend("def run(self, prompt): raise BackendError('\\x1b[31mno\\x1b[0m')  # HERE")),
    "huge error": Fault("answers", "characters long", backend("def run(self, prompt): raise BackendError('no ' * 9999)  # HERE"), severity="warning"),
    "many lines": Fault("answers", "lines", backend("def run(self, prompt): raise BackendError('no\\n' * 50)  # HERE"), severity="warning"),
    "swallows in pieces": Fault("interrupts", "swallows Ctrl-C", backend("def run(self, prompt): return prompt\ndef stream(self, prompt):\n    try:\n        yield prompt  # HERE\n    except BaseException:\n        return")),
    "suppresses everything": Fault("interrupts", "swallows Ctrl-C", backend("def run(self, prompt):\n    with contextlib.suppress(BaseException):\n        prompt.upper()  # HERE\n    return prompt", "import contextlib\n")),
    "global variable": Fault("threads", "several threads", backend("def run(self, prompt):\n    global last\n    last = prompt\n    time.sleep(0)\n    return last", "last = None\n")),
    "connection of one thread": Fault("threads", "several threads", backend("def __init__(self):\n    import sqlite3\n    self.file = sqlite3.connect(':memory:')\ndef run(self, prompt):\n    return str(self.file.execute('select 1').fetchone())  # HERE")),
    "sleeps": Fault("deadlines", "after the deadline", backend("def run(self, prompt):\n    time.sleep(4)  # HERE\n    return prompt")),
    "ends the program": Fault("answers", "SystemExit", backend("def run(self, prompt): sys.exit('no')  # HERE")),
    "thread at use": Fault("closing", "thread", backend("def run(self, prompt):\n    threading.Thread(target=wait, daemon=True).start()\n    return prompt", "def wait():  # HERE\n    time.sleep(30)\n"), severity="warning"),
    "child is left": Fault("closing", "process", backend("def run(self, prompt):\n    self.child = self.__dict__.get('child') or subprocess.Popen(['sleep', '60'])  # HERE\n    return prompt")),
    "unpicklable error": Fault("fork and pickle", "pickled", backend("def run(self, prompt):\n    if not prompt: raise Empty(lambda: 5)\n    return prompt", "class Empty(BackendError):  # HERE\n    def __init__(self, function):\n        super().__init__('empty')\n        self.function = function\n")),
    "replaces a function of a library": Fault("import", "replaces json.dumps", backend("def run(self, prompt): return prompt", "import json\ndef mine(*a, **k): return ''\njson.dumps = mine  # HERE\n")),
    "replaces a method of requests": Fault("answers", "replaces requests", backend("def run(self, prompt):\n    import requests\n    requests.Session.request = mine  # HERE\n    return prompt", "def mine(*a, **k): ...\n")),
    "default timeout of sockets": Fault("import", "changes the timeout of sockets", backend("def run(self, prompt): return prompt", "import socket\nsocket.setdefaulttimeout(3)  # HERE\n")),
    "needs an undeclared library": Fault("metadata", "does not require", backend("def run(self, prompt):\n    import yaml  # HERE\n    return prompt")),
    "number of tokens": Fault("answers", "Usage", backend("def run(self, prompt): return Completion(prompt, usage=Usage('two', 3))  # HERE")),
    "pieces as one text": Fault("answers", "", backend("def run(self, prompt): return prompt\ndef stream(self, prompt): return None  # HERE")),
    "hooks beside a named function": Fault("contract", "alone is in use", plugin("def shout(prompt): return prompt\n@hookimpl  # HERE\ndef llm_backends(): return [Backend('shout', shout), Backend('whisper', shout)]"), ('"acme_faulty"', '"acme_faulty:shout"'), "warning"),
    "no name": Fault("contract", "the name of a Backend", backend("def run(self, prompt): return prompt").replace("name = 'faulty'", "pass").replace("@hookimpl", "@hookimpl  # HERE")),
    "reads standard input at import": Fault("import", "stdin", backend("def run(self, prompt): return prompt", "import sys\nsys.stdin.readline()  # HERE\n")),
    "asks at import": Fault("import", "stdin", backend("def run(self, prompt): return prompt", "key = input('key? ')  # HERE\n")),
}  # fmt: skip

RECIPES = {
    "prints": Fault("recipes", "writes to stdout", recipe("print('hello')  # HERE\nreturn ['date']")),
    "reads stdin": Fault("recipes", "reads stdin", recipe("input('sure? ')  # HERE\nreturn ['date']")),
    "runs while it plans": Fault("recipes", "runs a command", recipe("os.system('true')  # HERE\nreturn ['date']")),
    "runs a program while it plans": Fault("recipes", "runs a command", recipe("subprocess.run(['true'])  # HERE\nreturn ['date']")),
    "writes while it plans": Fault("recipes", "writes the file", recipe("open('made', 'w').close()  # HERE\nreturn ['date']")),
    "None": Fault("recipes", "list of command lines", recipe("return None").replace("def make(goal):", "def make(goal):  # HERE")),
    "bytes as a step": Fault("recipes", "bytes", recipe("return [b'date']").replace("def make(goal):", "def make(goal):  # HERE")),
    "generator of numbers": Fault("recipes", "int", recipe("yield 5").replace("def make(goal):", "def make(goal):  # HERE")),
    "no steps": Fault("recipes", "no step", recipe("return []").replace("def make(goal):", "def make(goal):  # HERE"), severity="warning"),
    "environment": Fault("recipes", "changes the environment", recipe("os.environ['GOAL'] = goal  # HERE\nreturn ['date']")),
    "key in a command": Fault("secrets", "shows the key", recipe("return [f\"curl -H 'X: {os.environ.get('ACME_KEY', '')}' example.org\"]").replace("def make(goal):", "def make(goal):  # HERE")),
    "network": Fault("recipes", "uses the network", recipe("import socket\ntry: socket.create_connection(('example.org', 80))  # HERE\nexcept OSError: pass\nreturn ['date']")),
    "mutable default": Fault("metadata", "default", recipe("return ['date']").replace("def make(goal):", "def make(goal, seen=[]):  # HERE\n    seen.append('date')\n    return seen")),
    "swallows Ctrl-C": Fault("interrupts", "swallows Ctrl-C", recipe("try:\n    steps = ['date']  # HERE\nexcept:\n    steps = []\nreturn steps")),
    "exits": Fault("recipes", "SystemExit", recipe("sys.exit(1)  # HERE")),
    "unquoted parameter": Fault("recipes", "runs what is in the parameter", recipe("return ['date']").replace("def make(goal):", "def make(goal, where='.'):  # HERE\n    return [f'ls {where}']").replace("'faulty', make", "'faulty', make, parameters=[Parameter('where')]")),
    "parameter that it does not take": Fault("contract", "where", recipe("return ['date']").replace("'faulty', make)", "'faulty', make, parameters=[Parameter('where')])  # SOMEWHERE")),
    "goal as shell code": Fault("recipes", "runs what is in the goal", recipe("return [Step(('bash', '-c', 'echo ' + goal))]").replace("def make(goal):", "def make(goal):  # HERE")),
    "goal for eval": Fault("recipes", "runs what is in the goal", recipe("import shlex\nreturn [f'eval echo {shlex.quote(goal)}']").replace("def make(goal):", "def make(goal):  # HERE")),
    "Python code": Fault("recipes", "the goal", recipe("return [Step(('python3', '-c', f\"print('{goal}')\"))]").replace("def make(goal):", "def make(goal):  # HERE")),
    "old Python only": Fault("metadata", "does not work with this Python", recipe("return ['date']"), (">=3.11", ">=3.11,<3.11.0")),
    "sleeps": Fault("recipes", "takes", recipe("time.sleep(4)  # HERE\nreturn ['date']")),
}  # fmt: skip

SERVERS = {
    "retries": Fault("errors", "asks its server", server("""
        def run(self, prompt, call):
            for _ in range(3):
                try:
                    return text_of(ask(prompt, call))
                except urllib.error.HTTPError as error:
                    last = error
            raise BackendHTTPError('refused', status=last.code)  # HERE
    """, ASK)),
    "key in the address": Fault("secrets", "address", server("""
        def run(self, prompt, call):
            try:
                return text_of(ask(prompt, call, os.environ['ACME_URL'] + '/chat/completions?key=' + os.environ['ACME_KEY']))
            except urllib.error.HTTPError as error:
                raise BackendHTTPError('refused', status=error.code)
    """, ASK)),
    "no timeout": Fault("deadlines", "after the deadline", server("""
        def run(self, prompt):
            body = json.dumps({"messages": [{"role": "user", "content": prompt}]}).encode()
            return text_of(urllib.request.urlopen(os.environ["ACME_URL"] + "/chat/completions", body))  # HERE
    """, ASK)),
    "error of the library": Fault("errors", "status 401", server("def run(self, prompt, call):\n    return text_of(ask(prompt, call))", ASK)),
    "page as an answer": Fault("errors", "a web page", server("""
        def run(self, prompt, call):
            try:
                return ask(prompt, call).read().decode()
            except urllib.error.HTTPError as error:
                raise BackendHTTPError('refused', status=error.code)
    """, ASK)),
    "error as an answer": Fault("errors", "for an answer", server("""
        def run(self, prompt, call):
            try:
                return text_of(ask(prompt, call))
            except Exception as error:
                return f'error: {error}'
    """, ASK)),
    "KeyError for an odd answer": Fault("errors", "IndexError", server("""
        def run(self, prompt, call):
            try:
                answer = json.load(ask(prompt, call))
                return answer['choices'][0]['message']['content']  # HERE
            except urllib.error.HTTPError as error:
                raise BackendHTTPError('refused', status=error.code)
            except ValueError as error:
                raise MalformedResponseError('no JSON')
    """, ASK)),
    "shows what the server says": Fault("secrets", "shows the key", server("""
        def run(self, prompt, call):
            try:
                return text_of(ask(prompt, call))
            except urllib.error.HTTPError as error:
                raise BackendHTTPError(error.read().decode(), status=error.code)  # HERE
            except ValueError:
                raise MalformedResponseError('no JSON')
    """, ASK)),
    "models at import": Fault("import", "network", server("def run(self, prompt): return prompt", "try: MODELS = urllib.request.urlopen('http://example.org/models').read()  # HERE\nexcept OSError: MODELS = []\n")),
    "models at readiness": Fault("contract", "network", server("def run(self, prompt): return prompt\n@property\ndef models(self):\n    try: urllib.request.urlopen('http://example.org/models')  # HERE\n    except OSError: pass\n    return ()")),
    "no certificates": Fault("import", "certificates", server("def run(self, prompt): return prompt", "import ssl\nssl._create_default_https_context = ssl._create_unverified_context  # HERE\n")),
    "key at import": Fault("import", "ACME_KEY", server("def run(self, prompt): return prompt", "KEY = os.environ['ACME_KEY']  # HERE\n")),
    "logs the key": Fault("secrets", "key", server("""
        def run(self, prompt, call):
            import logging
            logging.getLogger('acme').warning('asking with %s', os.environ['ACME_KEY'])  # HERE
            return prompt
    """)),
    "key undeclared": Fault("secrets", "secret_env", server("def run(self, prompt): return os.environ.get('OTHER_TOKEN', '') and prompt or prompt  # HERE")),
    "lost usage": Fault("answers", "usage", server("def run(self, prompt): return Completion(prompt, usage=Usage(1, 2))\ndef stream(self, prompt): yield prompt  # HERE"), severity="warning"),
}  # fmt: skip

GUARDRAIL_SOURCE = {
    "text instead of a request": Fault("requests", "must return a Request", plugin("@hookimpl  # HERE\ndef llm_prepare(request): return request.prompt.replace('x', 'y')")),
    "truth instead of a request": Fault("requests", "must return a Request", plugin("@hookimpl  # HERE\ndef llm_prepare(request): return True")),
    "dict instead of a request": Fault("requests", "must return a Request", plugin("@hookimpl  # HERE\ndef llm_prepare(request): return {'prompt': request.prompt}")),
    "generator": Fault("contract", "is a generator", plugin("@hookimpl  # HERE\ndef llm_prepare(request): yield request")),
    "wrapper": Fault("contract", "cannot be wrapped", plugin("@hookimpl(wrapper=True)  # HERE\ndef llm_prepare(request):\n    return (yield)")),
    "old wrapper": Fault("contract", "old-style hookwrapper", plugin("@hookimpl(hookwrapper=True)  # HERE\ndef llm_run_step(step):\n    yield")),
    "argument of another hook": Fault("contract", "asks for 'call'", plugin("@hookimpl  # HERE\ndef llm_prepare(request, call): ...")),
    "changes the request itself": Fault("requests", "FrozenInstanceError", plugin("@hookimpl\ndef llm_prepare(request): request.backend = 'sample'  # HERE")),
    "prints": Fault("requests", "writes to stdout", plugin("@hookimpl\ndef llm_prepare(request): print('looking')  # HERE")),
    "reads stdin": Fault("requests", "reads stdin", plugin("@hookimpl\ndef llm_prepare(request):\n    if input('send? ') != 'y': raise BackendError('no')  # HERE")),
    "quotes the secret": Fault("requests", "repeats", plugin("import re\n@hookimpl\ndef llm_prepare(request):\n    found = re.search(r'sk-[\\w-]+', request.as_text)\n    if found: raise BackendError(f'the prompt holds {found[0]}')  # HERE")),
    "slow pattern": Fault("requests", "does not come back", plugin("import re\n@hookimpl\ndef llm_prepare(request): re.search(r'(\\w+\\s?)+$x', request.prompt[:60] + '!')  # HERE")),
    "sleeps": Fault("requests", "takes", plugin("@hookimpl\ndef llm_prepare(request): time.sleep(3)  # HERE")),
    "no guardrail": Fault("contract", "GUARDRAIL", plugin("GUARDRAIL = 'yes'  # HERE\n@hookimpl\ndef llm_prepare(request): ...")),
    "bytes of llm_redact": Fault("observers", "llm_redact must return", plugin("@hookimpl  # HERE\ndef llm_redact(text): return text.encode('utf-8', 'replace')")),
    "bug in llm_redact": Fault("observers", "llm_redact raised", plugin("@hookimpl\ndef llm_redact(text): return text.encode('ascii').decode()  # HERE")),
    "takes away the question": Fault("steps", "removes the question", plugin("from dataclasses import replace\n@hookimpl  # HERE\ndef llm_prepare_step(step): return replace(step, confirm=False)")),
    "text instead of a step": Fault("steps", "must return a Step", plugin("@hookimpl  # HERE\ndef llm_prepare_step(step): return step.command_line")),
    "changes handlers of signals": Fault("requests", "handlers of signals", plugin("import signal\n@hookimpl\ndef llm_prepare(request): signal.signal(signal.SIGTERM, signal.SIG_IGN)  # HERE")),
    "swallows Ctrl-C": Fault("interrupts", "swallows Ctrl-C", plugin("@hookimpl\ndef llm_prepare(request):\n    try:\n        request.prompt.upper()  # HERE\n    except:\n        pass")),
    "network": Fault("requests", "uses the network", plugin("import socket\n@hookimpl\ndef llm_prepare(request):\n    try: socket.create_connection(('example.org', 80))  # HERE\n    except OSError: pass"), severity="warning"),
}  # fmt: skip


def cache(key: str, more: str = "") -> str:
    return plugin(f"""
answers = {{}}
@hookimpl(tryfirst=True)  # HERE
def llm_complete(request, backend, call):
    return answers.get({key})
class Store:
    @hookimpl(wrapper=True)
    def llm_complete(self, request, backend, call):
        answer = yield
        def store(pieces):
            texts = []
            for piece in pieces:
                texts.append(piece)
                yield piece
            answers[{key}] = "".join(texts)
        return answer.pipe(store) if answer is not None else answer
{more}
""")


def module_cache(key: str) -> str:
    return (
        cache(key)
        .replace(
            "class Store:\n    @hookimpl(wrapper=True)\n    def llm_complete(self, ",
            "@hookimpl.llm_complete(wrapper=True)\ndef store(",
        )
        .replace("\n        ", "\n    ")
        .replace("\n    def store", "\n    def kept")
        .replace("pipe(store)", "pipe(kept)")
    )


CACHES = {
    **{
        f"key without {what}": Fault("requests", f"another {what}", module_cache(key))
        for what, key in {
            "backend": "(repr(request.messages), request.model, repr(request.options))",
            "model": "(backend.name, repr(request.messages), repr(request.options))",
            "conversation": "(backend.name, request.prompt, request.model, repr(request.options))",
            "option": "(backend.name, repr(request.messages), request.model)",
        }.items()
    },
    "key with the turn of the log": Fault("requests", "notes of the log", module_cache("(backend.name, repr(request))"), severity="warning"),
    "dict": Fault("requests", "must return", plugin("@hookimpl(tryfirst=True)  # HERE\ndef llm_complete(request): return {'text': 'x'}")),
    "bytes": Fault("requests", "must return", plugin("@hookimpl(tryfirst=True)  # HERE\ndef llm_complete(request): return b'x'")),
    "pieces of bytes": Fault("requests", "bytes", plugin("@hookimpl(tryfirst=True)  # HERE\ndef llm_complete(request): return iter([b'x'])")),
    "yields twice": Fault("wrappers", "yields more than once", plugin("@hookimpl(wrapper=True)  # HERE\ndef llm_complete():\n    answer = yield\n    yield answer")),
    "forgets the answer": Fault("wrappers", "", plugin("@hookimpl(wrapper=True)  # HERE\ndef llm_complete():\n    yield")),
    "answers errors": Fault("wrappers", "429", plugin("@hookimpl(wrapper=True)  # HERE\ndef llm_complete():\n    try:\n        answer = yield\n    except BackendError as error:\n        return Answer(str(error))\n    return answer")),
    "another exception": Fault("wrappers", "429", plugin("@hookimpl(wrapper=True)  # HERE\ndef llm_complete():\n    try:\n        return (yield)\n    except BackendError as error:\n        raise RuntimeError('no') from error")),
    "waits for all": Fault("wrappers", "all of it", plugin("@hookimpl(wrapper=True)  # HERE\ndef llm_complete():\n    answer = yield\n    answer.text\n    return answer"), severity="warning"),
    "reads the pieces": Fault("wrappers", "all of it", plugin("@hookimpl(wrapper=True)  # HERE\ndef llm_complete():\n    answer = yield\n    for piece in answer: pass\n    return answer"), severity="warning"),
    "connection of one thread": Fault("threads", "several threads", plugin("import sqlite3\nfile = sqlite3.connect(':memory:')\n@hookimpl(tryfirst=True)\ndef llm_complete(request):\n    file.execute('select 1')  # HERE")),
    "file at import": Fault("import", "writes the file", plugin("open('cache.json', 'w').write('{}')  # HERE\n@hookimpl\ndef llm_complete(request): ...")),
    "prints": Fault("requests", "writes to stdout", plugin("@hookimpl(tryfirst=True)\ndef llm_complete(request): print('miss')  # HERE")),
    "no file": Fault("requests", "FileNotFoundError", plugin("@hookimpl(tryfirst=True)\ndef llm_complete(request): open('answers.json')  # HERE")),
}  # fmt: skip

POLICIES = {
    "text": Fault("requests", "llm_route must return", plugin("@hookimpl  # HERE\ndef llm_route(request): return 5")),
    "name as text": Fault("requests", "", plugin("@hookimpl  # HERE\ndef llm_route(request): return 'conformance-stub'")),
    "nowhere": Fault("requests", "not a backend", plugin("@hookimpl  # HERE\ndef llm_route(request): return ['gpt-4']")),
    "backends": Fault("requests", "llm_route must return", plugin("@hookimpl  # HERE\ndef llm_route(backends): return [backends[0]] if backends else None")),
    "dict": Fault("requests", "llm_route must return", plugin("@hookimpl  # HERE\ndef llm_route(backends): return {'backend': 'x'}")),
    "set": Fault("requests", "llm_route must return", plugin("@hookimpl  # HERE\ndef llm_route(backends): return {one.name for one in backends}")),
    "empty prompt": Fault("requests", "IndexError", plugin("@hookimpl\ndef llm_route(request, backends):\n    request.prompt.split()[0]  # HERE")),
    "no backend": Fault("requests", "IndexError", plugin("@hookimpl\ndef llm_route(request, backends):\n    backends[0]  # HERE")),
    "no primary backend": Fault("requests", "raised", plugin("@hookimpl\ndef llm_route(request, settings):\n    settings.primary_backend.lower()  # HERE")),
    "prints": Fault("requests", "writes to stdout", plugin("@hookimpl\ndef llm_route(request): print(request.prompt[:10].encode())  # HERE")),
    "network": Fault("requests", "network", plugin("import socket\n@hookimpl\ndef llm_route(request):\n    try: socket.create_connection(('example.org', 80))  # HERE\n    except OSError: pass"), severity="warning"),
    "sleeps": Fault("requests", "takes", plugin("@hookimpl\ndef llm_route(request): time.sleep(3)  # HERE")),
    "misspelt argument": Fault("contract", "asks for 'backend'", plugin("@hookimpl  # HERE\ndef llm_route(request, backend): ...")),
    "async": Fault("contract", "is async", plugin("@hookimpl  # HERE\nasync def llm_route(request): ...")),
    "configured without a default": Fault("configuration", "KeyError", plugin("@hookimpl\ndef llm_configure(settings): print(settings.section['words'])  # HERE\n@hookimpl\ndef llm_route(request): ...")),
    "schema that is none": Fault("configuration", "not a JSON Schema", plugin("CONFIG_SCHEMA = {'properties': {'words': {'type': 'int'}}}\n@hookimpl  # HERE\ndef llm_configure(settings): ...\n@hookimpl\ndef llm_route(request): ...")),
    "schema that is text": Fault("configuration", "CONFIG_SCHEMA", plugin("CONFIG_SCHEMA = '{}'\n@hookimpl  # HERE\ndef llm_configure(settings): ...\n@hookimpl\ndef llm_route(request): ...")),
    "swallows Ctrl-C": Fault("interrupts", "swallows Ctrl-C", plugin("@hookimpl\ndef llm_route(request):\n    try:\n        len(request.prompt)  # HERE\n    except BaseException:\n        pass")),
    "missing attribute": Fault("import", "no attribute", plugin("@hookimpl\ndef llm_route(request): ..."), ('"acme_faulty"', '"acme_faulty:Policy"')),
    "wrong group": Fault("entry points", "the group d0ttino.plugins", plugin("@hookimpl\ndef llm_route(request): ..."), ('"llm.plugins"', '"d0ttino.plugins"')),
    "no version": Fault("metadata", "version", plugin("@hookimpl\ndef llm_route(request): ..."), ('version = "1.0"\n', "")),
    "name with umlauts": Fault("metadata", "name", plugin("@hookimpl\ndef llm_route(request): ..."), ('"acme-faulty"', '"größe"')),
    "no specifier": Fault("metadata", "requires-python", plugin("@hookimpl\ndef llm_route(request): ..."), (">=3.11", "3.11+")),
    "dependencies as text": Fault("metadata", "dependencies", plugin("@hookimpl\ndef llm_route(request): ..."), ('["d0ttino"]', '"d0ttino"')),
    "no build system": Fault("metadata", "build-system", plugin("@hookimpl\ndef llm_route(request): ..."), ("[build-system]", "[build]"), "warning"),
    "name of an entry point": Fault("entry points", "name", plugin("@hookimpl\ndef llm_route(request): ..."), ("faulty = ", '"größe x" = ')),
    "two of one name": Fault("entry points", "faulty", plugin("@hookimpl\ndef llm_route(request): ..."), ('faulty = "acme_faulty"', 'faulty = "acme_faulty"\n[project.entry-points."d0ttino.recipes"]\nfaulty = "acme_faulty"')),
}  # fmt: skip

COMMANDS = {
    "adds nothing": Fault("commands", "adds no command", plugin("import click\n@hookimpl  # HERE\ndef llm_commands(cli): return click.Command('mine', help='x')")),
    "built-in name": Fault("commands", "built-in command", plugin("import click\n@hookimpl  # HERE\ndef llm_commands(cli): cli.add_command(click.Command('recipe', help='x'))"), ('["d0ttino"]', '["d0ttino", "click"]')),
    "key as a default": Fault("commands", "shows the key", plugin("import click\n@hookimpl  # HERE\ndef llm_commands(cli):\n    @cli.command()\n    @click.option('--key', default=os.environ.get('ACME_KEY'), show_default=True)\n    def mine(key):\n        'Help.'"), ('["d0ttino"]', '["d0ttino", "click"]')),
    "no help": Fault("commands", "has no help", plugin("import click\n@hookimpl  # HERE\ndef llm_commands(cli): cli.add_command(click.Command('mine'))"), ('["d0ttino"]', '["d0ttino", "click"]'), "warning"),
    "help that fails": Fault("commands", "--help", plugin("import click\nclass Odd(click.Command):\n    def format_help(self, ctx, formatter): raise RuntimeError('no')  # HERE\n@hookimpl\ndef llm_commands(cli): cli.add_command(Odd('mine', help='x'))"), ('["d0ttino"]', '["d0ttino", "click"]')),
    "no command": Fault("commands", "AttributeError", plugin("@hookimpl\ndef llm_commands(cli): cli.add_command('mine')  # HERE")),
    "prints": Fault("commands", "writes to stdout", plugin("@hookimpl\ndef llm_commands(cli):\n    print('adding')  # HERE\n    @cli.command()\n    def mine(): 'Help.'")),
    "ends the program": Fault("commands", "SystemExit", plugin("@hookimpl\ndef llm_commands(cli): sys.exit(0)  # HERE")),
    "heavy import": Fault("commands", "imports requests", plugin("@hookimpl\ndef llm_commands(cli):\n    import requests  # HERE\n    @cli.command()\n    def mine(): 'Help.'"), ('["d0ttino"]', '["d0ttino", "requests"]'), "warning"),
    "network": Fault("commands", "network", plugin("import socket\n@hookimpl\ndef llm_commands(cli):\n    try: socket.create_connection(('example.org', 80))  # HERE\n    except OSError: pass\n    @cli.command()\n    def mine(): 'Help.'"), severity="warning"),
    "name with a space": Fault("commands", "name", plugin("@hookimpl  # HERE\ndef llm_commands(cli):\n    @cli.command('my command')\n    def mine(): 'Help.'")),
    "misspelt hook": Fault("contract", "llm_commands", plugin("@hookimpl  # HERE\ndef llm_command(cli): ...")),
    "other argument": Fault("contract", "asks for 'group'", plugin("@hookimpl  # HERE\ndef llm_commands(group): ...")),
    "two of one name": Fault("commands", "twice", plugin("@hookimpl  # HERE\ndef llm_commands(cli):\n    @cli.command('mine')\n    def one(): 'Help.'\n    @cli.command('mine')\n    def two(): 'Help.'")),
    "option twice": Fault("commands", "option", plugin("import click\n@hookimpl  # HERE\ndef llm_commands(cli):\n    @cli.command()\n    @click.option('-x', '--one')\n    @click.option('-x', '--two')\n    def mine(one, two): 'Help.'"), ('["d0ttino"]', '["d0ttino", "click"]')),
    "parameter that its function lacks": Fault("commands", "count", plugin("import click\n@hookimpl\ndef llm_commands(cli):\n    @cli.command()\n    @click.option('--count')\n    def mine(): 'Help.'  # SOMEWHERE"), ('["d0ttino"]', '["d0ttino", "click"]')),
    "option that is taken": Fault("commands", "--backend", plugin("import click\n@hookimpl  # HERE\ndef llm_options(): return click.Option(['--backend'])"), ('["d0ttino"]', '["d0ttino", "click"]')),
    "text as an option": Fault("commands", "llm_options must return", plugin("@hookimpl  # HERE\ndef llm_options(): return '--cache'")),
    "sleeps": Fault("commands", "takes", plugin("@hookimpl\ndef llm_commands(cli):\n    time.sleep(4)  # HERE\n    @cli.command()\n    def mine(): 'Help.'")),
}  # fmt: skip


def runner(body: str, head: str = RUN) -> str:
    here = "" if "# HERE" in body else "  # HERE"
    return plugin(
        f"{head}\n@hookimpl{here}\ndef llm_run_step(step, context):\n{textwrap.indent(textwrap.dedent(body), '    ')}"
    )


RUNNERS = {
    "text": Fault("steps", "an exit status", runner("return 'fine'")),
    "truth": Fault("steps", "", runner("return run(step, context) == 0")),
    "process": Fault("steps", "an exit status", runner("return subprocess.run('true')")),
    "own environment": Fault("steps", "environment", runner("return run(step, context, env=None)"), severity="warning"),
    "own directory": Fault("steps", "elsewhere", runner("return run(step, context, cwd='/')")),
    "no timeout": Fault("steps", "timeout", runner("return run(step, context, timeout=60)")),
    "exception at a timeout": Fault("steps", "TimeoutExpired", runner("return run(step, context)").replace("  # HERE", "")),
    "words in a shell": Fault("steps", "words", runner("try:\n    done = subprocess.run(step.command if isinstance(step.command, str) else ' '.join(step.command), shell=True, capture_output=True, timeout=step.timeout, env=dict(context.env), cwd=step.cwd)\nexcept subprocess.TimeoutExpired: return 124\ncontext.output(done.stdout)\nreturn done.returncode")),
    "text of odd bytes": Fault("steps", "UnicodeDecodeError", runner("try:\n    done = subprocess.run(step.command if not isinstance(step.command, str) else ['sh', '-c', step.command], text=True, encoding='utf-8', capture_output=True, timeout=step.timeout, env=dict(context.env), cwd=step.cwd)\nexcept subprocess.TimeoutExpired: return 124\ncontext.output(done.stdout.encode())\nreturn done.returncode").replace("  # HERE", "")),
    "negative status": Fault("steps", "status", runner("try: return run(step, context)\nexcept subprocess.TimeoutExpired: return 124")),
    "no copy of the output": Fault("steps", "does not copy its output", runner("try: return max(0, run(step, StepContextLike(context)))\nexcept subprocess.TimeoutExpired: return 124", RUN + "class StepContextLike:\n    def __init__(self, context): self.env, self.output = context.env, None\n"), severity="warning"),
    "text as output": Fault("steps", "text", runner("context.output('text')\ntry: return max(0, run(step, context))\nexcept subprocess.TimeoutExpired: return 124")),
    "changes the environment": Fault("steps", "changes the environment", runner("os.environ.update(context.env)  # HERE\ntry: return abs(run(step, context))\nexcept subprocess.TimeoutExpired: return 124")),
    "changes the directory": Fault("steps", "changes the working directory", runner("os.chdir('/')  # HERE\ntry: return abs(run(step, context))\nexcept subprocess.TimeoutExpired: return 124")),
    "prints": Fault("steps", "writes to stdout", runner("print('running')  # HERE\ntry: return abs(run(step, context))\nexcept subprocess.TimeoutExpired: return 124")),
    "reads stdin": Fault("steps", "reads stdin", runner("input('run? ')  # HERE\ntry: return abs(run(step, context))\nexcept subprocess.TimeoutExpired: return 124")),
    "status of a pipe": Fault("steps", "status 0, not 3", runner("os.system(step.command_line)\nreturn 0")),
    "children are left": Fault("steps", "behind", runner("child = subprocess.Popen(['sh', '-c', step.command_line], env=dict(context.env), cwd=step.cwd, stdout=subprocess.PIPE)\ntry:\n    context.output(child.communicate(timeout=step.timeout)[0])\n    return abs(child.returncode)\nexcept subprocess.TimeoutExpired:\n    return 124")),
    "swallows Ctrl-C": Fault("interrupts", "swallows Ctrl-C", plugin("@hookimpl\ndef llm_run_step(step):\n    try:\n        len(step.command)  # HERE\n    except:\n        pass")),
    "wrapper of the old style": Fault("contract", "old-style", plugin("@hookimpl(hookwrapper=True)  # HERE\ndef llm_run_step():\n    yield")),
    "not there": Fault("steps", "FileNotFoundError", runner("try:\n    done = subprocess.run(step.command, shell=isinstance(step.command, str), capture_output=True, timeout=step.timeout, env=dict(context.env), cwd=step.cwd)\nexcept subprocess.TimeoutExpired: return 124\ncontext.output(done.stdout)\nreturn abs(done.returncode)").replace("  # HERE", "")),
}  # fmt: skip

PACKAGES = {
    f"{kind}: {name}": fault
    for kind, packages in {
        "backend": BACKENDS,
        "recipe": RECIPES,
        "server": SERVERS,
        "guard": GUARDRAIL_SOURCE,
        "cache": CACHES,
        "policy": POLICIES,
        "command": COMMANDS,
        "runner": RUNNERS,
    }.items()
    for name, fault in packages.items()
}


@pytest.mark.parametrize("name", PACKAGES)
def test_the_kit_finds_it_with_its_line_and_what_to_do(name: str, tmp_path: Path) -> None:
    fault = PACKAGES[name]
    package(tmp_path, fault)
    before = ["answers", "prompts"] if fault.check in {"fork and pickle", "secrets", "errors", "deadlines"} else []
    report = conformance.check(tmp_path, checks=[*before, fault.check])
    found = [one for one in report.findings if one.check == fault.check and fault.words in one.message]
    assert found, [str(one) for one in report.findings] or report.results
    lines = (tmp_path / "acme_faulty.py").read_text().splitlines()
    here = [number for number, line in enumerate(lines, 1) if line.endswith("# HERE")]
    if here:
        found = [one for one in found if (one.file, one.line) == (str(tmp_path / "acme_faulty.py"), here[0])]
    elif fault.project[0] and fault.check in {"metadata", "entry points", "import"}:
        found = [one for one in found if one.file == str(tmp_path / "pyproject.toml") and one.line]
    assert [one for one in found if one.severity == fault.severity and one.fix], [str(one) for one in report.findings]


def test_there_are_ten_of_each_kind() -> None:
    kinds = [name.partition(":")[0] for name in PACKAGES]
    assert {kind for kind in kinds if kinds.count(kind) >= 10} == set(kinds)
    assert len(set(kinds)) == 8
