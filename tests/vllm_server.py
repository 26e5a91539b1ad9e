"""A stand-in for vLLM's OpenAI-compatible server: a made-up model behind its real protocol.

As a script it takes the options of `python -m vllm.entrypoints.openai.api_server`, and like vLLM on
a CPU it does not load weights of 8 bits.
"""

import json
import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VOCABULARY = 97


def logprob(prompt: list[int], token: int) -> float:
    """log p(token | prompt) of the made-up model."""
    scores = [
        math.sin(3 * t + sum(k * p for k, p in enumerate(prompt, 1))) for t in range(VOCABULARY)
    ]
    return scores[token] - math.log(sum(map(math.exp, scores)))


def greedy(prompt: list[int], new: int, stop: list[int]) -> list[int]:
    """The most probable tokens, a stop token included."""
    said: list[int] = []
    while len(said) < new and not (said and said[-1] in stop):
        seen = prompt + said
        said.append(max(range(VOCABULARY), key=lambda token: logprob(seen, token)))
    return said


def completion(asked: dict[str, Any]) -> dict[str, Any]:
    choices = []
    for index, prompt in enumerate(asked["prompt"]):
        tokens = greedy(prompt, asked["max_tokens"], asked.get("stop_token_ids", []))
        top = {f"token_id:{t}": logprob(prompt, t) for t in asked.get("logprob_token_ids", [])}
        choices.append({"index": index, "token_ids": tokens, "logprobs": {"top_logprobs": [top]}})
    return {"choices": choices[::-1]}  # a client must go by the index


def handler(name: str, requests: list[dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({"data": [{"id": name}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(asked)
            self.answer(completion(asked))

        def answer(self, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def serve(name: str, requests: list[dict[str, Any]]) -> Iterator[str]:
    """The URL of a server of the model `name` up to /v1; what it is asked goes to `requests`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(name, requests))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    options = dict(zip(sys.argv[3::2], sys.argv[4::2], strict=False))
    config = json.loads(Path(options["--model"], "config.json").read_text(encoding="utf-8"))
    if "8" in json.dumps(config.get("quantization_config", {}).get("config_groups")):
        sys.exit(
            "(EngineCore pid=1) [linear.py:9] ValueError: no kernel for 8 bits\nRuntimeError: x"
        )
    made = handler(options["--served-model-name"], [])
    ThreadingHTTPServer(("127.0.0.1", int(options["--port"])), made).serve_forever()


if __name__ == "__main__":
    main()
