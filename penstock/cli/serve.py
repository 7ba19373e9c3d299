"""Serve a model over an OpenAI-compatible HTTP API; without a model, the demo model that comes with the package.

penstock serve                                  the demo model, on http://127.0.0.1:8000
penstock serve ./folder --slo ttft=500ms,tpot=3x
penstock serve --config serve.yaml              keys are the flags' names; flags win
penstock serve ./folder --plan plan.yaml        what `penstock plan --output` wrote; flags win
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop
import yaml

from penstock.api.app import create_app
from penstock.api.config import FrontConfig
from penstock.api.ledger import Ledger, status_line
from penstock.api.server import listen, serve
from penstock.cli import deployed
from penstock.cli.engine_flags import engine_arguments, engine_options
from penstock.cli.front import FrontProcessConfig
from penstock.core.config import Limits
from penstock.core.slo import Slo
from penstock.cost import named
from penstock.drivers.branch import BranchConfig
from penstock.drivers.deployment import Deployment
from penstock.drivers.fleet import Fleet, FleetConfig
from penstock.drivers.home import Home
from penstock.drivers.keeper import Fronts, Keeper
from penstock.drivers.launch.base import Launcher, LaunchError
from penstock.drivers.launch.named import open_launcher
from penstock.drivers.stream import Unavailable
from penstock.drivers.worker import WorkerConfig
from penstock.engine.hub import DEMO, resolve
from penstock.policies.bundles import ROWS, row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="", help="local folder or hub id; nothing: the demo model")
    parser.add_argument("--config", help="YAML file with the same keys as these flags")
    parser.add_argument(
        "--deployment", "--plan", help="YAML file of instances, roles and policy: `penstock plan --output` writes it"
    )
    _front_arguments(parser.add_argument_group("front"))
    _instance_arguments(parser.add_argument_group("instances"))
    engine_arguments(parser.add_argument_group("engine"))
    _scheduler_arguments(parser.add_argument_group("scheduler"))


def _front_arguments(group: Any) -> None:
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    group.add_argument("--port", type=int, default=8000, help="0: any free port (default: %(default)s)")
    group.add_argument("--api-server-count", type=int, default=1, help="HTTP processes (default: %(default)s)")
    group.add_argument("--api-key", default="", help="key that clients must send; also PENSTOCK_API_KEY")
    group.add_argument("--admin-key", default="", help="key for /admin; also PENSTOCK_ADMIN_KEY; nothing: no /admin")
    group.add_argument("--served-model-name", nargs="+", default=[], help="names that clients may use for the model")
    group.add_argument("--slo", type=str, default="", help="what is promised to every request: ttft=500ms,tpot=3x")
    group.add_argument("--chat-template", default="", help="jinja file or text, instead of the model's own")
    group.add_argument("--tool-call-parser", default="auto", help="hermes, llama3_json, mistral, auto or none")
    group.add_argument("--max-body-bytes", type=int, default=8 << 20, help="larger bodies get 413")
    group.add_argument("--request-timeout", type=float, default=600.0, help="seconds without progress, then an error")
    group.add_argument("--shutdown-timeout", type=float, default=30.0, help="seconds that SIGTERM leaves to what runs")
    group.add_argument("--watchdog", type=float, default=5.0, help="seconds of silence, then the engine is replaced")
    group.add_argument("--step-timeout", type=float, default=600.0, help="seconds for one step, then likewise")
    group.add_argument("--quiet", action="store_true", help="no status line while there is work")


def _instance_arguments(group: Any) -> None:
    group.add_argument("--instances", type=int, help="replicas of the model, each a process (default: 1)")
    group.add_argument("--prefill", type=int, default=0, help="instances for prompts, instead; with --decode")
    group.add_argument("--decode", type=int, default=0, help="instances for the rest")
    group.add_argument("--devices", default="", help="GPUs, as 0,1,2,3: instances take them in turn")
    group.add_argument("--launcher", choices=("local", "ray"), default="local", help="what starts instances, and where")
    group.add_argument(
        "--ray-address", default="", help="host:port of a Ray cluster; nothing: RAY_ADDRESS, or this host's"
    )
    group.add_argument("--ray-placement", choices=("spread", "pack"), default="spread", help="of instances over nodes")
    group.add_argument(
        "--kv-transport", choices=("auto", "nixl", "zmq"), default="auto", help="what carries KV between instances"
    )
    group.add_argument(
        "--balance", default="", help="knobs of rows that rearrange: scaling=true,instances_max=4,out_tokens=48"
    )
    group.add_argument("--drain-timeout", type=float, default=600.0, help="seconds for what runs on a drained instance")


def _transport(args: argparse.Namespace) -> str:
    """None where there can never be a second instance."""
    alone = (args.instances or 1) == 1 and not args.prefill and not args.deployment and not args.admin_key
    alone = alone and "scaling" not in args.balance
    return "" if alone and not os.environ.get("PENSTOCK_ADMIN_KEY") else str(args.kv_transport)


def _scheduler_arguments(group: Any) -> None:
    rows = "; ".join(f"{name}: {r.about}" for name, r in ROWS.items())
    group.add_argument("--policy", choices=sorted(ROWS), default="fcfs", help=rows)
    group.add_argument(
        "--compose", choices=sorted(ROWS), default="", help="the row that composes steps, if not --policy"
    )
    group.add_argument("--max-num-seqs", type=int, help="requests that run at the same time")
    group.add_argument("--max-num-batched-tokens", type=int, help="tokens in one step")
    group.add_argument("--max-num-queued-reqs", type=int, default=1024, help="requests that wait; more get 429")
    group.add_argument("--pipeline-depth", type=int, default=1, help="steps in flight")
    group.add_argument("--cost", help="what steps cost, for policies that reckon: a file of `penstock fit`, or a name")
    group.add_argument("--no-correction", action="store_true", help="what steps take does not correct what they cost")
    group.add_argument("--record", default="", help="file for the log of the scheduler, for `penstock replay`")


def main(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; the exit status."""
    config = _config(args) if args.config else {}
    if config:
        args = _with_defaults(config)
    path = args.deployment
    deployment = Deployment.read(path) if path else None
    if deployment is not None:
        args = _with_defaults(deployed.flags(deployment) | config)
        args.model = deployed.model(deployment, args)
        _say_deployment(path, deployment)
    worker, fleet, front = worker_config(args), fleet_config(args, deployment), front_config(args)
    _print_configuration(worker, fleet, front, args)
    serving = (
        _serve(args, worker, fleet, front) if args.api_server_count == 1 else _serve_many(args, worker, fleet, front)
    )
    return uvloop.run(serving)


