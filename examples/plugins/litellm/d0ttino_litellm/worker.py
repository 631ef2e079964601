"""The program in the environment of LiteLLM: each line of stdin is a request, each line of stdout an event, in JSON.

That environment has no d0ttino, so it imports nothing of its own package, and is started by its path.
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
    # No request for a list of prices at import, and no telemetry.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.telemetry = False
    litellm.drop_params = True
    litellm.suppress_debug_info = True
    write(events, {"ready": getattr(litellm, "__version__", "")})
    for line in sys.stdin:
        try:
            answer(litellm, json.loads(line), events)
        except Exception as error:  # noqa: BLE001 - d0ttino reports it
            status = getattr(error, "status_code", None)
            wait = getattr(getattr(error, "response", None), "headers", {}).get("retry-after")
            fault = {"type": type(error).__name__, "message": str(error), "status": status, "retry_after": wait}
            write(events, {"error": fault})


def answer(litellm: Any, request: dict[str, Any], events: TextIO) -> None:
    """Ask for one answer, and write its pieces and its end."""
    model = request["model"]
    # No retries here: d0ttino does them.
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
                write(events, {"thought": thought or "", "text": text or ""})
            end["finish_reason"] = choice.finish_reason or end["finish_reason"]
    if end["usage"] is not None:
        with contextlib.suppress(Exception):  # a model without a known price
            input_tokens, output_tokens = end["usage"]
            end["cost"] = sum(
                litellm.cost_per_token(model=model, prompt_tokens=input_tokens, completion_tokens=output_tokens)
            )
    write(events, {"end": end})


def write(events: TextIO, event: dict[str, Any]) -> None:
    """Write an event at once."""
    events.write(json.dumps(event) + "\n")
    events.flush()


if __name__ == "__main__":
    main()
