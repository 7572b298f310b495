"""Tasks of an array in one container of jobd: streams, ends, signals, trees, restarts."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from xtreemos.errors import RemoteError
from xtreemos.testing.jobkit import JobKit


@pytest.fixture(scope="module")
def kit():
    with JobKit(Path(tempfile.mkdtemp(prefix="xostask")), f"a{os.getpid()}") as it:
        it.folder.chmod(0o755)
        yield it


@pytest.fixture
def client(kit):
    it = kit.client()
    yield it
    it.close()


def until(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)
    return value


def open_array(kit, client, script):
    return kit.start(client, ["/bin/sh", "-c", script], stdio="tasks", spec={"serves_tasks": True})


def start_tasks(kit, client, array, *names, **fields):
    entries = []
    for index, name in enumerate(names):
        spool = kit.jobs / name / "spool"
        spool.mkdir(parents=True)
        entries.append({"job": name, "env": {"XOS_INDEX": str(index)}, "spool_dir": str(spool), **fields})
    return client.call("tasks", {"job": array, "tasks": entries})


def rows(client):
    return {row["job"]: row for row in client.call("list")}


def ends(client, *names):
    return until(
        lambda: (found := rows(client)) and all(found[name]["exit"] for name in names) and [found[n]["exit"] for n in names]
    )


def output(kit, name, stream="stdout"):
    return (kit.jobs / name / "spool" / stream).read_text()


def alive(kit, text):
    lines = (line.split(None, 1) for line in kit.space.run("ps", "-eo", "stat,args").splitlines())
    return [line for line in lines if line[1] == text and line[0] != "Z"]


def close_array(kit, client, array):
    client.call("close", {"job": array})
    until(lambda: rows(client)[array]["exit"])
    client.call("forget", {"jobs": [name for name, row in rows(client).items() if row["exit"]]})


def test_tasks_have_their_own_number_streams_and_end(kit, client):
    array = open_array(kit, client, "echo out $XOS_INDEX $HOME; echo err >&2; exit $XOS_INDEX")
    names = [f"own{n}.1" for n in range(3)]
    assert [row["error"] for row in start_tasks(kit, client, array, *names)] == [None] * 3
    assert [record["code"] for record in ends(client, *names)] == [0, 1, 2]
    assert [output(kit, name) for name in names] == [f"out {n} {kit.home}\n" for n in range(3)]
    assert output(kit, names[0], "stderr") == "err\n"
    close_array(kit, client, array)


def test_a_signal_reaches_the_whole_tree_of_one_task_and_no_other(kit, client):
    array = open_array(
        kit,
        client,
        "setsid sh -c 'sleep 5151 & exec sleep 5151' & python3 -c 'import threading, subprocess as s\n"
        't = threading.Thread(target=s.run, args=(["sleep", "5151"],)); t.start(); t.join()\'',
    )
    start_tasks(kit, client, array, "tree1.1", "tree2.1")
    until(lambda: len(alive(kit, "sleep 5151")) == 6)  # one by a thread, two in a session of their own
    client.call("signal", {"job": "tree1.1", "signal": 9})
    (record,) = ends(client, "tree1.1")
    assert (record["signal"], rows(client)["tree2.1"]["state"]) == (9, "running")
    until(lambda: len(alive(kit, "sleep 5151")) == 3)
    client.call("signal", {"job": "tree2.1", "signal": 15})
    assert ends(client, "tree2.1")[0]["signal"] == 15
    until(lambda: not alive(kit, "sleep 5151"))
    close_array(kit, client, array)


def test_what_a_task_leaves_behind_ends_with_it_although_it_ignores_gentle_words(kit, client):
    array = open_array(kit, client, "trap '' HUP; setsid sleep 5252 & exit 3")
    start_tasks(kit, client, array, "left.1")
    assert ends(client, "left.1")[0]["code"] == 3
    assert not alive(kit, "sleep 5252")
    close_array(kit, client, array)


def test_a_task_that_kills_its_keeper_is_told_of_as_killed_and_the_next_one_runs(kit, client):
    array = open_array(
        kit, client, "[ $XOS_INDEX = 0 ] && [ ! -e ~/second ] && { touch ~/second; kill -9 $PPID; sleep 100; }; exit 7"
    )
    start_tasks(kit, client, array, "keeper.1")
    assert ends(client, "keeper.1")[0]["signal"] == 9
    start_tasks(kit, client, array, "keeper2.1")
    assert ends(client, "keeper2.1")[0]["code"] == 7
    close_array(kit, client, array)


def test_a_task_can_not_reach_the_order_socket_nor_trace_its_keeper(kit, client):
    script = "ls -l /proc/self/fd | grep -c socket; ls /proc/1/fd 2>&1 | head -1; ls /proc/$PPID/fd 2>&1 | head -1"
    array = open_array(kit, client, script)
    start_tasks(kit, client, array, "reach.1")
    ends(client, "reach.1")
    count, init, keeper = output(kit, "reach.1").splitlines()
    assert count == "0"
    assert "Permission denied" in init
    assert "Permission denied" in keeper
    close_array(kit, client, array)


def test_the_wall_time_of_a_task_ends_it(kit, client):
    array = open_array(kit, client, "sleep 5353")
    start_tasks(kit, client, array, "wall.1", wall_s=0.2)
    record = ends(client, "wall.1")[0]
    assert (record["reason"], record["signal"]) == ("time limit", 15)
    close_array(kit, client, array)


def test_a_program_that_is_not_there_is_said_so(kit, client):
    array = kit.start(client, ["no-such-program"], stdio="tasks", spec={"serves_tasks": True})
    start_tasks(kit, client, array, "none.1")
    record = ends(client, "none.1")[0]
    assert (record["code"], record["reason"]) == (127, "program not found")
    close_array(kit, client, array)


def test_a_container_that_ends_takes_its_tasks_along_and_takes_no_more(kit, client):
    array = open_array(kit, client, "sleep 5454")
    start_tasks(kit, client, array, "taken.1")
    client.call("close", {"job": array})
    assert ends(client, "taken.1")[0]["signal"] == 9
    until(lambda: rows(client)[array]["exit"])
    with pytest.raises(RemoteError) as refused:
        start_tasks(kit, client, array, "late.1")
    assert refused.value.code == "no-such-job"
    assert "late.1" not in rows(client)
    client.call("forget", {"jobs": [array, "taken.1"]})


def test_tasks_of_a_dead_jobd_are_known_to_the_next_until_they_are_forgotten():
    with JobKit(Path(tempfile.mkdtemp(prefix="xostask")), f"d{os.getpid()}") as kit:
        kit.folder.chmod(0o755)
        client = kit.client()
        array = open_array(kit, client, "[ $XOS_INDEX = 2 ] && sleep 5555; exit $XOS_INDEX")
        start_tasks(kit, client, array, "past0.1", "past1.1", "past2.1")
        ends(client, "past0.1", "past1.1")
        client.call("forget", {"jobs": ["past0.1"]})
        for _ in range(2):  # the second time everything is read again
            kit.kill_jobd()
            client.close()
            kit.start_jobd()
            client = kit.client()
            found = rows(client)
            assert sorted(found) == sorted([array, "past1.1", "past2.1"])
            assert (found["past1.1"]["exit"]["code"], found["past2.1"]["exit"]["reason"]) == (1, "jobd died")
            assert not alive(kit, "sleep 5555")
        client.call("forget", {"jobs": ["past1.1", "past2.1"]})
        client.call("forget", {"job": array})
        assert rows(client) == {}
        client.close()
