"""The short forms of bench/soak.py and bench/chaos.py: nothing stays behind, and no request ends unclearly."""

from argparse import Namespace
from pathlib import Path

import chaos
import pytest
import soak
from server_process import ServerProcess


async def test_five_hundred_requests_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ServerProcess(*soak.flags("null", tmp_path)) as server:
        assert await soak.soak(server, 500, 64) == []
        answers = server.metrics()["penstock_requests_total"]
    said = capsys.readouterr().out
    # A third of them left: some before they had sent anything, most while they were being served.
    assert answers > 380
    assert "501 requests" in said
    assert 100 < int(said.split(" left")[0].split()[-1]) < 250


async def test_a_kill_and_a_hang_leave_nothing_behind(tmp_path: Path) -> None:
    args = Namespace(model="null", watchdog=1.0)
    with ServerProcess(*chaos.flags(args, tmp_path)) as server:
        rounds = await chaos.torment(server, 1, 16)
        assert chaos.verdict(rounds) == []
    assert [done.how for done in rounds] == ["SIGKILL", "SIGSTOP"]
    # What the dead engine had goes on where the clients have got to, on the next one.
    assert [done.ends["answered"] for done in rounds] == [16, 16]
