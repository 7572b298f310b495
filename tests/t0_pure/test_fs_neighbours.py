"""Members of another VO come in by their own VO's certificates, and only while both VOs say so."""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest

from vo_kit import ROOT, World, proven
from xtreemos.errors import XosError
from xtreemos.vo.credentials import SessionKeys
from xtreemos.vo.model import ACCEPTED_MAX
from xtreemos.xtreemfs.directory import State
from xtreemos.xtreemfs.model import Share, VolumeRecord
from xtreemos.xtreemfs.neighbours import Neighbour, Neighbours, guest_name, home_of
from xtreemos.xtreemfs.nodedirectory import applied
from xtreemos.xtreemfs.ticket import Ticket, sign_ticket

OURS, THEIRS = "demo", "phys"


class Scene:
    """VO demo shares `lib` with VO phys, whose carol is logged in with all roles; and a third VO."""

    def __init__(self, folder):
        self.worlds = {}
        for vo in (THEIRS, "chem"):
            (folder / vo).mkdir()
            self.worlds[vo] = World(folder / vo, vo)
        world = self.world = self.worlds[THEIRS]
        self.keys, self.chain = asyncio.run(self._log_in(world))
        self.share = Share(THEIRS, world.trust.root_sha256, False, 0)
        self.volume = VolumeRecord(name="lib", id=7, mrc="n1", owner="alice", shares=(self.share,))
        self.members, self.accepted, self.revoked = {"carol": ("admin", "member")}, {OURS: ("lib",)}, {}
        self.told = []

    async def _log_in(self, world):
        await world.member("carol", roles=("admin", "member"))
        asked = await world.cda.call("challenge", ROOT, {"purpose": "login", "subject": "carol"})
        keys = SessionKeys.fresh()
        answer = await world.cda.call("login", ROOT, proven(keys, world.vo, asked) | {"user": "carol", "password": "correct horse"})
        return keys, world.credentials(answer)

    def neighbours(self):
        """What an MRC of demo knows, as things stand."""
        ours = SimpleNamespace(
            vo=OURS, state=State(volumes={"lib": self.volume, "other": VolumeRecord(name="other", id=8, mrc="n1", owner="alice")})
        )

        async def run():
            pass

        def opener(vo):
            world = self.worlds.get(vo)
            state = State(members=self.members, accepted=self.accepted, revoked=self.revoked)
            directory = SimpleNamespace(state=state, on_change=lambda _call: None, run=run)
            return Neighbour(directory, SimpleNamespace(trust=lambda: world.trust)) if world else None

        return Neighbours(ours, opener, lambda *row: self.told.append(row), clock=self.world.clock)

    def ticket(self, **more):
        now = int(self.world.clock())
        held = Ticket(THEIRS, "carol", "n2", now, now + 3600)
        return sign_ticket(msgspec.structs.replace(held, **more), self.chain.x509, self.keys.x509)

    def verify(self, record=None, node="n2"):
        async def inside():
            neighbours = self.neighbours()
            try:
                return neighbours.verify(self.ticket() if record is None else record, node), neighbours.share(THEIRS, self.volume)
            finally:
                await neighbours.close()

        return asyncio.run(inside())

    def refused(self, says, record=None, node="n2"):
        with pytest.raises(XosError, match=says):
            self.verify(record, node)


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def test_a_guest_has_a_name_of_their_own_and_no_roles_here(scene):
    holder, share = scene.verify()
    assert (holder.user, holder.roles, share) == ("carol@phys", frozenset(), scene.share)
    assert (home_of(holder.user), home_of("carol"), guest_name("carol", "phys")) == ("phys", "", "carol@phys")


