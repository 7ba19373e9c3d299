"""Look after the instances of a running server, which must have been started with --admin-key.

penstock instances list http://127.0.0.1:8000
penstock instances add URL [--role decode] [--count 2]
penstock instances drain URL 3          no new requests; ends when those that it has are done
penstock instances remove URL 3         ends at once; its requests go on elsewhere
penstock instances role URL 3 decode
penstock instances move URL 3 --to 4 --count 2      up to two of its requests go on at instance 4
penstock instances restart URL          all of them, one after the other; no request fails
"""

import argparse
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]

_PAUSE_S = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "add", "drain", "remove", "role", "move", "restart"))
    parser.add_argument("url", help="of the server: http://127.0.0.1:8000")
    parser.add_argument("instance", nargs="?", type=int, help="which one, by its number (drain, remove, role, move)")
    parser.add_argument("new_role", nargs="?", default="", help="prefill, decode, or nothing for both (role)")
    parser.add_argument("--role", default="", help="of what is added: prefill, decode, or nothing for both")
    parser.add_argument(
        "--count", type=int, default=1, help="instances to add, or requests to move (default: %(default)s)"
    )
    parser.add_argument("--to", type=int, help="the instance where requests go on (move)")
    parser.add_argument("--no-wait", action="store_true", help="do not wait until it is done")
    parser.add_argument("--admin-key", default="", help="as the server was given; also PENSTOCK_ADMIN_KEY")


def main(args: argparse.Namespace) -> int:
    """Raises ValueError saying what the server refuses, OSError if it is not there."""
    if (args.instance is None) == (args.action in ("drain", "remove", "role", "move")):
        raise ValueError(f"{args.action} takes {'the number of an instance' if args.instance is None else 'none'}")
    if (args.to is None) == (args.action == "move"):
        raise ValueError("move takes --to, the number of another instance; nothing else does")
    server = Server(args.url, args.admin_key or os.environ.get("PENSTOCK_ADMIN_KEY", ""))
    before = server.instances()
    if args.action != "list":
        server.ask(*_request(args))
        if not args.no_wait:
            _wait(server, _goal(args, before))
    _show(server.instances())
    return 0


class Server:
    """A server's admin endpoints."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/") + "/admin/instances"
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def instances(self) -> list[Row]:
        return self.ask("GET", "")

    def ask(self, method: str, path: str, body: Row | None = None) -> list[Row]:
        """All instances, after what was asked for has begun."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, self._headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                rows: list[Row] = json.load(reply)["data"]
                return rows
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(_reason(error)) from None


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answers {error.code} {error.reason}: is it Penstock's?"


def _request(args: argparse.Namespace) -> tuple[str, str, Row | None]:
    """Method, path and body."""
    match args.action:
        case "add":
            return "POST", "", {"role": args.role, "count": args.count}
        case "remove":
            return "DELETE", f"/{args.instance}", None
        case "drain":
            return "POST", f"/{args.instance}/drain", None
        case "role":
            return "POST", f"/{args.instance}/role", {"role": args.new_role}
        case "move":
            return "POST", f"/{args.instance}/move", {"to": args.to, "jobs": args.count}
        case _:
            return "POST", "/restart", None


def _goal(args: argparse.Namespace, before: list[Row]) -> Callable[[list[Row]], bool]:
    """What it looks like when it is done."""
    old = {row["instance"] for row in before}

    def up(rows: list[Row]) -> set[int]:
        return {row["instance"] for row in rows if row["state"] == "up"}

    match args.action:
        case "add":
            return lambda rows: len(up(rows) - old) >= args.count
        case "restart":
            return lambda rows: not old & {row["instance"] for row in rows} and len(up(rows)) >= len(up(before))
        case "role" | "move":
            return lambda rows: True
        case _:
            return lambda rows: all(row["instance"] != args.instance for row in rows)


def _wait(server: Server, done: Callable[[list[Row]], bool]) -> None:
    """Says what changes meanwhile."""
    shown = ""
    while not done(rows := server.instances()):
        states = ", ".join(f"{row['instance']} {row['state']}" for row in rows)
        if states != shown:
            print(states, flush=True)
            shown = states
        time.sleep(_PAUSE_S)


def _show(rows: list[Row]) -> None:
    print(f"{'instance':>8} {'role':8} {'state':9} {'running':>7} {'waiting':>7} {'KV used':>8} {'pid':>8} host")
    for row in rows:
        used = 100 * (1 - row["pages_free"] / row["pages"]) if row["pages"] else 0.0
        print(
            f"{row['instance']:8} {row['role'] or 'both':8} {row['state']:9} {row['running']:7} {row['waiting']:7} "
            f"{used:6.1f} % {row['pid']:8} {row['host']}"
        )
