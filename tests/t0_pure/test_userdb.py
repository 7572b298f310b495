"""The userdb responder's answers as a function of call and users; uids and local names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos import names
from xtreemos.foundation.accounts import Accounts, NameTaken, UidsUsedUp
from xtreemos.foundation.userdb import SERVICE, Directory

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
