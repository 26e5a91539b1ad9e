"""Label log-probabilities and greedy replies from vLLM, through its OpenAI-compatible server.

The server runs already (`engine.url`), or is started from vLLM's own environment (`engine.python`)
on the variant's checkpoint as it is stored. A form that this build of vLLM does not load is written
out with dense weights for it. Each token of a label is a request with the tokens before it: the
server caches the prompt's keys and values, and `logprob_token_ids` returns no whole vocabulary.
"""

import math
import os
import re
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from ptsearch.config import EngineConfig
from ptsearch.engine import _compat
from ptsearch.engine.requests import (
    Logprobs,
    NonFiniteLogitsError,
    Progress,
    Requests,
    Tokens,
    until_eos,
)
from ptsearch.models import gguf_file, loading

CHUNK, PARALLEL = 32, 4  # prompts of a request, requests under way
ANSWER_SECONDS = 1800.0  # for a request
START_SECONDS = 900.0  # for loading the model
END_SECONDS = 20.0
STABLE = {4, 8, 16}  # bits that every version of compressed-tensors packs alike
NAN = "not JSON compliant"  # in vLLM's error where a log-probability is NaN
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}

Choice = dict[str, Any]  # JSON of a completion


class Server(NamedTuple):
    """A connection to a server."""

    url: str  # up to and with /v1
    name: str  # of the model there
    client: httpx.Client
    form: str  # in which form it has the weights, and why
    process: subprocess.Popen[bytes] | None = None  # None: it was running already
    forgets: bool = False  # nothing is kept from one call to the next

    def logprobs(self, requests: Requests, report: Progress) -> Logprobs:
        """log p(token | tokens before it) in nats, for every request."""
        prompts_by_following: dict[Tokens, list[Tokens]] = {}
        for prompt, following in requests.items():
            prompts_by_following.setdefault(tuple(sorted(following)), []).append(prompt)
        batches = [
            (prompts, {"max_tokens": 1, "logprobs": len(tokens), "logprob_token_ids": tokens})
            for tokens, prompts in prompts_by_following.items()
        ]
        values: Logprobs = {}
        for prompt, choice in _complete(self, batches, report).items():
            by_name = choice["logprobs"]["top_logprobs"][0]
            ids = {int(name.split(":")[1]): value for name, value in by_name.items()}
            values[prompt] = {token: _finite(ids.get(token)) for token in requests[prompt]}
        return values

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        eos: frozenset[int],
        report: Progress,
    ) -> list[list[int]]:
        """Greedy replies without their end-of-sequence token."""
        prompts_by_length: dict[int, list[Tokens]] = {}
        for prompt, new in zip(prompts, max_new_tokens, strict=True):
            prompts_by_length.setdefault(new, []).append(tuple(prompt))
        replies = {(prompt, 0): list[int]() for prompt in prompts_by_length.pop(0, [])}
        for new, some in prompts_by_length.items():
            options = {"max_tokens": new, "stop_token_ids": sorted(eos)}
            for prompt, choice in _complete(self, [(some, options)], report).items():
                replies[prompt, new] = until_eos(choice["token_ids"], eos)
        pairs = zip(prompts, max_new_tokens, strict=True)
        return [replies[tuple(prompt), new] for prompt, new in pairs]

    def uncached(self) -> "Server":
        """The same, with nothing kept from one call to the next."""
        return self._replace(forgets=True)

    def close(self) -> None:
        """End the server, if it was started here."""
        self.client.close()
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def connect(folder: Path, settings: EngineConfig, context: int) -> Server:
    """The server of the variant in `folder`.

    ValueError: it does not answer or has another model, or vLLM does not load the variant at all.
    """
    if settings.url:
        server = Server(settings.url.rstrip("/"), folder.name, _client(), "as the server has it")
        return _checked(server)
    checkpoint, trust = loading.checkpoint_of(folder)
    quantization = loading.quantization_config(checkpoint)
    groups = quantization.get("config_groups", {}).values()
    bits = sorted({group["weights"]["num_bits"] for group in groups})
    reason = "asked for by engine.form=dense" if settings.form == "dense" else ""
    if gguf := (checkpoint / gguf_file.NAME).is_file():
        reason = "GGUF is llama.cpp's"
    if not STABLE.issuperset(bits):
        reason = f"versions of compressed-tensors pack {bits[-1]} bits in different ways"
    if not (reason and (quantization or gguf)):
        try:
            return _start(checkpoint, folder.name, settings, context, trust)
        except ValueError as error:
            if not quantization:
                raise
            reason = str(error)
    with tempfile.TemporaryDirectory(prefix="ptsearch-") as scratch:
        loading.write_dense(folder, settings.dtype, Path(scratch))
        server = _start(Path(scratch), folder.name, settings, context, trust)
    return server._replace(form=f"dense: {reason}")