def _say_deployment(path: str, deployment: Deployment) -> None:
    if keys := deployed.unserved(deployment):
        _say(f"{path}: of the machine that was simulated, and not used here: {', '.join(keys)}")
    if planned := deployment.planned:
        within = f", {100 * planned.target:g} % within {deployment.slo}" if deployment.slo else ""
        _say(f"planned for {planned.rate:g} req/s{within}")


def _config(args: argparse.Namespace) -> dict[str, Any]:
    """Defaults for flags, from the file. Raises ValueError for what is no flag."""
    given = yaml.safe_load(Path(args.config).read_text()) or {}
    known = vars(args)
    if not isinstance(given, dict):
        raise ValueError(f"{args.config}: a mapping of flags to values is needed, as in `max-num-seqs: 64`")
    values = {str(key).replace("-", "_"): value for key, value in given.items()}
    if "plan" in values:
        values["deployment"] = values.pop("plan")
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{args.config}: no such flag: {', '.join(unknown)}")
    return values


def _with_defaults(values: dict[str, Any]) -> argparse.Namespace:
    """The command line over these values of flags."""
    parser = argparse.ArgumentParser(prog="penstock serve")
    add_arguments(parser)
    # argparse converts defaults that are strings, as it does what is typed.
    parser.set_defaults(
        **{key: value if isinstance(value, list | bool) else str(value) for key, value in values.items()}
    )
    return parser.parse_args(sys.argv[2:])


def worker_config(args: argparse.Namespace) -> WorkerConfig:
    """What the worker process is told."""
    limits = row(args.compose or args.policy).limits
    changes = {"max_num_seqs": args.max_num_seqs, "max_num_batched_tokens": args.max_num_batched_tokens}
    limits = msgspec.structs.replace(
        limits, max_num_queued=args.max_num_queued_reqs, **{k: v for k, v in changes.items() if v is not None}
    )
    _check_positive(limits, args)
    return WorkerConfig(
        engine=engine_options(args, limits.max_num_batched_tokens),
        policy=args.policy,
        compose=args.compose,
        limits=limits,
        depth=args.pipeline_depth,
        record=args.record,
        cost=named.resolve(args.cost).cost if args.cost else None,
        correct=not args.no_correction,
        transport=_transport(args),
    )


