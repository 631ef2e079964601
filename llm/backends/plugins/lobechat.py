"""LobeChat, over HTTP. `LOBECHAT_BASE_URL` is its address, if not the usual one.

A server beside LobeChat, or in front of it, may have OpenAI's interface. LobeChat itself has routes of its own,
`/api/chat/PROVIDER` in older versions and `/webapi/chat/PROVIDER` in later ones, and a login of its own. The first
request tries all of them.
"""

import json
import os
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

from llm._dataclasses import replace
from llm.backends.http import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend
from llm.errors import AuthenticationError, BackendError
from llm.types import Call

if TYPE_CHECKING:
    from llm.backends.http._errors import Endpoint
    from llm.backends.http._transport import Limits, Outgoing

_ACCESS_CODE: Final = "LOBECHAT_ACCESS_CODE"
_PROVIDER: Final = "LOBECHAT_PROVIDER"
#: LobeChat publishes both: they protect a login only from being read at a glance.
_SIGNED_WITH: Final = "LobeHub · LobeChat"
_MIXED_WITH: Final = "LobeHub · LobeHub"


def _signed(login: dict[str, str]) -> str:
    """Return a login for older versions, a JSON web token."""
    import hashlib
    import hmac
    import time
    from base64 import urlsafe_b64encode

    def part(data: bytes) -> str:
        return urlsafe_b64encode(data).rstrip(b"=").decode()

    now = int(time.time())
    claims = {**login, "iat": now, "exp": now + 100}
    text = ".".join(part(json.dumps(one).encode()) for one in ({"alg": "HS256", "typ": "JWT"}, claims))
    key = hashlib.sha256(_SIGNED_WITH.encode()).digest()
    return f"{text}.{part(hmac.digest(key, text.encode(), 'sha256'))}"


def _mixed(login: dict[str, str]) -> str:
    """Return a login for later versions, XORed with a word."""
    from base64 import b64encode

    pairs = zip(json.dumps(login).encode(), cycle(_MIXED_WITH.encode()), strict=False)
    return b64encode(bytes(one ^ other for one, other in pairs)).decode()


class _OwnRoute(NamedTuple):
    """A route of LobeChat's own: its path from the root of the server, and the format of its login."""

    path: str
    login: Callable[[dict[str, str]], str]


_USUAL: Final = "/api/chat/completions"
_OWN_ROUTES: Final = (
    _OwnRoute("/api/chat/", _signed),
    _OwnRoute("/webapi/chat/", _mixed),
    _OwnRoute("/webapi/chat/", _signed),
)


class LobeChatBackend(ChatCompletionsBackend):
    """Answers prompts through LobeChat."""

    description = "a LobeChat server of your own, at LOBECHAT_BASE_URL"
    label = "LobeChat"
    base_url_env = "LOBECHAT_BASE_URL"
    default_base_url = "http://localhost:3210/api"
    api_key_env = "LOBECHAT_API_KEY"
    # The key is optional: the address alone shows that there is a server.
    ready_env = ("LOBECHAT_API_KEY", "LOBECHAT_BASE_URL")
    secret_env = ("LOBECHAT_API_KEY", _ACCESS_CODE)

    def check(self, call: Call) -> str | None:
        """Return why it would not answer a prompt; LobeChat has no list of models, so any answer is enough."""
        try:
            return super().check(call)
        except BackendError as error:
            if error.status in {404, 405}:
                return None
            raise

    def _request(self, method: str, path: str, call: Call | None, content: bytes | None, *, stream: bool) -> Any:
        endpoint, outgoing = super()._request(method, path, call, content, stream=stream)
        code = os.environ.get(_ACCESS_CODE, "").strip()
        if not code and call is not None and call.key is not None:
            code = (call.key(_ACCESS_CODE.lower()) or "").strip()
        # `_by` finds the access code as the last of the secrets.
        return replace(endpoint, secrets=(*endpoint.secrets, code)), outgoing

    def _exchanged(self, endpoint: "Endpoint", outgoing: "Outgoing", limits: "Limits") -> Iterator[bytes]:
        """Send a request by OpenAI's interface; without such an interface, by LobeChat's own routes."""
        begun = False
        missing: BackendError | None = None
        refused: BackendError | None = None
        for route in self._routes(endpoint.url):
            try:
                for piece in super()._exchanged(endpoint, self._by(route, endpoint, outgoing), limits):
                    begun = True
                    yield piece
            except BackendError as error:
                # The route of another version, or one with another format of the login.
                if begun or error.status not in ({404, 405} if route is None else {401, 404, 405}):
                    raise
                missing = missing or error
                refused = error if error.status == 401 else refused
            else:
                self._known[endpoint.url] = route
                return
        failure = refused or missing
        assert failure is not None
        if isinstance(failure, AuthenticationError):
            failure.hint = f"`ai-cli keys set {_ACCESS_CODE}` if it has one; user accounts are not supported"
        raise failure

    def _routes(self, url: str) -> tuple[_OwnRoute | None, ...]:
        """Return the routes to try, the last successful one first; `None` is OpenAI's interface."""
        if not url.endswith(_USUAL):
            return (None,)
        known = self._known.get(url)
        return (known, *(route for route in (None, *_OWN_ROUTES) if route is not known))

    @property
    def _known(self) -> dict[str, _OwnRoute | None]:
        """The last successful route by address."""
        known: dict[str, _OwnRoute | None] = self.__dict__.setdefault("_known_routes", {})
        return known

    def _by(self, route: _OwnRoute | None, endpoint: "Endpoint", outgoing: "Outgoing") -> "Outgoing":
        """Return a request for a route."""
        if route is None:
            return outgoing
        auth: Any = outgoing.auth
        access_code, key = endpoint.secrets[-1], "".join(auth.secrets)
        login = route.login({name: value for name, value in (("accessCode", access_code), ("apiKey", key)) if value})
        root = endpoint.url.removesuffix(_USUAL)
        url = f"{root}{route.path}{quote(os.environ.get(_PROVIDER, '').strip() or 'openai', safe='')}"
        return outgoing._replace(url=url, headers={**outgoing.headers, "X-lobe-chat-auth": login})


register_backend("lobechat", LobeChatBackend)