def _complete(
    server: Server, batches: Sequence[tuple[list[Tokens], Mapping[str, object]]], report: Progress
) -> dict[Tokens, Choice]:
    """prompt -> the server's choice for it, of prompts with options of their own."""
    salt = {"cache_salt": uuid.uuid4().hex} if server.forgets else {}
    requests = []
    for prompts, options in batches:
        ordered = sorted(set(prompts))  # those that begin alike together
        for start in range(0, len(ordered), CHUNK):
            requests.append((ordered[start : start + CHUNK], {**options, **salt}))
    total = sum(len(prompts) for prompts, _ in requests)
    choices: dict[Tokens, Choice] = {}
    with ThreadPoolExecutor(PARALLEL) as threads:
        replies = threads.map(lambda request: _post(server, *request), requests)
        for (prompts, _), some in zip(requests, replies, strict=True):
            choices.update(zip(prompts, some, strict=True))
            report(len(choices), total)
    return choices


def _post(server: Server, prompts: list[Tokens], options: Mapping[str, object]) -> list[Choice]:
    """The choices of one request, in the order of its prompts.

    ValueError: no answer, or not one with log-probabilities and token ids. NonFiniteLogitsError.
    """
    body = {
        "model": server.name,
        "prompt": prompts,
        "temperature": 0,
        "repetition_penalty": 1,  # whatever the checkpoint's generation config says
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        **options,
    }
    url = f"{server.url}/completions"
    try:
        response = server.client.post(url, json=body)
    except httpx.TransportError as error:
        raise ValueError(f"engine=vllm: no answer from {url} ({type(error).__name__})") from None
    if NAN in response.text:
        raise NonFiniteLogitsError("the server's log-probabilities hold NaN or infinity")
    if not response.is_success:
        message = " ".join(response.text.split())[:300]
        raise ValueError(f"engine=vllm: {url} answers {response.status_code}: {message}")
    choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
    if not all(choice.get("token_ids") is not None for choice in choices):
        raise ValueError(f"engine=vllm: {url} gives no token ids; it must be vLLM 0.32 or newer")
    return choices


def _finite(value: float | None) -> float:
    if value is None or not math.isfinite(value):
        raise NonFiniteLogitsError("the server gives no finite log-probability for a label")
    return value


def _checked(server: Server) -> Server:
    """ValueError unless the server has the model of that name."""
    try:
        response = server.client.get(f"{server.url}/models").raise_for_status()
        names = [model["id"] for model in response.json()["data"]]
    except (httpx.HTTPError, ValueError, LookupError) as error:
        raise ValueError(
            f"engine.url={server.url}: no OpenAI-compatible server ({error})"
        ) from None
    if server.name not in names:
        raise ValueError(
            f"engine.url={server.url} serves {', '.join(names)}, not {server.name}: start it with "
            f"--model FOLDER --served-model-name {server.name}"
        )
    return server


def _start(
    checkpoint: Path, name: str, settings: EngineConfig, context: int, trust: bool
) -> Server:
    """Start a server on the checkpoint and wait until it answers. ValueError: it ended before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [settings.python, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(checkpoint), "--served-model-name", name, "--dtype", settings.dtype]
    command += ["--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm"]
    command += ["--max-model-len", str(context)] if context else []
    command += ["--trust-remote-code"] if trust else []
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, *settings.args],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT | os.environ,
            preexec_fn=_compat.end_with_parent,  # one system call, no lock is taken
        )
        server = Server(f"http://127.0.0.1:{port}/v1", name, _client(), "as stored", process)
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if server.client.get(f"http://127.0.0.1:{port}/health").is_success:
                    return server
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.5)
        server.close()
        log.seek(0)
        raise ValueError(f"vLLM does not run {name}: {_cause(log.read().decode(errors='replace'))}")


def _client() -> httpx.Client:
    return httpx.Client(timeout=ANSWER_SECONDS, transport=httpx.HTTPTransport(retries=2))


def _cause(log: str) -> str:
    """The first exception of vLLM's log: later ones say only that something went wrong before."""
    messages = "\n".join(line for line in log.splitlines() if "WARNING" not in line)
    errors = re.findall(r"\b\w*(?:Error|Exception): .*", messages)
    return (errors or log.splitlines()[-1:] or ["its log is empty"])[0].strip()[:300]