@pytest.mark.parametrize(
    "change",
    [
        {"volume": VolumeRecord(name="lib", id=7, mrc="n1", owner="alice")},
        {"accepted": {}},
        {"accepted": {OURS: ("other",)}},
        {"accepted": {"chem": ("lib",)}},
    ],
    ids=["not granted", "not accepted", "another volume", "of another VO"],
)
def test_without_both_halves_nobody_comes_in(scene, change):
    for name, value in change.items():
        setattr(scene, name, value)
    scene.refused("no volume of VO demo is shared with VO phys")


def test_an_agreement_that_is_over_or_means_another_vo_of_that_name_lets_nobody_in(scene):
    now = int(scene.world.clock())
    for share in (Share(THEIRS, scene.share.root_sha256, True, now), Share(THEIRS, bytes(32), True, 0)):
        scene.volume = VolumeRecord(name="lib", id=7, mrc="n1", owner="alice", shares=(share,))
        scene.refused("no volume of VO demo is shared")
    scene.volume = VolumeRecord(
        name="lib", id=7, mrc="n1", owner="alice", shares=(Share(THEIRS, scene.share.root_sha256, True, now + 1),)
    )
    assert scene.verify()[1].write


def test_forged_borrowed_and_stale_tickets_are_refused(scene):
    scene.refused("is for node n2, not n3", node="n3")
    scene.refused("of a detached job", scene.ticket(node="*", job="jaaaaaaaaaaaa"))
    scene.refused("no volume of VO demo is shared with VO chem", scene.ticket(vo="chem"))
    scene.refused("no active member", scene.ticket(user="dave"))
    scene.members["dave"] = ("member",)
    scene.refused("signed a ticket of dave", scene.ticket(user="dave"))
    scene.refused("changed after it was signed|cannot be read", scene.ticket().replace(b"\xa2n2", b"\xa2n9"), node="n9")
    scene.refused("expired", scene.ticket(expires_at=int(scene.world.clock())))
    scene.keys, scene.chain = asyncio.run(scene._log_in(scene.worlds["chem"]))  # a VO of one's own with a carol in it
    scene.refused("unknown issuer", scene.ticket())


def test_who_is_withdrawn_in_their_own_vo_is_out_here(scene):
    carol = scene.world.caller(scene.chain)
    asyncio.run(scene.world.cda.call("suspend", ROOT, {"user": "carol"}))
    scene.revoked = {key: entry.value for key, entry in scene.world.pub.items.items() if key.startswith("revoked.")}
    scene.refused("was revoked")
    assert ("user", "carol@phys") in scene.told
    assert ("sid", carol.sid) in scene.told
    scene.members = {}
    scene.refused("no active member")


def test_only_administrators_accept_and_what_was_accepted_can_be_taken_back(tmp_path):
    world = World(tmp_path, THEIRS)

    async def scene():
        await world.member()
        caller = world.caller(await world.login())
        lib = {"vo": OURS, "volume": "lib", "accepted": True}
        for who, params in (
            (caller, lib),
            (ROOT, {**lib, "vo": THEIRS}),
            (ROOT, {**lib, "volume": "a/b"}),
            (ROOT, {**lib, "vo": "No VO"}),
        ):
            with pytest.raises(XosError):
                await world.cda.call("accept_share", who, params)
        states = []
        for volume, accepted in (("lib", True), ("data.2", True), ("lib", False)):
            await world.cda.call("accept_share", ROOT, {"vo": OURS, "volume": volume, "accepted": accepted})
            states.append(applied(State(), f"accepted.{OURS}", (await world.pub.get(f"accepted.{OURS}")).value).accepted)
        for number in range(ACCEPTED_MAX - 1):
            await world.cda.call("accept_share", ROOT, {"vo": OURS, "volume": f"v{number}", "accepted": True})
        with pytest.raises(XosError):
            await world.cda.call("accept_share", ROOT, {"vo": OURS, "volume": "one-more", "accepted": True})
        return states

    assert asyncio.run(scene()) == [{OURS: ("lib",)}, {OURS: ("data.2", "lib")}, {OURS: ("data.2",)}]
