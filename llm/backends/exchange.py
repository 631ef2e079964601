"""One HTTP exchange: a request, and the pieces of its answer or one error in plain words."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Final

from llm.backends.chat_answers import server_words
from llm.backends.http_errors import Endpoint, status_error
from llm.backends.timed_connections import Limits, current_limits
from llm.backends.transport_errors import transport_error, transport_faults
from llm.errors import D0ttinoError, MalformedResponseError

if TYPE_CHECKING:
    from requests import Response, Session

    from llm.backends.chat_requests import BearerAuth

#: Small pieces: what little compressed data can become is then bounded too.
PIECE: Final = 2048

#: How many seconds the end of an answer may take after the server has said that it is complete.
MOMENT: Final = 0.2

#: How much of an error's body is read.
MAX_ERROR_BYTES: Final = 64 * 1024


class Exchange:
    """One request to a service.

    Args:
        session: whose connections are used.
        endpoint: who is asked.
        limits: how long it may take.
        connect_timeout: seconds to wait for a connection at most.
        max_bytes: how long the answer may be, after decompression.

    """

    def __init__(
        self, session: "Session", endpoint: Endpoint, limits: Limits, connect_timeout: float, max_bytes: int
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._limits = limits
        self._connect_timeout = connect_timeout
        self._max_bytes = max_bytes

    def whole(self, content: bytes, headers: Mapping[str, str], auth: "BearerAuth") -> bytes:
        """Return the body of an answer with a status that is a success.

        Raises:
            D0ttinoError: what went wrong; see `ChatCompletionsBackend.run`.

        """
        return b"".join(self.pieces(content, headers, auth, as_they_come=False))

    def pieces(
        self, content: bytes, headers: Mapping[str, str], auth: "BearerAuth", *, as_they_come: bool = True
    ) -> Iterator[bytes]:
        """Yield the body of an answer with a status that is a success, in pieces.

        Args:
            content: the body to send.
            headers: the headers to send.
            auth: puts the key into the request.
            as_they_come: whether to yield what has come, instead of waiting until a piece is full.

        Raises:
            D0ttinoError: what went wrong; see `ChatCompletionsBackend.run`.

        """
        connect_timeout = self._limits.connect_timeout(self._connect_timeout)
        failure: D0ttinoError
        try:
            with self._send(content, headers, auth, connect_timeout) as response:
                if 200 <= response.status_code < 300:
                    yield from self._bounded(_as_they_come(response) if as_they_come else response.iter_content(PIECE))
                    return
                words = "" if response.is_redirect else server_words(self._start(response))
                failure = status_error(self._endpoint, response.status_code, words, response.headers)
        except transport_faults() as error:
            failure = transport_error(self._endpoint, error, self._limits, connect_timeout)
        # Raised here, without what the library raised as its context: that refers to the request with its key.
        raise failure

    def hurry(self) -> None:
        """Wait but a moment for what is still to come."""
        self._limits.deadline = min(self._limits.deadline, monotonic() + MOMENT)

    def _send(
        self, content: bytes, headers: Mapping[str, str], auth: "BearerAuth", connect_timeout: float
    ) -> "Response":
        token = current_limits.set(self._limits)
        try:
            return self._session.post(
                self._endpoint.url,
                data=content,
                headers=headers,
                auth=auth,
                timeout=(connect_timeout, max(0.001, self._limits.next_wait())),
                allow_redirects=False,
                stream=True,
            )
        finally:
            current_limits.reset(token)

    def _bounded(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        size = 0
        for piece in pieces:
            size += len(piece)
            if size > self._max_bytes:
                raise MalformedResponseError(
                    f"{self._endpoint.label} sent an answer of more than {self._max_bytes:,} bytes; it was not read on"
                )
            yield piece

    def _start(self, response: "Response") -> bytes:
        """Return as much of the body of an error as is needed, or comes: the status is what matters."""
        body = bytearray()
        with suppress(*transport_faults()):
            for piece in response.iter_content(PIECE):
                body += piece
                if len(body) > MAX_ERROR_BYTES:
                    break
        return bytes(body)


def _as_they_come(response: "Response") -> Iterator[bytes]:
    # `iter_content` waits until a piece is full, unless the answer is chunked.
    while piece := response.raw.read1(PIECE, decode_content=True):
        yield piece
