"""Claims: one owner at a time, dead owners lose them, on this machine at once and on others after a while."""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from filelock import SoftFileLease

from wsolbench.benchmark.core import locks, shutdown
from wsolbench.benchmark.core.locks import BusyError, exclusive
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.execution.stage_leases import claim, lease_path
from wsolbench.benchmark.planning.stage import Stage

NONE: Any = None  # leases read no inputs
ONE, TWO = (Stage("score", {}, {}, {}, NONE, key=k, group=("score", "model", "test")) for k in ("one", "two"))
TRAIN = Stage("train", {}, {}, {}, NONE, key="three")

HOLDER = """
import sys, time
from pathlib import Path
from wsolbench.benchmark.execution.stage_leases import claim
from wsolbench.benchmark.planning.stage import Stage
from wsolbench.benchmark.core.results_store import Store
with claim(Store(Path(sys.argv[1])), [Stage("train", {}, {}, {}, None, key="three")], wait=False):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def store(tmp_path):
    yield Store(tmp_path)
    shutdown.forget()


def test_a_claim_leaves_no_lease(store):
    with claim(store, [ONE, TWO], wait=False):
        assert lease_path(store, [ONE]).is_file()
        assert locks.owner(lease_path(store, [ONE])).startswith(f"process {os.getpid()} on ")
    assert not lease_path(store, [ONE]).exists()
    assert locks.owner(lease_path(store, [ONE])) == "another process"


def test_stages_of_one_pass_share_a_lease_whoever_asks_for_which(store):
    assert lease_path(store, [ONE]) == lease_path(store, [TWO])
    assert lease_path(store, [TRAIN]) != lease_path(store, [ONE])


def test_the_living_keep_it_and_the_killed_lose_it_at_once(store, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=f"process {holder.pid} on "), claim(store, [TRAIN], wait=False):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    with claim(store, [TRAIN], wait=False):
        assert time.monotonic() - began < 5, "nobody waits for the lease of a dead process of this machine"


def foreign(path, monkeypatch):
    """A lease of another machine, where nobody can tell whether its owner lives."""
    lease = SoftFileLease(path, lease_duration=locks.LEASE_SECONDS, heartbeat_interval=locks.LEASE_SECONDS / 2)
    with monkeypatch.context() as patch:
        for name, module in list(sys.modules.items()):  # where it keeps the name of this machine differs by version
            if name.startswith("filelock") and hasattr(module, "host_name"):
                patch.setattr(module, "host_name", lambda: "node7")
        patch.setattr("socket.gethostname", lambda: "node7")
        lease.acquire()
    assert "node7" in path.read_text()
    return lease


def test_a_machine_that_fell_silent_loses_it_after_a_while(store, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.5)
    path = lease_path(store, [TRAIN])
    path.parent.mkdir()
    lease = foreign(path, monkeypatch)
    lease._stop_heartbeat()  # as a machine does whose power is cut
    with pytest.raises(BusyError, match="node7"), claim(store, [TRAIN], wait=False):
        pass
    with claim(store, [TRAIN], wait=True):
        assert "node7" not in path.read_text()


def test_a_machine_that_answers_keeps_it(store, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.6)
    path = lease_path(store, [TRAIN])
    path.parent.mkdir()
    lease = foreign(path, monkeypatch)
    got = []

    def wait():
        with claim(store, [TRAIN], wait=True):
            got.append(time.monotonic())

    waiting = threading.Thread(target=wait)
    waiting.start()
    waiting.join(2)
    assert not got
    freed = time.monotonic()
    lease.release()
    waiting.join(10)
    assert got
    assert got[0] >= freed


def test_who_waits_can_be_stopped(store):
    with claim(store, [TRAIN], wait=False):
        shutdown.request(shutdown.TERMINATED)
        caught = []

        def wait():
            try:
                with claim(store, [TRAIN], wait=True):
                    pass
            except shutdown.Stopped as how:
                caught.append(how.code)

        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(10)
        assert caught == [shutdown.TERMINATED]


def test_who_lost_its_lease_is_asked_to_stop(store, monkeypatch):
    """As after a long sleep of the machine: another has taken over, so what is written now must not meet it."""
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.6)
    with claim(store, [TRAIN], wait=False):
        lease_path(store, [TRAIN]).unlink()
        until = time.monotonic() + 10
        while not shutdown.requested() and time.monotonic() < until:
            time.sleep(0.02)
        assert shutdown.requested() == shutdown.LOST


def test_what_one_process_at_a_time_may_change_is_waited_for(tmp_path):
    order = []

    def second():
        with exclusive(tmp_path, "images"):
            order.append("second")

    with exclusive(tmp_path, "images"):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.5)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
    assert not list(tmp_path.rglob("*.lease"))
