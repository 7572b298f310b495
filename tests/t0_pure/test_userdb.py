"""The userdb responder's answers as a function of call and users; uids and local names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos import names
from xtreemos.foundation.accounts import Accounts, NameTaken, UidsUsedUp
from xtreemos.foundation.useranswers import SERVICE, Directory

USER = {"user": "alice", "vo": "demo", "uid": names.FIRST_GRID_UID, "home": "/", "sandbox_home": "/home/alice", "shell": "/bin/sh"}
NODE = Directory([USER], None, frozenset({"root"}))


def ask(method, directory=NODE, **parameters):
    call = {"method": f"io.systemd.UserDatabase.{method}", "parameters": {"service": SERVICE, **parameters}}
    [reply] = directory.answer(call, privileged=False)
    return reply.get("error", "").rpartition(".")[2] or reply["parameters"]["record"]


UID = USER["uid"]

ANSWERS = [
    ("GetUserRecord", {}, "EnumerationNotSupported"),
    ("GetGroupRecord", {}, "EnumerationNotSupported"),
    ("GetMemberships", {}, "EnumerationNotSupported"),
    ("GetMemberships", {"userName": "alice.demo"}, "NoRecordFound"),
    ("GetMemberships", {"groupName": "alice.demo"}, "NoRecordFound"),
    ("GetUserRecord", {"userName": "root"}, "NoRecordFound"),
    ("GetUserRecord", {"uid": 0}, "NoRecordFound"),
    ("GetUserRecord", {"userName": "alice.demo", "uid": UID + 1}, "ConflictingRecordFound"),
    ("GetUserRecord", {"userName": "bob.demo", "uid": UID}, "ConflictingRecordFound"),
    ("GetUserRecord", {"userName": "alice.demo", "uidMin": UID + 1}, "NonMatchingRecordFound"),
    ("GetUserRecord", {"userName": "alice.demo", "dispositionMask": ["regular"]}, "NonMatchingRecordFound"),
    ("GetUserRecord", {"userName": 5}, "InvalidParameter"),
    ("GetUserRecord", {"uid": "0"}, "InvalidParameter"),
    ("GetUserRecord", {"uid": True}, "InvalidParameter"),
    ("GetUserRecord", {"userName": "alice.demo", "service": "other"}, "BadService"),
    ("SetPassword", {}, "MethodNotFound"),
]


@pytest.mark.parametrize(("method", "parameters", "wanted"), ANSWERS)
def test_each_call_has_its_answer(method, parameters, wanted):
    assert ask(method, **parameters) == wanted


def test_a_record_names_its_service_and_is_found_by_name_and_by_number():
    record = ask("GetUserRecord", userName="alice.demo")
    assert record == ask("GetUserRecord", uid=UID) == ask("GetUserRecord", userName="alice.demo", uid=UID)
    assert (record["service"], record["uid"], record["gid"]) == (SERVICE, UID, UID)


BOB = {**USER, "user": "bob", "uid": UID + 1}
TEAMS = [
    {"group": "students", "vo": "demo", "gid": UID + 2, "members": ["alice", "bob"]},
    {"group": "students", "vo": "other", "gid": UID + 3, "members": ["alice"]},
    {"group": "bob", "vo": "demo", "gid": UID + 4, "members": ["alice"]},
    {"group": "empty", "vo": "demo", "gid": UID + 5, "members": []},
]


def memberships(directory, **parameters):
    call = {"method": "io.systemd.UserDatabase.GetMemberships", "parameters": {"service": SERVICE, **parameters}}
    replies = directory.answer(call, privileged=False)
    assert [reply.get("continues", False) for reply in replies] == [True] * (len(replies) - 1) + [False]
    return [tuple(reply["parameters"].values()) for reply in replies if "error" not in reply]


def test_groups_of_the_vo_are_groups_of_the_machine_with_their_members():
    node = Directory([USER, BOB], None, frozenset(), TEAMS)
    assert ask("GetGroupRecord", node, groupName="students.demo") == ask("GetGroupRecord", node, gid=UID + 2)
    assert ask("GetGroupRecord", node, gid=UID + 2)["gid"] == UID + 2
    assert ask("GetGroupRecord", node, gid=UID)["groupName"] == "alice.demo"
    assert ask("GetUserRecord", node, uid=UID + 2) == "NoRecordFound"
    assert memberships(node, userName="bob.demo") == [("bob.demo", "students.demo")]
    assert memberships(node, groupName="students.demo") == [("alice.demo", "students.demo"), ("bob.demo", "students.demo")]
    assert memberships(node, groupName="students.demo", userName="bob.demo") == [("bob.demo", "students.demo")]
    assert memberships(node, groupName="empty.demo") == memberships(node, userName="eve.demo") == []
    assert ask("GetGroupRecord", node, groupName="empty.demo")["gid"] == UID + 5


def test_a_sandbox_knows_groups_of_its_own_vo_by_plain_names_and_the_machines_and_users_names_win():
    inside = Directory([USER, BOB], "demo", frozenset({"students"}), TEAMS)
    assert memberships(inside, userName="alice") == [("alice", "students.demo")]
    assert ask("GetGroupRecord", inside, gid=UID + 3) == "NoRecordFound"
    assert ask("GetGroupRecord", inside, groupName="bob")["gid"] == UID + 1, "the user's own group"
    assert ask("GetGroupRecord", Directory([USER], None, frozenset({"students.demo"}), TEAMS), gid=UID + 2) == "NoRecordFound"


def test_a_name_of_the_machine_is_never_answered():
    taken = Directory([USER], None, frozenset({"alice.demo"}))
    assert ask("GetUserRecord", taken, userName="alice.demo") == "NoRecordFound"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_json_gets_an_answer(call):
    assert NODE.answer(call, privileged=False)


@given(
    st.sampled_from(["userName", "uid", "service", "uidMin", "uidMax", "dispositionMask"]).flatmap(
        lambda key: st.fixed_dictionaries({key: st.none() | st.integers() | st.text() | st.lists(st.text())})
    )
)
def test_any_parameter_gets_an_answer(parameters):
    for method in ("GetUserRecord", "GetGroupRecord", "GetMemberships"):
        call = {"method": f"io.systemd.UserDatabase.{method}", "parameters": {"service": SERVICE, "uid": UID, **parameters}}
        assert NODE.answer(call, privileged=False)


@pytest.fixture
def accounts(tmp_path):
    (tmp_path / "passwd").write_text(
        f"root:x:0:0::/:/bin/sh\nbob.demo:x:1000:1000::/:/bin/sh\nold:x:{names.FIRST_GRID_UID}:1::/:/bin/sh\n"
    )
    accounts = Accounts(tmp_path / "db", passwd=tmp_path / "passwd", group=tmp_path / "none")
    yield accounts
    accounts.close()


def test_a_uid_or_name_of_the_machine_is_never_given(accounts):
    assert accounts.uid_for("alice", "demo") == names.FIRST_GRID_UID + 1
    with pytest.raises(NameTaken):
        accounts.uid_for("bob", "demo")
    assert accounts.find("bob", "demo") is None


def test_groups_have_numbers_that_are_nobodys_and_keep_them(accounts):
    uid = accounts.uid_for("alice", "demo")
    gid = accounts.gid_for("students", "demo")
    assert len({uid, gid, accounts.uid_for("carol", "demo"), accounts.gid_for("students", "physics")}) == 4
    assert accounts.gid_for("students", "demo") == gid
    assert accounts.teams("demo") == ["students"]
    for taken in ("alice", "bob"):  # a user's, and one of the machine itself
        with pytest.raises(NameTaken):
            accounts.gid_for(taken, "demo")
    with pytest.raises(names.BadName):
        accounts.gid_for("root", "demo")


@pytest.mark.parametrize("name", ["root", "nobody", "-rf", "a/b", "..", "a" * 33, "12", "", "a b", "a\n"])
def test_a_bad_name_gets_no_uid(accounts, name):
    with pytest.raises(names.BadName):
        accounts.uid_for(name, "demo")


def test_the_range_ends_with_a_clear_error(accounts):
    accounts._db.execute("INSERT INTO account VALUES (?, 'zoe', 'demo')", (names.LAST_GRID_UID,))
    with pytest.raises(UidsUsedUp):
        accounts.uid_for("alice", "demo")


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["demo", "physics"])), max_size=30))
def test_uids_and_members_are_one_to_one(tmp_path_factory, members):
    table = Accounts(tmp_path_factory.mktemp("uids") / "db")
    given_out = {(user, vo): table.uid_for(user, vo) for user, vo in members}
    assert len(set(given_out.values())) == len(given_out)
    assert all(table.uid_for(user, vo) == uid for (user, vo), uid in given_out.items())
    table.close()
