"""A deployment file, served: what becomes flags, what is refused, and that it runs."""

import argparse
from pathlib import Path

import httpx
import pytest
from server_process import ServerProcess

from penstock.cli import deployed
from penstock.drivers.deployment import Deployment

YAML = """
policy: distserve
slo: ttft=500ms,tpot=50ms
balance: {period_ms: 20}
pools:
  - {role: prefill, instances: 1, kv_tokens: 4096, cost: "5e6,2e4,0,1e5,0", max_num_seqs: 8}
  - {role: decode, instances: 2, kv_tokens: 4096, cost: "5e6,2e4,0,1e5,0", max_num_seqs: 8}
"""


def read(tmp_path: Path, text: str = YAML) -> Deployment:
    (tmp_path / "d.yaml").write_text(text)
    return Deployment.read(tmp_path / "d.yaml")


def test_flags_and_roles(tmp_path: Path) -> None:
    deployment = read(tmp_path)
    assert deployed.roles(deployment) == ("prefill", "decode", "decode")
    flags = deployed.flags(deployment)
    assert (flags["policy"], flags["kv_pages"], flags["max_num_seqs"]) == ("distserve", 256, 8)
    balance = deployed.balance(argparse.Namespace(balance="scaling=true,instances_max=3"), deployment)
    assert (balance.scaling, balance.instances_max, balance.period_ns) == (True, 3, 20_000_000)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("instances: 2, kv_tokens: 4096", "instances: 2, kv_tokens: 8192", r"pools\[1\].kv_tokens: it is 8192"),
        ("role: decode, ", "role: decode, pp: 2, ", r"pools\[1\].pp: 2 stages"),
    ],
)
def test_what_a_live_server_cannot_have(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        deployed.flags(read(tmp_path, YAML.replace(old, new)))


@pytest.mark.parametrize("knobs", ["fast=true", "instances_max=0", "out_tokens=much"])
def test_unknown_knobs(knobs: str) -> None:
    with pytest.raises(ValueError, match="--balance"):
        deployed.balance(argparse.Namespace(balance=knobs), None)


def test_it_serves(tmp_path: Path) -> None:
    read(tmp_path)
    with ServerProcess("--engine", "null", "--deployment", str(tmp_path / "d.yaml")) as server:
        body = {"model": "null", "prompt": [1, 2, 3], "max_tokens": 20}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30).json()
        assert answer["usage"]["completion_tokens"] == 20
        metrics = httpx.get(f"{server.url}/metrics").text
        assert sum("penstock_instance_up{" in line and 'role="decode"' in line for line in metrics.splitlines()) == 2
