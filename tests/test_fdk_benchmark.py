"""The benchmark of FDK: what it tells, how often it measures, and when it complains."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from benchmarks import fdk, fdk_peers
from benchmarks.rtk_peer import further_than_rtk


@pytest.mark.parametrize(
    ("seconds", "is_peer", "again"),
    [
        ([], True, True),
        ([59.0], True, True),
        ([59.0] * 4, True, True),
        ([59.0] * 5, True, False),
        ([60.0], True, False),
        ([600.0] * 4, False, True),
        ([600.0] * 5, False, False),
    ],
)
def test_a_peer_runs_as_often_as_this_node_unless_one_run_takes_a_minute(seconds, is_peer, again):
    assert fdk.runs_again(seconds, 5, is_peer=is_peer) is again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "complaint"), [(1.0, None), (1e-3, r"tharsis: RMSE .*, expected 1\.01 times RTK's 0\.001 at most")]
)
def test_seconds_are_told_and_an_rmse_above_rtk_s_after_them(monkeypatch, capsys, error, complaint):
    def rtk(problem):
        return "rtk", lambda: problem.truth + np.float32(error)

    monkeypatch.setitem(fdk_peers.PEERS, "rtk", rtk)
    monkeypatch.setattr(sys, "argv", ["fdk.py", "--size", "40", "--views", "30", "--peers", "rtk", "--json"])
    with pytest.raises(SystemExit, match=complaint) as left:
        fdk.main()
    assert (left.value.code is None) == (complaint is None)
    told = json.loads(capsys.readouterr().out)
    assert {row["runs"] for row in told["rows"]} == {5}
    taken = [row for row in told["backprojections"].values() if row["taken"]]
    assert [row["seconds"] for row in taken] == [told["backprojection_s"]]
    assert 0 < told["filter_s"] < 60


def test_one_hundredth_above_rtk_is_allowed():
    assert further_than_rtk("short", 1.009, 1.0) == []
    assert further_than_rtk("short", 1.011, 1.0) == ["short: RMSE 1.011, expected 1.01 times RTK's 1 at most"]
