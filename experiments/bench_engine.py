"""Items per second of our engine beside lm-evaluation-harness, vLLM and plain transformers.

    PEERS=folder of lm_eval_mmlu.py  BENCHMARKS=folder with mmlu/  \\
        python experiments/bench_engine.py --lm-eval PYTHON --vllm PYTHON [--model DIR]

Every tool scores " A" to " D" behind the same MMLU prompts in a process of its own, one after the
other, round after round; loading is not counted. The harness in fp32 is the exact that answers are
compared with, item by item; in bf16 its best batch of the first round counts. The last part answers
a seeded subset of the embedded benchmark as `make pareto` does, and by transformers alone, one
prompt at a time. Each measurement is appended to OUT/rows.jsonl, and none is made twice, so an
interrupted run goes on. Figures of which a repeat spreads by more than 5 % are not judged: the last
line, JSON, names them in `unsteady`. On a busy machine `--clock cpu --threads 1` compares processor
time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SUBJECTS = "clinical_knowledge,moral_scenarios"
SHOTS = {"zero_shot": 0, "five_shot": 5}
LIMITS = {"zero_shot": 48, "five_shot": 24}  # items a subject
REPEATS = 3  # of the fast tools, whose one measurement is a few seconds; nothing is kept between
PARTS = (*SHOTS, "pareto")
BATCHES = (1, 8, 16)  # of the harness in bf16
PEAK = ((2048, 2048, 2048), (2048, 576, 3072), (2048, 1536, 576))  # rows, in, out
CLEAR = 2e-4  # margin of the two best letters below which fp32 leaves the answer open
STEADY = 0.05
ROUNDS = 5  # fewer are not judged
PEERS = Path(os.environ.get("PEERS", ""))

Row = dict[str, Any]


def main() -> None:
    args = parse()
    if args.ours:
        say({"ours": ours, "pareto": pareto}[args.ours](args))
        return
    if not (PEERS / "lm_eval_mmlu.py").is_file():
        sys.exit("set PEERS to the folder of lm_eval_mmlu.py and vllm_mmlu.py")
    args.out.mkdir(parents=True, exist_ok=True)
    asked = f"{args.subjects} {args.limit} {args.pocket} {args.threads}"
    rate_of = "items_per_cpu_s" if args.clock == "cpu" else "items_per_s"
    path = args.out / "rows.jsonl"
    rows = [row for row in read(path) if row["asked"] == asked] if path.exists() else []
    for number in range(args.rounds):
        for part in PARTS:
            for tool, command in commands(args, part, fastest_batch(part, rows)).items():
                if not any(of(rows, part, tool, number)):
                    row = {"part": part, "tool": tool, "round": number, "asked": asked}
                    row |= measured(tool, command)
                    row["rate"] = row[rate_of]
                    rows.append(row)
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    say(row)
    say(summary(args, rows))


def summary(args: argparse.Namespace, rows: list[Row]) -> Row:
    """Ratios of medians over the rounds, and how far the answers agree."""
    rate, unsteady = {}, []
    for part, tool in dict.fromkeys((row["part"], row["tool"]) for row in rows):
        rates = [row["rate"] for row in of(rows, part, tool)]
        rate[part, tool] = statistics.median(rates)
        if len(rates) > 1 and max(rates) - min(rates) > STEADY * rate[part, tool]:
            unsteady.append(f"{part}_{tool}")
    found, agreed = {"pareto_vs_plain": rate["pareto", "ours"] / rate["pareto", "plain"]}, {}
    for part in SHOTS:
        mine, best = rate[part, "ours_bf16"], f"harness_bf16_{fastest_batch(part, rows)}"
        found[f"{part}_bf16_vs_peer_fp32"] = mine / rate[part, "harness_fp32"]
        found[f"{part}_fp32_vs_peer_fp32"] = rate[part, "ours_fp32"] / rate[part, "harness_fp32"]
        found[f"{part}_bf16_vs_peer_bf16"] = mine / rate[part, best]
        if args.vllm:
            found[f"{part}_bf16_vs_vllm"] = mine / rate[part, "vllm_bf16"]
        exact = read(args.out / f"{part}_harness_fp32.jsonl")
        for tool in ("ours_fp32", "ours_bf16", *(["vllm_bf16"] if args.vllm else [])):
            agreed[f"{part}_{tool}"] = agreement(read(args.out / f"{part}_{tool}.jsonl"), exact)
    shares = [row["share_of_gemm_peak"] for row in of(rows, "zero_shot", "ours_bf16")]
    return {
        "agreement": agreed,
        "unsteady": unsteady,
        "judged": not unsteady and args.rounds >= ROUNDS,
        **{key: round(value, 2) for key, value in found.items()},
        "share_of_gemm_peak": round(statistics.median(shares), 3),
        "argmax_agreement_fp32": min(agreed[f"{part}_ours_fp32"]["share"] for part in SHOTS),
    }


def commands(args: argparse.Namespace, part: str, batch: int | None) -> dict[str, list[str]]:
    """Tool -> its command line, all on the same prompts; of the harness in bf16 the batch named."""
    same = ["--model", args.model, "--threads", str(args.threads)]
    me = [sys.executable, __file__, *same, "--clock", args.clock]
    if part not in SHOTS:
        me += ["--ours", "pareto", "--pocket", str(args.pocket)]
        return {"ours": me, "plain": [*me, "--plain"]}
    asked = ["--root", str(args.root), "--subjects", args.subjects]
    asked += ["--limit", str(args.limit or LIMITS[part])]
    asked += ["--shots", str(SHOTS[part])]
    again = ["--repeat", str(REPEATS)]
    harness = [args.lm_eval, str(PEERS / "lm_eval_mmlu.py"), *same, *asked]
    tools = {
        "ours_bf16": [*me, *asked, *again, "--ours", "ours", "--dtype", "bfloat16"],
        "ours_fp32": [*me, *asked, *again, "--ours", "ours", "--dtype", "float32"],
        "harness_fp32": [*harness, "--dtype", "float32", "--batch-size", "1"],
    }
    for size in [batch] if batch else BATCHES:
        tools[f"harness_bf16_{size}"] = [*harness, "--dtype", "bfloat16", "--batch-size", str(size)]
    if args.vllm:
        script = str(PEERS / "vllm_mmlu.py")
        tools["vllm_bf16"] = [args.vllm, script, *same, *asked, *again, "--prefix-caching", "on"]
    return {
        tool: [*command, "--out", str(args.out / f"{part}_{tool}.jsonl")]
        for tool, command in tools.items()
    }


def ours(args: argparse.Namespace) -> Row:
    """One measurement of our engine: the row that the peers' scripts print."""
    sys.path.insert(0, str(PEERS))
    import mmlu
    from meter import Meter

    from ptsearch import engine as engines
    from ptsearch.config import EngineConfig
    from ptsearch.engine import logprobs as scoring

    settings = EngineConfig(dtype=args.dtype, device="cpu", threads=args.threads)
    engine = engines.load(Path(args.model), settings)
    args.subjects = args.subjects.split(",")
    items = mmlu.load_items(args.root, args.subjects, args.shots, args.limit, engine.tokenizer)
    prompts = [engine.tokenizer(item.prompt).input_ids for item in items]
    letters = [[engine.tokenizer(f" {letter}").input_ids[-1]] for letter in mmlu.LETTERS]
    labels = [letters] * len(prompts)
    engines.score(engine, prompts[:2], labels[:2], silent)  # first-call costs
    local = engine.local
    assert local is not None
    peak = gemm_peak(local.model.dtype, args.clock)
    meters = []
    for _ in range(args.repeat):
        with Meter() as meter:
            logprobs = engines.score(engine, prompts, labels, silent)
        meters.append(meter)
    row: Row = mmlu.report(args, items, logprobs, meters)
    plan = scoring.plan(list(dict.fromkeys(map(tuple, prompts))), local.limits)
    layers = [m for m in local.model.modules() if hasattr(m, "out_features")]
    head = local.model.get_output_embeddings()
    weights = sum(m.in_features * m.out_features for m in layers if m is not head)
    tokens = sum(len(segment.tokens) for segment in plan.segments)
    asked = sum(map(len, prompts))
    seconds = row["cpu_s"] if args.clock == "cpu" else row["wall_s"]
    return row | {
        "tokens_an_item": round(asked / len(prompts), 1),
        "computed_tokens_an_item": round(tokens / len(prompts), 1),
        "gemm_peak_gflops": round(peak / 1e9),
        # Products with the layers' weights that were carried out: attention, head and
        # whatever sharing saved are not counted.
        "share_of_gemm_peak": round(2 * weights * tokens / seconds / peak, 3),
    }


