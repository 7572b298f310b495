"""A node's mount process knows local uids from the snapshot and keeps tickets over its own restart."""

import asyncio
import json
import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from xtreemos.vo.x509 import der, make_ca
from xtreemos.xtreemfs.errors import TicketRefused
from xtreemos.xtreemfs.model import NOBODY
from xtreemos.xtreemfs.nodeidentities import USER_TICKETS_MAX, NodeIdentities
from xtreemos.xtreemfs.ticket import Ticket, peek_ticket, sign_ticket

NOW = 1_700_000_000
KEY = ec.generate_private_key(ec.SECP256R1())
CHAIN = [der(make_ca("session", key=KEY, parent=None, now=NOW, life_s=3600))]


def record(user="alice", until=NOW + 100, job=""):
    return sign_ticket(Ticket("demo", user, "*" if job else "n1", NOW, until, job), CHAIN, KEY)


@pytest.fixture
def make(tmp_path):
    rows = [{"user": "alice", "vo": "demo", "uid": 7001}, {"user": "bob", "vo": "other", "uid": 7002}]
    groups = [
        {"group": "staff", "vo": "demo", "gid": 7003, "members": []},
        {"group": "staff", "vo": "other", "gid": 7004, "members": ["bob"]},
    ]
    (tmp_path / "userdb.json").write_text(json.dumps({"users": rows, "groups": groups}))
    return lambda now=NOW: NodeIdentities(tmp_path / "userdb.json", tmp_path / "tickets", vo="demo", clock=lambda: now)


def held(identities, uid=7001):
    found = asyncio.run(identities.ticket(uid))
    return peek_ticket(found) if found else None


def test_only_members_of_this_vo_have_numbers(make):
    known = make()
    assert (known.local_id("u", "alice"), known.local_id("u", "bob"), known.name_of("u", 7001), known.name_of("u", 7002)) == (
        7001, NOBODY, "alice", "bob@other",
    )  # fmt: skip


def test_a_guests_ticket_is_the_one_that_their_own_vos_mount_keeps_and_no_detached_jobs(tmp_path):
    rows = [{"user": "alice", "vo": "demo", "uid": 7001}, {"user": "bob", "vo": "other", "uid": 7002}]
    (tmp_path / "userdb.json").write_text(json.dumps({"users": rows}))
    demo, other = (
        NodeIdentities(tmp_path / "userdb.json", tmp_path / vo / "tickets", vo=vo, clock=lambda: NOW) for vo in ("demo", "other")
    )
    assert (demo.guest_of(7002), demo.guest_of(7001), demo.guest_of(0), demo.guest_of(9), other.guest_of(7002)) == (
        "other",
        "",
        "",
        "",
        "",
    )
    assert (demo.guest_tickets(7002), demo.local_id("u", "bob@other")) == ([], 7002)
    other.delegate(record(user="bob", job="jaaaaaaaaaaaa"))
    assert demo.guest_tickets(7002) == []
    other.delegate(record(user="bob", until=NOW + 50))
    assert held(demo, 7002) == demo.guest_tickets(7002)[0] != []
    assert held(demo, 7002).user == "bob"
    (tmp_path / "other" / "tickets" / "bob").unlink()
    assert held(demo, 7002) is None


def test_groups_are_none_of_the_users_and_those_of_other_vos_are_unknown(make):
    known = make()
    assert (known.local_id("g", "staff"), known.name_of("g", 7003)) == (7003, "staff")
    assert (known.local_id("u", "staff"), known.local_id("g", "alice"), known.name_of("g", 7004)) == (NOBODY, NOBODY, None)


def test_a_new_snapshot_is_noticed(make, tmp_path):
    known = make()
    known.look()
    seen = known.changes
    (tmp_path / "userdb.json").write_text(json.dumps({"users": []}))
    os.utime(tmp_path / "userdb.json", ns=(1, 1))
    known.look()
    assert (known.changes, known.local_id("u", "alice")) == (seen + 1, NOBODY)
    known.look()
    assert known.changes == seen + 1


def test_the_log_ins_ticket_is_preferred_and_a_jobs_serves_after_it(make):
    known = make()
    known.delegate(record(until=NOW + 1000, job="jaaaaaaaaaaaa"))
    assert held(known).job == "jaaaaaaaaaaaa"
    known.delegate(record())
    assert held(known).job == ""
    assert held(make(NOW + 200)).job == "jaaaaaaaaaaaa"
    assert held(make(NOW + 2000)) is None


def test_tickets_survive_a_restart_and_strangers_have_none(make):
    make().delegate(record())
    assert held(make()).user == "alice"
    assert held(make(), 7002) is None
    assert held(make(), 0) is None


def test_what_is_no_ticket_is_not_kept(make):
    with pytest.raises(TicketRefused):
        make().delegate(b"junk")


def test_tickets_of_one_user_are_bounded_and_the_log_ins_stays(make):
    known = make()
    known.delegate(record())
    for number in range(USER_TICKETS_MAX + 5):
        known.delegate(record(until=NOW + 500 + number, job=f"j{'a' * 11}{chr(97 + number % 26)}"))
    assert held(known).job == ""
