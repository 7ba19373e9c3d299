"""How late is the load client? Run it against a server that costs next to nothing, or against a real one.

    python bench/client_lateness.py                    # 1,000 streams, 2,000 tokens/s in all, own fake server
    python bench/client_lateness.py --url http://127.0.0.1:8000/v1/completions --model null

Prints how late requests were sent and how late the event loop was; with the fake server, which stamps each
token with its own (same machine's) clock, also how long after it was written each token got its time. Says
nothing of latencies. On a machine that is busy with other things it measures those: as root,
`chrt -r 1 python bench/client_lateness.py` shows the client by itself.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
import time
from functools import partial
from multiprocessing.connection import Connection

from penstock.cli.bench import record_of
from penstock.metrics.summary import Dist, peak_concurrency
from penstock.workload import client
from penstock.workload.arrivals import arrivals
from penstock.workload.client import Call, Client
from penstock.workload.trace import Request

LATE_MS_P99_MAX = 10.0


def main() -> int:
    args = _parse()
    if args.url:
        return _measure(args, args.url)
    mine, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=_serve, args=(theirs, args.tokens_per_s / args.streams), daemon=True)
    server.start()
    try:
        return _measure(args, f"http://127.0.0.1:{mine.recv()}/v1/completions")
    finally:
        server.terminate()
        server.join()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="completions endpoint of a running server")
    parser.add_argument("--model", default="fake")
    parser.add_argument("--streams", type=int, default=1000, help="how many are open at once")
    parser.add_argument("--tokens-per-s", type=float, default=2000.0, help="of all streams together")
    parser.add_argument("--output-len", type=int, default=20, help="tokens an answer")
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long new streams are opened")
    return parser.parse_args()


def _measure(args: argparse.Namespace, url: str) -> int:
    # Little's law: with answers of so long, this rate keeps so many streams open.
    rate = args.tokens_per_s / args.output_len
    times = arrivals("poisson", int(rate * args.seconds), rate)
    said = {"model": args.model, "prompt": "a word", "max_tokens": args.output_len, "ignore_eos": True}
    body = json.dumps(said | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    sender = Client(url, keep_text=not args.url)
    cpu_s = time.process_time()
    replies = client.run(sender.run([Call(i, int(t * 1e9), body) for i, t in enumerate(times)]))
    cpu_s = time.process_time() - cpu_s
    request = Request(arrival_s=0, prompt_tokens=2, output_tokens=args.output_len)
    records = [record_of(reply, request) for reply in replies]
    end_s = max(r.end_ns for r in records) / 1e9
    tokens = sum(r.output_tokens for r in records)
    completed = sum(r.outcome == "completed" for r in records)
    print(f"{completed} of {len(records)} answers complete, {end_s:.1f} s, {tokens / end_s:.0f} tokens/s on average,")
    print(f"at most {peak_concurrency(records)} streams at once; client used {100 * cpu_s / end_s:.0f} % of a core")
    late = {"request sent after it was due": Dist.of(r.sent_ns - r.scheduled_ns for r in records)}
    late["timer of the event loop"] = Dist.of(sender.loop_lag_ns)
    if not args.url:
        delays = [t + sender.start_ns - int(p) for r in replies for t, p in zip(r.times_ns, r.pieces, strict=True)]
        late["token noticed after it was written"] = Dist.of(delays)
    print(f"{'lateness in ms':<36}{'P50':>8}{'P99':>8}{'max':>8}")
    for name, dist in late.items():
        if dist:
            at = dist.percentiles_ms
            print(f"{name:<36}{at[50]:>8.2f}{at[99]:>8.2f}{dist.max_ms:>8.2f}")
    good = all(dist and dist.percentiles_ms[99] < LATE_MS_P99_MAX for dist in late.values())
    print(f"P99 below {LATE_MS_P99_MAX:g} ms: {'yes' if good else 'NO'}")
    return 0 if good and completed == len(records) else 1


def _serve(pipe: Connection, tokens_per_s: float) -> None:
    async def run() -> None:
        server = await asyncio.start_server(partial(_connection, gap_s=1 / tokens_per_s), "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    client.run(run())


async def _connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gap_s: float) -> None:
    """One keep-alive connection of just enough HTTP."""
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            said = json.loads(await reader.readexactly(length))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            await _answer(writer, said["max_tokens"], gap_s)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _answer(writer: asyncio.StreamWriter, tokens: int, gap_s: float) -> None:
    begin = time.monotonic()
    for i in range(tokens):
        await asyncio.sleep(max(0.0, begin + (i + 1) * gap_s - time.monotonic()))
        reason = '"length"' if i + 1 == tokens else "null"
        _event(writer, f'{{"choices":[{{"index":0,"text":"{time.perf_counter_ns()}","finish_reason":{reason}}}]}}')
    _event(writer, f'{{"choices":[],"usage":{{"prompt_tokens":2,"completion_tokens":{tokens}}}}}')
    _event(writer, "[DONE]")
    writer.write(b"0\r\n\r\n")


def _event(writer: asyncio.StreamWriter, data: str) -> None:
    if writer.is_closing():
        raise ConnectionResetError
    event = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(event), event))


if __name__ == "__main__":
    sys.exit(main())