def pareto(args: argparse.Namespace) -> Row:
    """One evaluation of the embedded benchmark's subset, as a study does it or plainly."""
    from ptsearch import engine as engines
    from ptsearch.benchmarks import sources
    from ptsearch.config import BenchmarksConfig, EngineConfig
    from ptsearch.engine.local import LocalModel
    from ptsearch.engine.memory import Limits
    from ptsearch.evaluation import evaluate
    from ptsearch.models import loading

    engine = engines.load(
        Path(args.model), EngineConfig(dtype=args.dtype, device="cpu", threads=args.threads)
    )
    if args.plain:  # transformers as it is, every prompt by itself
        model, _ = loading.load(Path(args.model), args.dtype, "cpu")
        engine = engine._replace(runner=LocalModel(model, Limits(1, 1), packed=False))
    benchmarks = sources.load(BenchmarksConfig(limit=args.pocket), Path("unused"))
    wall, cpu = time.perf_counter(), time.process_time()
    for benchmark in benchmarks:
        evaluate.evaluate(evaluate.asker(engine), benchmark, silent)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    items = sum(len(benchmark.samples) for benchmark in benchmarks)
    rates = {"items_per_s": round(items / wall, 3), "items_per_cpu_s": round(items / cpu, 3)}
    return {"items": items, **rates, "wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}


def gemm_peak(dtype: Any, clock: str) -> float:
    """Best rate of a product with packed weights, operations a second."""
    import torch

    from ptsearch.engine.onednn import PackedLinear

    now = time.process_time if clock == "cpu" else time.perf_counter
    best = 0.0
    with torch.inference_mode(False), torch.no_grad():
        for rows, inner, outer in PEAK:
            x = torch.ones(rows, inner, dtype=dtype)
            linear = PackedLinear(torch.nn.Linear(inner, outer, bias=False, dtype=dtype))
            for _ in range(30):
                start = now()
                linear(x)
                best = max(best, 2 * rows * inner * outer / (now() - start))
    return best


def measured(tool: str, command: list[str]) -> Row:
    """What a tool prints last."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{tool} failed:\n{done.stderr[-2000:]}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def of(rows: Iterable[Row], part: str, tool: str, number: int | None = None) -> list[Row]:
    return [
        row
        for row in rows
        if (row["part"], row["tool"]) == (part, tool) and number in (None, row["round"])
    ]


def fastest_batch(part: str, rows: list[Row]) -> int | None:
    """The harness's best batch in bf16; None before all have been tried."""
    rates = {}
    for size in BATCHES:
        for row in of(rows, part, f"harness_bf16_{size}", 0):
            rates[size] = row["rate"]
    return max(rates, key=lambda size: rates[size]) if len(rates) == len(BATCHES) else None


def agreement(found: list[Row], exact: list[Row]) -> dict[str, float]:
    """Share of equal letters where the exact is clear, and how far the log-probabilities lie."""
    clear = equal = 0
    furthest = 0.0
    for ours_, theirs in zip(found, exact, strict=True):
        if (ours_["subject"], ours_["index"]) != (theirs["subject"], theirs["index"]):
            sys.exit("the tools scored different items")
        first, second = sorted(theirs["logprobs"], reverse=True)[:2]
        if first - second > CLEAR:
            clear += 1
            equal += ours_["pred"] == theirs["pred"]
        pairs = zip(ours_["logprobs"], theirs["logprobs"], strict=True)
        furthest = max(furthest, *(abs(a - b) for a, b in pairs))
    open_ = len(exact) - clear
    return {"share": round(equal / clear, 4), "furthest": round(furthest, 4), "open": open_}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="", help="checkpoint folder; default: the embedded one")
    parser.add_argument("--lm-eval", default="", help="python with lm-evaluation-harness")
    parser.add_argument("--vllm", default="", help="python with vLLM; none: left out")
    parser.add_argument("--root", type=Path, default=os.environ.get("BENCHMARKS"))
    parser.add_argument("--subjects", default=SUBJECTS)
    parser.add_argument("--limit", type=int, default=0, help=f"items a subject, 0: {LIMITS}")
    parser.add_argument("--pocket", type=int, default=16, help="samples a scenario")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--out", type=Path, default=Path("mlruns/bench_engine"))
    parser.add_argument("--ours", choices=["ours", "pareto"], help="one measurement of our engine")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    if not args.model:
        from ptsearch.config import ModelConfig
        from ptsearch.models import base_model

        args.model = str(base_model.prepare(ModelConfig(), Path("mlruns/cache"), silent).path)
    return args


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def silent(*_: object) -> None:
    pass


def say(row: Row) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
