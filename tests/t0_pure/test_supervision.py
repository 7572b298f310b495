"""The supervisor's decisions, driven by hand and by random histories."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.node.supervise import parse_services
from xtreemos.node.supervision import CALM_AFTER_S, DELAY_S_MAX, STOP_WAIT_S, Service, Start, Supervision, Terminate


def service(name):
    return Service(name, ("run", name), {}, f"{name}.log")


def words(effects):
    return [
        ("start", effect.service.name) if isinstance(effect, Start) else ("kill" if effect.hard else "term", effect.name)
        for effect in effects
    ]


def begun(*names):
    core = Supervision()
    assert words(core.on_list([service(name) for name in names], 0.0)) == [("start", name) for name in names]
    for pid, name in enumerate(names, 100):
        core.on_started(name, pid, 0.0)
    return core


def test_what_a_service_kept_is_let_go_when_it_is_removed_or_does_not_come_up():
    core, now = begun("a", "b"), 100.0
    for _ in range(3):
        core.on_exited("a", now)
        assert not core.is_lost("a")
        core.on_started("a", 200, now)
        now += CALM_AFTER_S
    ends = 0
    while not core.is_lost("a"):
        core.on_exited("a", now)
        core.on_started("a", 300, now)
        ends += 1
    assert 5 < ends < 12
    core.on_list([service("a")], now)
    assert core.is_lost("b")
    assert core.is_lost("unheard of")


def test_first_restart_is_at_once_and_later_ones_back_off():
    core, now, delays = begun("a"), 1.0, []
    for _ in range(9):
        effects = core.on_exited("a", now)
        ended = now
        while not effects:
            now = core.next_wake_s()
            effects = core.on_time(now)
        assert words(effects) == [("start", "a")]
        delays.append(round(now - ended, 3))
        core.on_started("a", 1, now)
    assert delays == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, DELAY_S_MAX, DELAY_S_MAX]
    assert core.entries["a"].restarts == 9


def test_a_calm_service_is_restarted_at_once_again():
    core = begun("a")
    core.on_exited("a", 0.1)
    core.on_started("a", 2, 0.1)
    assert words(core.on_exited("a", 0.1 + CALM_AFTER_S)) == [("start", "a")]


def test_stop_goes_in_reverse_order_one_at_a_time():
    core = begun("a", "b", "c")
    assert words(core.on_stop(1.0)) == [("term", "c")]
    assert words(core.on_exited("c", 2.0)) == [("term", "b")]
    assert words(core.on_time(2.0 + STOP_WAIT_S)) == [("kill", "b")]
    assert words(core.on_exited("b", 13.0)) == [("term", "a")]
    assert words(core.on_exited("a", 14.0)) == []
    assert core.finished


def test_stop_forgets_services_that_wait_for_their_restart():
    core = begun("a")
    core.on_exited("a", 0.1)
    core.on_started("a", 2, 0.1)
    core.on_exited("a", 0.2)
    assert words(core.on_stop(0.25)) == []
    assert core.finished


def test_new_list_starts_the_new_and_stops_the_removed_only():
    core = begun("a", "b")
    assert words(core.on_list([service("a"), service("c")], 5.0)) == [("start", "c"), ("term", "b")]
    core.on_started("c", 7, 5.0)
    assert words(core.on_exited("b", 6.0)) == []
    assert set(core.entries) == {"a", "c"}


def test_adopted_service_is_not_started_and_one_not_in_the_list_is_stopped():
    core = Supervision()
    core.on_adopted(service("a"), 5, 3, 0.0)
    core.on_adopted(service("old"), 6, 0, 0.0)
    assert words(core.on_list([service("a"), service("b")], 0.0)) == [("start", "b"), ("term", "old")]
    assert core.entries["a"].pid == 5


@given(st.lists(st.tuples(st.sampled_from(["exit", "list", "tick", "stop"]), st.integers(0, 3), st.floats(0, 4)), max_size=60))
def test_a_service_never_runs_twice_and_is_never_forgotten(history):
    names = ["a", "b", "c", "d"]
    core, now, alive, stopping, wanted, pid = Supervision(), 0.0, {}, False, set(), 0

    def perform(effects):
        nonlocal pid
        for effect in effects:
            if isinstance(effect, Start):
                assert effect.service.name not in alive
                assert not stopping
                pid += 1
                alive[effect.service.name] = pid
                core.on_started(effect.service.name, pid, now)
            else:
                assert isinstance(effect, Terminate)
                assert effect.name in alive

    for kind, number, gap in history:
        now += gap
        if kind == "exit" and names[number] in alive:
            del alive[names[number]]
            perform(core.on_exited(names[number], now))
        elif kind == "list" and not stopping:
            wanted = set(names[: number + 1])
            perform(core.on_list([service(name) for name in names[: number + 1]], now))
        elif kind == "tick":
            perform(core.on_time(now))
        elif kind == "stop":
            stopping = True
            perform(core.on_stop(now))
    for _ in range(20):  # the world calms down: what must stop does, what must run does
        now += 20
        perform(core.on_time(now))
        leaving = [name for name in alive if stopping or name not in wanted]
        for name in leaving:
            del alive[name]
            perform(core.on_exited(name, now))
    assert set(alive) == (set() if stopping else wanted)


@pytest.mark.parametrize(
    "text",
    ['[{"name": "a"}]', '[{"name": "a/b", "argv": ["x"]}]', '[{"name": "supervise", "argv": ["x"]}]', '[{"name": 1, "argv": ["x"]}]', "["],
)
def test_wrong_list_is_refused(text):
    with pytest.raises(ValueError):
        parse_services(text)


def test_list_with_a_name_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        parse_services(json.dumps([{"name": "a", "argv": ["x"]}] * 2))
