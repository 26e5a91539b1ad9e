"""Both servers under load: the gateway over stub engines, the local server on a real ensemble.

    python experiments/bench_serve.py [--dir DIR] [--seconds 60]

The gateway: three stub engines in one process, the gateway in another, 8 clients in this one, all
on the same cores. Own time is what the gateway adds to its slowest member, by its own clock.

The local server: 16 clients for `--seconds` in all, prompts of the pocket benchmarks in random
order; offline is the same ensemble on the same prompts in one call. The two take turns, and the
share is the median of each turn's over the offline calls around it: a shared machine's speed moves.
`wrong` counts answers that are not the offline ones though the margin of every member is clear.
`--dir` is an exported ensemble; without it three members of the default model are rounded to
nearest, once, and kept under mlruns/. The last line is JSON.
"""

import argparse
import asyncio
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from ptsearch import store
from ptsearch.benchmarks import sources
from ptsearch.config import BenchmarksConfig
from ptsearch.deploy.description import FORMAT

LABELS = ["no", "yes"]
BITS = [8, 4, 3]
STUBS = ("high", "middle", "low")
CLIENTS = {"gateway": 8, "local": 16}
CLEAR = 0.5  # nats between a member's two best labels; bf16 rounding moves them by less
ROUNDS = 5
WARM = 15  # seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", default="", help="an exported ensemble, for the local server")
    parser.add_argument("--seconds", type=float, default=75.0, help="of the local load test")
    parser.add_argument("--items", type=int, default=0, help="of the benchmarks, 0 = all of them")
    parser.add_argument("--only", choices=CLIENTS, help="one of the two servers")
    parser.add_argument("--stub", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--offline", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stub:
        serve_stubs(args.stub)
        return
    if args.offline:
        answer_offline(args.dir, args.items)
        return
    result: dict[str, Any] = dict.fromkeys(
        ("stub_requests_per_s", "gateway_own_ms_p50", "local_share_of_offline", "answers", "wrong")
    )
    if args.only != "local":
        result |= bench_gateway()
    if args.only != "gateway":
        folder = Path(args.dir) if args.dir else rounded(Path("mlruns"))
        result |= bench_local(folder.resolve(), args.seconds, args.items)
    say(result)


def bench_gateway() -> dict[str, Any]:
    """Requests a second, and milliseconds, at 8 clients; the best of some rounds."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "stubs"
        describe(folder, dict.fromkeys(STUBS))
        with process("--stub", "8731", script=True):
            engines = ",".join(f"http://127.0.0.1:{8731 + k}/v1" for k in range(len(STUBS)))
            options = (f"serve.dir={folder}", f"serve.engines=[{engines}]")
            with process("+serve=gateway", *options, "serve.port=8730"):
                asyncio.run(ready("http://127.0.0.1:8730"))
                bodies = [body(f"Is {n} a prime?", LABELS) for n in range(100)]
                rounds = [
                    load("http://127.0.0.1:8730", bodies, "gateway", 5) for _ in range(ROUNDS)
                ]
    for row in rounds:
        row |= {"own_ms_p50": statistics.median(said["own_ms"] for said in row.pop("said"))}
        say({"gateway": row})
    return {
        "stub_requests_per_s": max(row["requests_per_s"] for row in rounds),
        "gateway_own_ms_p50": statistics.median(row["own_ms_p50"] for row in rounds),
        "gateway_ms_p50": statistics.median(row["ms_p50"] for row in rounds),
    }


def bench_local(folder: Path, seconds: float, items: int) -> dict[str, Any]:
    """Items a second served, as a share of offline; answers, and how many were wrong."""
    bodies = [body(prompt, labels) for prompt, labels in prompts(items)]
    options = (f"serve.dir={folder}", "serve.port=8740")
    served, shares = list[dict[str, Any]](), list[float]()
    with process("+serve=local", *options), offline(folder, items) as ask:
        asyncio.run(ready("http://127.0.0.1:8740"))
        load("http://127.0.0.1:8740", bodies, "local", WARM)  # what is kept of prompts is kept
        before = ask()
        for number in range(ROUNDS):
            first = number * len(bodies) // ROUNDS
            turned = bodies[first:] + bodies[:first]
            now = load("http://127.0.0.1:8740", turned, "local", seconds / ROUNDS)
            for one in now["said"]:
                one["index"] = (one["index"] + first) % len(bodies)
            after = ask()
            around = statistics.mean((before["items_per_s"], after["items_per_s"]))
            shares.append(now["requests_per_s"] / around)
            said = {key: value for key, value in now.items() if key != "said"}
            say({"local": said, "offline": around, "share": round(shares[-1], 3)})
            served.append(now)
            before = after
    told = [one for now in served for one in now["said"]]
    differ = [
        before["answers"][one["index"]]["margin"]
        for one in told
        if one["members"] != before["answers"][one["index"]]["members"]
    ]
    say({"members_differ": len(differ)})
    return {
        "local_items_per_s": statistics.median(now["requests_per_s"] for now in served),
        "local_share_of_offline": round(statistics.median(shares), 3),
        "answers": len(told),
        "wrong": sum(margin > CLEAR for margin in differ),
        "lost": sum(now["failed"] for now in served),
    }


def rounded(runs: Path) -> Path:
    """An ensemble for speed alone."""
    folder = runs / "bench-serve"
    if folder.exists():
        return folder
    pool = f"pool.variants=[{{method: rtn, bits: {BITS}}}]"
    build = [sys.executable, "-m", "ptsearch", "+build=pool", pool, f"runs_dir={runs}"]
    subprocess.run([*build, "calibration.samples=5"], check=True, stdout=subprocess.DEVNULL)
    metas = [(p.parent, json.loads(p.read_text())) for p in runs.glob("cache/variants/*/meta.json")]
    labels = [f"rtn-{bits}b-g64-s0" for bits in BITS]
    describe(folder, {each: next(p for p, m in metas if m["label"] == each) for each in labels})
    return folder


def describe(folder: Path, members: Mapping[str, Path | None]) -> None:
    """A folder as +export=ensemble writes it, without logged votes."""
    with store.new_folder(folder) as part:
        rows = [{"label": label, "folder": f"members/{label}"} for label in members]
        vote = {"rule": "majority", "order": list(members)}
        described = {"format": FORMAT, "settings": {}, "members": rows, "vote": vote}
        (part / "ensemble.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
        for label, checkpoint in members.items():
            if checkpoint:
                ignore = shutil.ignore_patterns("meta.json", store.MANIFEST)
                shutil.copytree(checkpoint, part / "members" / label, ignore=ignore)


def prompts(items: int) -> list[tuple[str, list[str]]]:
    """Text prompts with their labels, in random order."""
    found = [
        (sample.prompt, list(sample.question.labels))
        for benchmark in sources.load(BenchmarksConfig(), Path())
        for sample in benchmark.samples
        if isinstance(sample.prompt, str)
    ]
    random.Random(0).shuffle(found)
    return found[:items] if items else found


@contextmanager
def offline(folder: Path, items: int) -> Iterator[Callable[[], dict[str, Any]]]:
    """The ensemble without a server, in a process of its own: asks all prompts in one call."""
    command = [sys.executable, __file__, "--offline", "--dir", str(folder), "--items", str(items)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdin and process.stdout
        said, turn = process.stdout, process.stdin

        def ask() -> dict[str, Any]:
            turn.write("\n")
            turn.flush()
            return dict(json.loads(said.readline()))

        yield ask
        turn.close()


def answer_offline(folder: str, items: int) -> None:
    """As often as a line comes in."""
    from ptsearch.benchmarks.parsing import Question
    from ptsearch.deploy.ensemble import PrecisionEnsemble
    from ptsearch.deploy.query import Query

    ensemble = PrecisionEnsemble.from_pretrained(folder)
    queries = [Query(p, Question(tuple(labels)), lead=" ") for p, labels in prompts(items)]
    ensemble.ask(queries[:8])  # first-call costs
    for _ in sys.stdin:
        started = time.perf_counter()
        found = ensemble.ask(queries)
        seconds = time.perf_counter() - started
        answers = [
            {
                "members": answer.members,
                "margin": min(
                    ranked[0] - ranked[1]
                    for ranked in (sorted(s.logprobs, reverse=True) for s in answer.said.values())
                ),
            }
            for answer in found
        ]
        say({"items_per_s": round(len(queries) / seconds, 2), "answers": answers})


def load(url: str, bodies: list[bytes], server: str, seconds: float) -> dict[str, Any]:
    """Closed-loop clients for some seconds; what came back, and how fast."""
    return asyncio.run(_load(url, bodies, CLIENTS[server], seconds))


async def _load(url: str, bodies: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    said: list[dict[str, Any]] = []
    times: list[float] = []
    failed, turn = 0, 0
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), headers=headers
    ) as session:
        for each in bodies[:clients]:  # warm
            async with session.post(f"{url}/v1/completions", data=each) as response:
                await response.read()
        started = time.perf_counter()

        async def client() -> None:
            nonlocal failed, turn
            while time.perf_counter() - started < seconds:
                index, turn = turn % len(bodies), turn + 1
                sent = time.perf_counter()
                async with session.post(f"{url}/v1/completions", data=bodies[index]) as response:
                    content = await response.read()
                times.append(time.perf_counter() - sent)
                if response.status != 200:
                    failed += 1
                    continue
                told = json.loads(content)["ptsearch"]
                members = {row["member"]: row["answer"] for row in told["members"]}
                said.append({"index": index, "own_ms": told["own_ms"], "members": members})

        await asyncio.gather(*(client() for _ in range(clients)))
        spent = time.perf_counter() - started
    return {
        "requests_per_s": round(len(said) / spent, 2),
        "ms_p50": round(1000 * statistics.median(times), 2),
        "ms_p95": round(1000 * statistics.quantiles(times, n=20)[-1], 2),
        "failed": failed,
        "said": said,
    }


def body(prompt: str, labels: list[str]) -> bytes:
    asked = {"prompt": prompt, "structured_outputs": {"choice": labels}, "ptsearch": {"lead": " "}}
    return json.dumps(asked).encode()


def serve_stubs(port: int) -> None:
    """Engines that answer at once, one a port."""

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": STUBS[request.url.port - port]}]})

    async def complete(request: web.Request) -> web.Response:
        choice = json.loads(await request.read())["structured_outputs"]["choice"]
        text = {"text": choice[request.transport.get_extra_info("sockname")[1] % 2]}
        usage = {"prompt_tokens": 9, "completion_tokens": 1}
        return web.json_response({"choices": [text], "usage": usage})

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/v1/models", models)
        app.router.add_post("/v1/completions", complete)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        for k in range(len(STUBS)):
            await web.TCPSite(runner, "127.0.0.1", port + k).start()
        await asyncio.Event().wait()

    asyncio.run(run())


@contextmanager
def process(*arguments: str, script: bool = False) -> Iterator[None]:
    """A server of ours that ends with the block."""
    what = [__file__] if script else ["-m", "ptsearch"]
    started = subprocess.Popen([sys.executable, *what, *arguments], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        started.terminate()
        started.wait()


async def ready(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            try:
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)
    sys.exit(f"{url} did not come up")


def say(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