def _check_positive(limits: Limits, args: argparse.Namespace) -> None:
    values = msgspec.structs.asdict(limits) | {
        name: getattr(args, name) for name in ("pipeline_depth", "max_body_bytes", "api_server_count")
    }
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    for name in ("request_timeout", "watchdog", "step_timeout", "drain_timeout"):
        if getattr(args, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name):g}: more than 0 is needed")
    if not 0 <= args.port < 1 << 16:
        raise ValueError(f"--port {args.port}: ports go from 0 (any free one) to {(1 << 16) - 1}")


def fleet_config(args: argparse.Namespace, deployment: Deployment | None = None) -> FleetConfig:
    """Which instances there are, and how patient one is with them."""
    if bool(args.prefill) != bool(args.decode) or min(args.prefill, args.decode) < 0:
        raise ValueError(f"--prefill {args.prefill} --decode {args.decode}: one needs the other, at least 1 each")
    if args.prefill and args.instances is not None:
        raise ValueError("--instances and --prefill/--decode: give either")
    if args.instances is not None and args.instances < 1:
        raise ValueError(f"--instances {args.instances}: at least 1 is needed")
    given = deployed.roles(deployment) if deployment is not None else ()
    if given and (args.prefill or args.instances is not None):
        raise ValueError("--deployment says how many instances there are: leave --instances, --prefill, --decode out")
    return FleetConfig(
        roles=given or ("prefill",) * args.prefill + ("decode",) * args.decode or ("",) * (args.instances or 1),
        watchdog_s=args.watchdog,
        step_timeout_s=args.step_timeout,
        drain_timeout_s=args.drain_timeout,
        devices=tuple(filter(None, args.devices.split(","))),
        balance=deployed.balance(args, deployment),
    )


def front_config(args: argparse.Namespace) -> FrontConfig:
    """What the HTTP front is told."""
    null = args.engine == "null" and not args.model
    folder = None if null else resolve(args.model or str(DEMO), args.download_dir, weights=False)
    name = "null" if null else args.model or "penstock-demo"
    return FrontConfig(
        served_names=tuple(args.served_model_name) or (name,),
        model_folder=folder,
        api_key=args.api_key or os.environ.get("PENSTOCK_API_KEY", ""),
        admin_key=args.admin_key or os.environ.get("PENSTOCK_ADMIN_KEY", ""),
        slo=Slo.parse(args.slo),
        chat_template=args.chat_template,
        tool_call_parser=args.tool_call_parser,
        body_bytes_max=args.max_body_bytes,
        request_timeout_s=args.request_timeout,
    )


def _print_configuration(
    worker: WorkerConfig, fleet: FleetConfig, front: FrontConfig, args: argparse.Namespace
) -> None:
    """The configuration as it is after defaults, file and flags."""
    fields = {**msgspec.to_builtins(worker.engine), **msgspec.to_builtins(worker.limits)}
    fields |= {"instances": ",".join(role or "both" for role in fleet.roles) if len(fleet.roles) > 1 else None}
    fields |= {"policy": worker.policy, "depth": worker.depth, "host": args.host, "port": args.port}
    fields |= {"model_name": front.served_names[0], "slo": str(front.slo) or None, "api_key": bool(front.api_key)}
    shown = ", ".join(f"{key}={value}" for key, value in fields.items() if value not in (None, ""))
    _say(f"configuration: {shown}")


def _say(text: str) -> None:
    print(f"[penstock] {text}", flush=True)


