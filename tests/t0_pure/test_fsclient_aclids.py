"""Access lists name people: local ids on the node, principals at the MRC."""

import asyncio
from types import SimpleNamespace

import pytest

from xtreemos.xtreemfs.client import aclids
from xtreemos.xtreemfs.client.actors import Principals
from xtreemos.xtreemfs.fuse import acl
from xtreemos.xtreemfs.fuse.errors import FuseError
from xtreemos.xtreemfs.model import FIRST_PRINCIPAL, NOBODY, Principal

PEOPLE = {"alice": 7001, "bob": 7002}
NUMBERS = {"alice": FIRST_PRINCIPAL, "bob": FIRST_PRINCIPAL + 1, "carol": FIRST_PRINCIPAL + 2}
STAFF, STAFF_GID = FIRST_PRINCIPAL + 3, 7003


class People:
    plain = False

    def local_id(self, kind, name):
        return (PEOPLE if kind == "u" else {"staff": STAFF_GID}).get(name, NOBODY)

    def name_of(self, kind, number):
        known = PEOPLE if kind == "u" else {"staff": STAFF_GID}
        return next((name for name, local in known.items() if local == number), None)


class Link:
    """The MRC's two answers about names."""

    async def call(self, method, message, kind):
        if method == "mrc.names":
            return tuple(Principal("u", number, name) for name, number in NUMBERS.items() if number in message.numbers)
        return tuple(STAFF if row == ("g", "staff") else NUMBERS.get(row[1], -1) if row[0] == "u" else -1 for row in message.names)


@pytest.fixture
def session():
    return SimpleNamespace(principals=Principals(People()), link=Link())


def listing(*named):
    rows = [(acl.USER_OBJ, 6, acl.NO_ID), (acl.GROUP_OBJ, 0, acl.NO_ID), (acl.MASK, 4, acl.NO_ID), (acl.OTHER, 0, acl.NO_ID)]
    return acl.encode(acl.make([*rows, *((acl.USER, 4, ident) for ident in named)]))


def test_a_list_goes_to_the_mrc_by_principals_and_comes_back_by_local_ids(session):
    kept = asyncio.run(aclids.to_numbers(session, People(), listing(7002, 7001)))
    assert kept == listing(NUMBERS["alice"], NUMBERS["bob"])
    assert asyncio.run(aclids.to_local(session, kept)) == listing(7001, 7002)


def test_who_has_no_account_here_is_shown_once_as_nobody(session):
    stranger = FIRST_PRINCIPAL + 9
    shown = asyncio.run(aclids.to_local(session, listing(NUMBERS["bob"], NUMBERS["carol"], stranger)))
    assert shown == listing(7002, NOBODY)


@pytest.mark.parametrize("value", [b"", b"junk", listing(12345)], ids=["empty", "no list", "nobody's uid"])
def test_what_names_no_member_is_refused(session, value):
    with pytest.raises(FuseError):
        asyncio.run(aclids.to_numbers(session, People(), value))


def test_a_group_has_a_number_and_a_users_own_group_has_the_users(session):
    async def ask(kind, local):
        return await aclids.number_of(session, People(), kind, local)

    assert asyncio.run(ask("g", STAFF_GID)) == STAFF
    assert asyncio.run(ask("g", 7001)) == asyncio.run(ask("u", 7001)) == NUMBERS["alice"]
    assert asyncio.run(ask("u", STAFF_GID)) is None
    assert session.principals.local("g", STAFF) == STAFF_GID
    assert session.principals.local("u", STAFF) == NOBODY, "a group is no user"
