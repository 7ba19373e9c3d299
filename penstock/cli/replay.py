"""Feed a recorded run to the scheduler again: the same events must give the same commands, to the byte.

penstock serve --record run.log        leaves run.log (the cluster) and run.log.instance0, ...
penstock replay run.log                checks them all; the exit status is 1 if any command differs
"""

import argparse
from pathlib import Path

from penstock.drivers import log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=Path, help="a file that `penstock serve --record` wrote")


def main(args: argparse.Namespace) -> int:
    """0 if all commands are the same."""
    paths = [args.log, *sorted(args.log.parent.glob(f"{args.log.name}.instance*"))]
    return max([_check(path) for path in paths])


def _check(path: Path) -> int:
    found = log.replay(path)
    if found.difference is None:
        print(f"{path}: {found.events} events, {found.commands} commands, all the same")
        return 0
    first = found.difference
    print(f"{path}: event {first.entry} gives other commands than recorded")
    print(f"  event     {first.event}")
    print(f"  recorded  {first.recorded}")
    print(f"  now       {first.replayed}")
    return 1
