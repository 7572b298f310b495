"""The CDA's decisions on a dict-backed registry: life of members, sessions and nodes, and races between two CDAs."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from vo_kit import NOBODY, ROOT, World, proven
from xtreemos.errors import XosError
from xtreemos.fabric import jwt
from xtreemos.fabric.caller import Caller
from xtreemos.vo import ssh, tokens
from xtreemos.vo.audit import verify_file
from xtreemos.vo.credentials import SessionKeys
from xtreemos.vo.errors import (
    AlreadyThere,
    BadPassword,
    BadToken,
    LoginRefused,
    NoSuchMember,
    NotAllowed,
    Replayed,
    Revoked,
    TooManyAttempts,
)
from xtreemos.vo.model import CREDENTIAL_S_MAX, SESSION_S_MAX, Revocation
from xtreemos.vo.revocation import RevocationSet
from xtreemos.vo.x509 import verify_x509


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.passwords.close()
    world.audit.close()


def run(coroutine):
    return asyncio.run(coroutine)


def revoked_set(world):
    found = RevocationSet()
    for key, entry in world.pub.items.items():
        if key.startswith("revoked."):
            found.apply(key, Revocation.from_bytes(entry.value))
    return found


def test_an_invited_user_logs_in_and_all_three_credentials_name_one_session(world):
    async def scene():
        await world.member()
        return await world.login()

    got = run(scene())
    user, _ = verify_x509(got.x509, world.trust, got.issued_at)
    over_ssh, _ = ssh.verify_ssh_user(got.ssh, world.trust, got.issued_at)
    claims = jwt.decode(got.nats)
    assert (user.kind, user.name, user.vo, user.sid) == ("user", "alice", "demo", got.sid)
    assert user == over_ssh
    assert claims.tag("sid") == got.sid
    assert claims.issuer == world.trust.document.nats_roles["member"]
    assert claims.expires_at == got.expires_at == got.issued_at + CREDENTIAL_S_MAX
    assert len({user.serial, over_ssh.serial}) == 1


def test_an_administrators_session_is_signed_by_the_admin_role_and_can_be_narrowed(world):
    async def scene():
        await world.member(roles=("admin", "member"))
        return await world.login(), await world.login(roles=["member"])

    full, narrow = run(scene())
    roles = world.trust.document.nats_roles
    assert jwt.decode(full.nats).issuer == roles["admin"]
    assert jwt.decode(narrow.nats).issuer == roles["member"]
    assert world.caller(narrow).roles == {"member"}


def test_a_session_cannot_take_roles_that_the_user_does_not_have(world):
    async def scene():
        await world.member()
        with pytest.raises(NotAllowed):
            await world.login(roles=["admin", "member"])

    run(scene())


def test_wrong_password_and_unknown_user_get_the_same_answer(world):
    async def scene():
        await world.member()
        answers = []
        for user, password in (("alice", "wrong horse"), ("mallory", "correct horse")):
            with pytest.raises(LoginRefused) as caught:
                await world.login(user, password)
            answers.append(caught.value.to_wire())
        return answers

    known, unknown = run(scene())
    assert known == unknown


def test_an_unknown_user_costs_one_hash_as_a_known_one_does(world):
    async def scene():
        await world.member()
        counted = []
        verify = world.passwords._verify
        world.passwords._verify = lambda stored, password: counted.append(stored) or verify(stored, password)
        for user in ("alice", "mallory"):
            with pytest.raises(LoginRefused):
                await world.login(user, "wrong horse")
        return counted

    counted = run(scene())
    assert len(counted) == 2
    assert counted[0].split("$")[:4] == counted[1].split("$")[:4]  # the same parameters


def test_guessing_is_slowed_for_a_user_and_for_an_address(world):
    async def scene():
        await world.member()
        for _ in range(10):
            with pytest.raises(LoginRefused):
                await world.login(password="wrong horse")
        with pytest.raises(TooManyAttempts, match="too many failed"):
            await world.login()
        world.clock.now += 2
        return await world.login()

    assert run(scene()).name == "alice"


def test_a_renewal_needs_no_password_and_keeps_the_session(world):
    async def scene():
        await world.member()
        first = await world.login()
        world.clock.now += 6 * 3600
        return first, await renew(world, first)

    first, second = run(scene())
    assert (second.sid, second.ends_at) == (first.sid, first.ends_at)
    assert second.expires_at == first.expires_at + 6 * 3600
    assert second.serial != first.serial


async def renew_params(world, credentials):
    caller = world.caller(credentials)
    asked = await world.cda.call("challenge", caller, {"purpose": "renew"})
    return caller, proven(SessionKeys.fresh(), world.vo, asked)


async def renew(world, credentials, cda=None):
    caller, params = await renew_params(world, credentials)
    return world.credentials(await (cda or world.cda).call("renew", caller, params))


def test_a_session_ends_after_its_maximum_however_often_renewed(world):
    async def scene():
        await world.member()
        got = await world.login()
        start = world.clock.now
        while world.clock.now < start + SESSION_S_MAX - 6 * 3600:
            world.clock.now += 6 * 3600
            got = await renew(world, got)
        assert got.expires_at == got.ends_at == start + SESSION_S_MAX
        world.clock.now = start + SESSION_S_MAX
        caller = Caller("user", vo="demo", name="alice", sid=got.sid)
        with pytest.raises(Revoked):
            await world.cda.call("challenge", caller, {"purpose": "renew"})

    run(scene())


def test_a_renewal_challenge_works_once_even_at_two_cdas(world):
    async def scene():
        await world.member()
        got = await world.login()
        caller, params = await renew_params(world, got)
        both = [cda.call("renew", caller, params) for cda in (world.cda, world.another_cda())]
        return await asyncio.gather(*both, return_exceptions=True)

    results = run(scene())
    assert sorted(isinstance(result, Replayed) for result in results) == [False, True]


def test_a_login_message_sent_twice_opens_one_session_even_at_two_cdas(world):
    async def scene():
        await world.member()
        params = await world.login_params()
        both = [cda.call("login", NOBODY, params) for cda in (world.cda, world.another_cda())]
        return await asyncio.gather(*both, return_exceptions=True)

    results = run(scene())
    assert sorted(isinstance(result, Replayed) for result in results) == [False, True]


def test_after_logout_nothing_of_the_session_works(world):
    async def scene():
        await world.member()
        got = await world.login()
        caller = world.caller(got)
        _, params = await renew_params(world, got)
        await world.cda.call("logout", caller, {})
        for method, args in (("renew", params), ("whoami", {}), ("challenge", {"purpose": "renew"})):
            with pytest.raises(Revoked):
                await world.cda.call(method, caller, args)
        return got, caller

    got, caller = run(scene())
    revoked = revoked_set(world)
    assert revoked.covers(caller, got.issued_at)
    assert jwt.decode(got.nats).subject in world.account.revoked
    [record] = revoked.records()
    assert record.serials == (got.serial,)


def test_groups_are_set_by_administrators_told_to_everybody_and_end_no_session(world):
    async def scene():
        await world.member()
        first = await world.login()
        answer = await world.cda.call("set_groups", ROOT, {"user": "alice", "groups": ["students", "staff", "staff"]})
        for caller, params in ((world.caller(first), {"user": "alice", "groups": ["root"]}), (ROOT, {"user": "bob", "groups": []}),
                               (ROOT, {"user": "alice", "groups": ["No Name"]}), (ROOT, {"user": "alice", "groups": [f"g{n}" for n in range(65)]})):  # fmt: skip
            with pytest.raises(XosError):
                await world.cda.call("set_groups", caller, params)
        return first, answer, (await world.cda.call("members", ROOT, {}))["members"], await world.registry.public_users.get("alice")

    first, answer, members, public = run(scene())
    assert answer["groups"] == members[0]["groups"] == list(public.record.groups) == ["staff", "students"]
    assert not revoked_set(world).covers(world.caller(first), first.issued_at)


def test_a_group_and_a_user_of_one_vo_never_share_a_name(world):
    async def scene():
        await world.member()
        await world.cda.call("set_groups", ROOT, {"user": "alice", "groups": ["students"]})
        for method, params in (("set_groups", {"user": "alice", "groups": ["alice"]}), ("invite", {"user": "students"})):
            with pytest.raises(AlreadyThere):
                await world.cda.call(method, ROOT, params)
        return await world.registry.public_users.get("alice")

    assert run(scene()).record.groups == ("students",)


def test_a_suspended_user_cannot_log_in_and_every_session_is_void_and_restoring_does_not_revive_them(world):
    async def scene():
        await world.member()
        first, second = await world.login(), await world.login()
        world.clock.now += 5
        await world.cda.call("suspend", ROOT, {"user": "alice"})
        with pytest.raises(LoginRefused, match="suspended"):
            await world.login()
        with pytest.raises(LoginRefused, match="wrong"):
            await world.login(password="wrong horse")
        await world.cda.call("restore", ROOT, {"user": "alice"})
        world.clock.now += 1
        return first, second, await world.login()

    first, second, third = run(scene())
    revoked = revoked_set(world)
    assert [revoked.covers(world.caller(item), item.issued_at) for item in (first, second, third)] == [True, True, False]
    assert world.account.revoked == {jwt.decode(item.nats).subject for item in (first, second)}


def test_a_credential_issued_by_a_cda_that_read_an_old_record_is_void_while_and_after_the_user_is_suspended(world):
    """Reads from the fabric may be old for a moment; a suspension must not depend on them."""

    async def scene():
        await world.member()
        old = await world.registry.users.get("alice")
        await world.cda.call("suspend", ROOT, {"user": "alice"})
        world.clock.now += 60

        async def stale(_name):
            return old

        fresh, world.registry.users.get = world.registry.users.get, stale
        got = await world.login()
        world.registry.users.get = fresh
        during = revoked_set(world).covers(world.caller(got), got.issued_at)
        world.clock.now += 60
        await world.cda.call("restore", ROOT, {"user": "alice"})
        after = revoked_set(world).covers(world.caller(got), got.issued_at)
        world.clock.now += 1
        new = await world.login()
        return during, after, revoked_set(world).covers(world.caller(new), new.issued_at)

    assert run(scene()) == (True, True, False)


@pytest.mark.parametrize("round_", range(20))
def test_suspension_during_a_login_never_leaves_a_live_session(world, round_):
    """The race of the notes: whichever comes first, afterwards the session is void or the log-in was refused."""

    async def scene():
        await world.member()
        params = await world.login_params()

        async def late_suspend():
            for _ in range(round_):
                await asyncio.sleep(0)
            await world.another_cda().call("suspend", ROOT, {"user": "alice"})

        answer, _ = await asyncio.gather(world.cda.call("login", NOBODY, params), late_suspend(), return_exceptions=True)
        return answer

    answer = run(scene())
    if isinstance(answer, XosError):
        return
    got = world.credentials(answer)
    assert revoked_set(world).covers(world.caller(got), got.issued_at)
    assert jwt.decode(got.nats).subject in world.account.revoked


def test_concurrent_revocations_at_two_cdas_both_reach_the_nats_account(world):
    async def scene():
        await world.member()
        sessions = [await world.login() for _ in range(6)]
        cdas = [world.cda, world.another_cda()]
        await asyncio.gather(*(cdas[i % 2].call("logout", world.caller(item), {}) for i, item in enumerate(sessions)))
        return sessions

    sessions = run(scene())
    assert world.account.revoked == {jwt.decode(item.nats).subject for item in sessions}


@pytest.mark.parametrize("rivals", [2, 8])
def test_a_one_time_invitation_is_accepted_once_by_racing_cdas(world, rivals):
    async def scene():
        made = await world.cda.call("invite", ROOT, {"user": "alice"})
        token = tokens.parse_token(made["token"])
        params = [{"id": token.id, "secret": token.secret, "password": f"password {n}"} for n in range(rivals)]
        return await asyncio.gather(*(world.another_cda().call("accept", NOBODY, item) for item in params), return_exceptions=True)

    results = run(scene())
    assert sum(isinstance(result, dict) for result in results) == 1
    assert sum(isinstance(result, BadToken) for result in results) == rivals - 1


def test_a_new_invitation_voids_password_and_sessions_and_an_old_token_is_dead_after_acceptance(world):
    async def scene():
        first = tokens.parse_token((await world.cda.call("invite", ROOT, {"user": "alice"}))["token"])
        with pytest.raises(AlreadyThere):
            await world.cda.call("invite", ROOT, {"user": "alice"})
        second = tokens.parse_token((await world.cda.call("invite", ROOT, {"user": "alice", "again": True}))["token"])
        accept = {"id": second.id, "secret": second.secret, "password": "correct horse"}
        await world.cda.call("accept", NOBODY, accept)
        with pytest.raises(BadToken):
            await world.cda.call("accept", NOBODY, {"id": first.id, "secret": first.secret, "password": "other horse"})
        world.clock.now += 1
        got = await world.login()
        await world.cda.call("invite", ROOT, {"user": "alice", "again": True})
        with pytest.raises(LoginRefused):
            await world.login()
        return got

    got = run(scene())
    assert revoked_set(world).covers(world.caller(got), got.issued_at)


def test_a_removed_name_is_never_given_to_another_person(world):
    async def scene():
        await world.member()
        await world.cda.call("remove", ROOT, {"user": "alice"})
        for again in (False, True):
            with pytest.raises(AlreadyThere):
                await world.cda.call("invite", ROOT, {"user": "alice", "again": again})
        with pytest.raises(NoSuchMember):
            await world.cda.call("restore", ROOT, {"user": "alice"})
        return await world.cda.call("members", ROOT, {})

    assert run(scene()) == {"members": []}


def test_a_demoted_administrators_certificate_no_longer_administers(world):
    async def scene():
        await world.member(roles=("admin", "member"))
        await world.member("bob")
        caller = world.caller(await world.login())
        await world.cda.call("suspend", caller, {"user": "bob"})
        await world.cda.call("set_roles", ROOT, {"user": "alice", "roles": ["member"]})
        with pytest.raises(NotAllowed):
            await world.cda.call("restore", caller, {"user": "bob"})

    run(scene())


def test_members_cannot_administer_and_strangers_cannot_ask(world):
    async def scene():
        await world.member()
        member = world.caller(await world.login())
        strangers = [NOBODY, Caller("user", vo="other", name="alice", roles=frozenset({"admin"})), Caller("local", uid=1000)]
        for caller in (member, *strangers):
            for method, params in (("invite", {"user": "eve"}), ("suspend", {"user": "alice"}), ("resource_invite", {})):
                with pytest.raises(NotAllowed):
                    await world.cda.call(method, caller, params)

    run(scene())


def test_changing_the_password_ends_other_sessions_only(world):
    async def scene():
        await world.member()
        mine, other = await world.login(), await world.login()
        with pytest.raises(BadPassword):
            await world.cda.call("set_password", world.caller(mine), {"old": "correct horse", "new": "short"})
        with pytest.raises(LoginRefused):
            await world.cda.call("set_password", world.caller(mine), {"old": "wrong horse", "new": "battery staple"})
        await world.cda.call("set_password", world.caller(mine), {"old": "correct horse", "new": "battery staple"})
        await world.cda.call("whoami", world.caller(mine), {})
        with pytest.raises(Revoked):
            await world.cda.call("whoami", world.caller(other), {})
        with pytest.raises(LoginRefused):
            await world.login()
        return await world.login(password="battery staple")

    assert run(scene()).name == "alice"


def test_a_user_may_revoke_the_own_session_and_not_anothers(world):
    async def scene():
        await world.member()
        await world.member("bob")
        alice, bob = await world.login(), await world.login("bob")
        with pytest.raises(NoSuchMember):
            await world.cda.call("revoke_session", world.caller(alice), {"sid": bob.sid})
        await world.cda.call("revoke_session", world.caller(bob), {"sid": bob.sid})
        await world.cda.call("revoke_session", ROOT, {"sid": alice.sid})
        return alice, bob

    for got in run(scene()):
        assert revoked_set(world).is_revoked(got.sid, got.name, got.issued_at)


def test_a_node_joins_by_token_and_consent_once(world):
    async def scene():
        params = await world.join_params()
        rivals = [cda.call("join_node", NOBODY, params) for cda in (world.cda, world.another_cda())]
        return await asyncio.gather(*rivals, return_exceptions=True), await world.cda.call("node_list", ROOT, {})

    results, listed = run(scene())
    [answer] = [result for result in results if isinstance(result, dict)]
    [refused] = [result for result in results if not isinstance(result, dict)]
    assert isinstance(refused, BadToken | AlreadyThere)
    got = world.credentials(answer)
    node, _ = verify_x509(got.x509, world.trust, got.issued_at)
    assert (node.kind, node.name, node.roles) == ("node", "n1", {"node"})
    assert ssh.verify_ssh_host(got.ssh, world.trust, got.issued_at)[0].name == "n1"
    assert [item["node"] for item in listed["nodes"]] == ["n1"]


def test_a_core_token_needs_the_owners_consent_to_core(world):
    async def scene():
        with pytest.raises(NotAllowed):
            await world.cda.call("join_node", NOBODY, await world.join_params(core=True, consent_core=False))
        params = await world.join_params(core=True)
        got = world.credentials(await world.cda.call("join_node", NOBODY, params))
        keys = await world.cda.call("issuing_keys", world.caller(got), {})
        plain = world.credentials(await world.cda.call("join_node", NOBODY, await world.join_params("n2")))
        with pytest.raises(NotAllowed):
            await world.cda.call("issuing_keys", world.caller(plain), {})
        return keys

    assert run(scene())["secrets"] == world.secrets.to_bytes()


def test_a_name_can_be_joined_again_only_by_the_same_owner_and_the_old_credentials_die(world):
    async def scene():
        owner = ed25519.Ed25519PrivateKey.generate()
        first = world.credentials(await world.cda.call("join_node", NOBODY, await world.join_params(owner=owner)))
        with pytest.raises(AlreadyThere):
            await world.cda.call("join_node", NOBODY, await world.join_params())
        second = world.credentials(await world.cda.call("join_node", NOBODY, await world.join_params(owner=owner)))
        return first, second

    first, second = run(scene())
    revoked = revoked_set(world)
    assert revoked.covers(world.caller(first), first.issued_at)
    assert not revoked.covers(world.caller(second), second.issued_at)


def test_a_node_renews_and_after_removal_does_not(world):
    async def scene():
        got = world.credentials(await world.cda.call("join_node", NOBODY, await world.join_params()))
        caller = world.caller(got)
        asked = await world.cda.call("challenge", caller, {"purpose": "renew-node"})
        renewed = world.credentials(await world.cda.call("renew_node", caller, proven(SessionKeys.fresh(), "demo", asked)))
        with pytest.raises(NotAllowed):
            await world.cda.call("remove_node", Caller("node", vo="demo", name="n2"), {"node": "n1"})
        await world.cda.call("remove_node", caller, {"node": "n1"})
        with pytest.raises(Revoked):
            await world.cda.call("challenge", caller, {"purpose": "renew-node"})
        return got, renewed

    for got in run(scene()):
        assert revoked_set(world).covers(world.caller(got), got.issued_at)
        assert jwt.decode(got.nats).subject in world.account.revoked


def test_every_decision_is_in_the_audit_without_secrets(world):
    async def scene():
        await world.member()
        got = await world.login()
        with pytest.raises(LoginRefused):
            await world.login(password="wrong horse")
        await world.cda.call("logout", world.caller(got), {})

    run(scene())
    lines = world.audited()
    assert [(line["what"], line["allowed"]) for line in lines] == [
        ("cda.invite", True),
        ("cda.accept", True),
        ("cda.login", True),
        ("cda.login", False),
        ("cda.logout", True),
    ]
    text = world.audit.path.read_text()
    assert "horse" not in text
    assert "xos1." not in text
    assert verify_file(world.audit.path)[0] == len(lines)


def test_the_trust_answer_can_be_checked_by_the_fingerprint_in_a_token(world):
    from xtreemos.vo.document import open_document

    async def scene():
        made = await world.cda.call("invite", ROOT, {"user": "alice"})
        return tokens.parse_token(made["token"]), await world.cda.call("trust", NOBODY, {})

    token, answer = run(scene())
    assert open_document(answer["document"], root_sha256=token.ca, vo=token.vo).vo == "demo"
    assert token.endpoints == ("192.0.2.1:7601",)


def test_stored_records_keep_no_secret_of_a_token(world):
    async def scene():
        made = await world.cda.call("invite", ROOT, {"user": "alice"})
        return tokens.parse_token(made["token"])

    token = run(scene())
    assert all(token.secret not in entry.value for entry in world.vo_bucket.items.values())
    assert all(b"argon2" not in entry.value for entry in world.pub.items.values())


def test_parameters_of_the_wrong_shape_are_refused_not_crashed_on(world):
    async def scene():
        for params in (None, [], "x", {"user": 5}, {"user": "alice", "extra": 1}, {"user": "a" * 10_000}):
            with pytest.raises(XosError):
                await world.cda.call("invite", ROOT, params)

    run(scene())
    assert len(world.audited()) == 6


def test_a_client_renewing_in_a_loop_is_told_to_wait(world):
    async def scene():
        await world.member()
        got = await world.login()
        for _ in range(31):
            got = await renew(world, got)
        with pytest.raises(TooManyAttempts):
            await renew(world, got)

    run(scene())
    assert msgspec.msgpack.decode(next(e.value for k, e in world.vo_bucket.items.items() if k.startswith("session.")))
