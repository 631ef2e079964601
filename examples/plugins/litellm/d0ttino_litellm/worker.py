"""Runs in the environment of LiteLLM, which has no d0ttino: a request a line comes in, events go out.

It imports nothing of its own package: d0ttino starts it by its path.
"""

import contextlib
import json
import os
import sys
from typing import Any, TextIO


def main() -> None:
    """Answer requests until stdin ends. What libraries print goes to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # No request for a list of prices at import, and no word to anybody about what is asked.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.telemetry = False
    litellm.drop_params = True
    litellm.suppress_debug_info = True
    tell(events, {"ready": getattr(litellm, "__version__", "")})
    for line in sys.stdin:
        try:
            answer(litellm, json.loads(line), events)
        except Exception as error:  # noqa: BLE001 - it is told
            status = getattr(error, "status_code", None)
            wait = getattr(getattr(error, "response", None), "headers", {}).get("retry-after")
            fault = {"type": type(error).__name__, "message": str(error), "status": status, "retry_after": wait}
            tell(events, {"error": fault})


def answer(litellm: Any, request: dict[str, Any], events: TextIO) -> None:
    """Ask for one answer, and tell its pieces and its end."""
    model = request["model"]
    # One exchange for one request: d0ttino alone tries again.
    chunks = litellm.completion(
        stream=True, stream_options={"include_usage": True}, num_retries=0, max_retries=0, **request
    )
    end: dict[str, Any] = {"served_model": None, "finish_reason": None, "usage": None, "cost": None}
    for chunk in chunks:
        end["served_model"] = getattr(chunk, "model", None) or end["served_model"]
        usage = getattr(chunk, "usage", None)
        if usage is not None:
            end["usage"] = [usage.prompt_tokens, usage.completion_tokens]
        for choice in chunk.choices[:1]:
            thought, text = getattr(choice.delta, "reasoning_content", None), choice.delta.content
            if thought or text:
                tell(events, {"thought": thought or "", "text": text or ""})
            end["finish_reason"] = choice.finish_reason or end["finish_reason"]
    if end["usage"] is not None:
        with contextlib.suppress(Exception):  # a model without a known price
            given, said = end["usage"]
            end["cost"] = sum(litellm.cost_per_token(model=model, prompt_tokens=given, completion_tokens=said))
    tell(events, {"end": end})


def tell(events: TextIO, event: dict[str, Any]) -> None:
    """Write an event at once."""
    events.write(json.dumps(event) + "\n")
    events.flush()


if __name__ == "__main__":
    main()
