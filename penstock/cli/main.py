"""`penstock VERB ...`: a table of verbs. Each verb's module is imported only when it is asked for."""

import argparse
import importlib
import sys
from importlib.util import find_spec

import penstock

#: verb -> (module with `add_arguments` and `main`, what it does)
VERBS = {
    "serve": ("penstock.cli.serve", "serve a model over an OpenAI-compatible HTTP API"),
    "instances": ("penstock.cli.instances", "list, add, drain, remove and restart the instances of a running server"),
    "bench": ("penstock.cli.bench", "load a server and report latencies and goodput"),
    "simulate": ("penstock.cli.simulate", "run the same scheduler over a trace in simulated time"),
    "plan": ("penstock.cli.plan", "search deployments for the highest goodput per GPU, in simulated time"),
    "reproduce": ("penstock.cli.reproduce", "run published figures again, and hold their claims against ours"),
    "profile": ("penstock.cli.profile", "measure what steps take on this machine"),
    "fit": ("penstock.cli.fit", "make a cost model of what was measured, and say how far off it is"),
    "replay": ("penstock.cli.replay", "feed a recorded run to the scheduler again: the same commands? the same times?"),
    "trace": ("penstock.cli.trace", "describe, convert and synthesize traces of requests"),
}


def main(argv: list[str] | None = None) -> int:
    """Entry point of the `penstock` command. Returns the exit status."""
    args = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="penstock", description="Serving of generative models, judged by goodput.", epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("verb", choices=VERBS, metavar="VERB")
    verb: str = parser.parse_args(args[:1]).verb
    module = importlib.import_module(VERBS[verb][0])
    verb_parser = argparse.ArgumentParser(
        prog=f"penstock {verb}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(verb_parser)
    try:
        status: int = module.main(verb_parser.parse_args(args[1:]))
    except (ValueError, OSError) as error:
        print(f"penstock {verb}: {error}", file=sys.stderr)
        return 2
    return status


def _version() -> str:
    found = find_spec("penstock.core.instance")
    compiled = found is not None and found.origin is not None and not found.origin.endswith(".py")
    return f"penstock {penstock.__version__}{', the core compiled' if compiled else ''}"


def _epilog() -> str:
    lines = "\n".join(f"  {verb:10} {about}" for verb, (_, about) in VERBS.items())
    return f"verbs:\n{lines}\n\n`penstock VERB --help` tells more."


if __name__ == "__main__":
    sys.exit(main())