async def _serve(args: argparse.Namespace, worker: WorkerConfig, fleet: FleetConfig, front: FrontConfig) -> int:
    began = time.monotonic()
    home = Home(worker, fleet, await _launcher(args))
    home.fleet.say = _say
    app = create_app(home, front)
    stop = _stop_on_signals(home)
    await home.start()
    serving = asyncio.create_task(
        serve(
            app,
            args.host,
            args.port,
            stop=stop,
            on_ready=lambda port: _say(f"listening on {args.host}:{port}"),
            # The home ends what takes longer; what it says then must still get out.
            drain_s=args.shutdown_timeout + 5,
        )
    )
    tasks = [
        serving,
        asyncio.create_task(_announce(home, front, began)),
        asyncio.create_task(_fail_with(home)),
        asyncio.create_task(stop.wait()),
    ]
    if not args.quiet:
        tasks.append(asyncio.create_task(_report(home, app.state.front.ledger)))
    try:
        await asyncio.wait([serving, tasks[2], tasks[3]], return_when=asyncio.FIRST_COMPLETED)
        return await _end(args, home, serving, stop)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _serve_many(args: argparse.Namespace, worker: WorkerConfig, fleet: FleetConfig, front: FrontConfig) -> int:
    """With HTTP in processes of its own."""
    began = time.monotonic()
    listener = listen(args.host, args.port)

    def config(branch: BranchConfig) -> bytes:
        timeout_s = args.shutdown_timeout
        return FrontProcessConfig(
            branch=branch, front=front, listener=listener.fileno(), shutdown_timeout_s=timeout_s
        ).encode()

    fronts = Fronts(args.api_server_count, "penstock.cli.front", config, (listener.fileno(),))
    keeper = Keeper(worker, fleet, await _launcher(args), fronts)
    keeper.fleet.say = _say
    stop = _stop_on_signals(keeper)
    await keeper.start()
    _say(f"listening on {args.host}:{listener.getsockname()[1]}")
    waits = [
        asyncio.create_task(stop.wait()),
        asyncio.create_task(keeper.wait(lambda: bool(keeper.failed))),
        asyncio.create_task(keeper.wait(lambda: keeper.ready)),
    ]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if waits[2].done() and keeper.fleet.state == "ready":
        _say_ready(keeper.fleet, front, began)
    await asyncio.wait(waits[:2], return_when=asyncio.FIRST_COMPLETED)
    for task in waits:
        task.cancel()
    reason = keeper.failed
    if not reason:
        _say(f"stopping: what runs has {args.shutdown_timeout:g} s to finish")
    stop.set()
    await keeper.stop(0.0 if reason else args.shutdown_timeout + 10)
    if reason:
        print(f"penstock serve: {reason}", file=sys.stderr)
    return 1 if reason else 0


async def _launcher(args: argparse.Namespace) -> Launcher:
    try:
        return await open_launcher(args.launcher, ray_address=args.ray_address, ray_placement=args.ray_placement)
    except LaunchError as error:
        raise ValueError(str(error)) from None


async def _end(args: argparse.Namespace, home: Home, serving: "asyncio.Task[None]", stop: asyncio.Event) -> int:
    """Finish what runs within the limit, then end everything."""
    reason = home.state_reason if home.state == "failed" else ""
    if not reason and not serving.done():
        _say(f"stopping: what runs has {args.shutdown_timeout:g} s to finish")
        await home.drain(args.shutdown_timeout)
    stop.set()
    await home.stop()
    try:
        await serving
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        print(f"penstock serve: {reason}", file=sys.stderr)
    return 1 if reason else 0


def _stop_on_signals(home: Home | Keeper) -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM; a second one ends everything at once."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            home.abandon()
            os._exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop


async def _announce(home: Home, front: FrontConfig, began: float) -> None:
    """The ready line."""
    try:
        await home.wait_ready(3600)
    except Unavailable:
        return
    _say_ready(home.fleet, front, began)


def _say_ready(fleet: Fleet, front: FrontConfig, began: float) -> None:
    info = fleet.info
    assert info is not None
    _say(
        f"ready in {time.monotonic() - began:.1f} s: {front.served_names[0]}, {_times(len(fleet.instances))}"
        f"{info.dtype} on {info.device}, {info.threads} threads, {info.pages} KV pages of {info.page_tokens} tokens "
        f"({info.pages * info.page_tokens * info.kv_bytes_per_token / 2**20:.0f} MiB), "
        f"at most {info.max_len} tokens a request; {'; '.join(info.notes)}"
    )


def _times(instances: int) -> str:
    return f"{instances} instances, each " if instances > 1 else ""


async def _fail_with(home: Home) -> None:
    """Returns when the home has given up."""
    while home.state != "failed":
        await home.changed()


async def _report(home: Home, ledger: Ledger) -> None:
    """Once a second while there is work."""
    while True:
        await asyncio.sleep(1.0)
        if ledger.open:
            _say(status_line(home, ledger))
