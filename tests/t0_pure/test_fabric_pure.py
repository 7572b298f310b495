"""Pure parts of the fabric: subjects, server settings, watch resyncs, lease times."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.fabric import jwt, natsserver, subjects
from xtreemos.fabric.errors import BadSubject, ServerFailed, UnsafeServer
from xtreemos.fabric.kv import Deleted, Entry, WatchState, bucket_config, is_gone, ttl_headers
from xtreemos.fabric.lease import LeaseClock
from xtreemos.fabric.link import Link
from xtreemos.fabric.natsserver import NatsServer, ServerConfig, TlsFiles
from xtreemos.fabric.nkeys import KeyKind, KeyPair
from xtreemos.fabric.stream import Synced, position
from xtreemos.testing.virtualtime import run_virtual


@pytest.mark.parametrize("bad", ["", ".", "a.b", "*", ">", "a b", "a\r\nPUB", "ä", "x" * 65, None])
def test_what_is_not_one_part_is_no_part_of_a_subject(bad):
    with pytest.raises(BadSubject):
        subjects.node(bad, "kill")
    with pytest.raises(BadSubject):
        subjects.submit("alice", bad)


@pytest.mark.parametrize("bad", ["", ".a", "a.", "a..b", "*", "a.>", "a b", "ä", "x" * 300, None])
def test_a_key_is_never_a_pattern(bad):
    with pytest.raises(BadSubject):
        subjects.check_key(bad)


def test_patterns_match_as_the_servers_do():
    assert subjects.matches("a.>", "a.b.c")
    assert not subjects.matches("a.>", "a")
    assert subjects.matches("a.*.c", "a.b.c")
    assert not subjects.matches("a.*", "a.b.c")
    assert subjects.matches(">", "a")


def test_a_member_may_speak_only_as_itself():
    allowed = subjects.permissions("member")
    assert all("{{name()}}" in one or one.startswith("nodes.") for one in allowed.pub_allow)
    assert allowed.sub_allow == ("_INBOX.user.{{tag(sid)}}.>",)
    assert "$JS.>" in allowed.pub_deny


def test_only_the_service_may_make_consumers():
    """A consumer delivers to any subject its maker names: it would speak for others."""
    for role in ("admin", "member", "node"):
        assert not any("CONSUMER" in one or one in {">", "$JS.API.>"} for one in subjects.permissions(role).pub_allow)


SAFE = {
    "server_name": "n1",
    "version": "2.15.1",
    "jetstream": {"config": {"sync_always": True, "store_dir": "/x"}},
    "tls_required": True,
    "auth_required": True,
    "trusted_operators_jwt": ["x"],
    "cluster": {"urls": ["a:1"], "tls_required": True, "tls_verify": True},
}


def test_a_safe_server_passes():
    natsserver.check_safe(SAFE)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": "2.12.6"}, "older"),
        ({"version": "2.9.10"}, "older"),
        ({"version": ""}, "older"),
        ({"jetstream": {"config": {"sync_interval": 120}}}, "sync_interval"),
        ({"jetstream": {}}, "JetStream is off"),
        ({"tls_required": False}, "without TLS"),
        ({"auth_required": False}, "without credentials"),
        ({"no_auth_user": "guest"}, "no_auth_user"),
        ({"trusted_operators_jwt": []}, "operator mode"),
        ({"cluster": {"urls": ["a:1"], "tls_required": True}}, "do not verify"),
        ({"cluster": {"urls": ["a:1"]}}, "routes go without TLS"),
    ],
)
def test_an_unsafe_server_is_refused_by_name_of_the_setting(change, word):
    with pytest.raises(UnsafeServer, match=word):
        natsserver.check_safe(SAFE | change)


ACCOUNT, OPERATOR = KeyPair.generate(KeyKind.ACCOUNT), KeyPair.generate(KeyKind.OPERATOR)


def token(now, **more):
    return jwt.mint_account(OPERATOR, account=ACCOUNT.public, name="SYS", now=now, **more)


def config(tmp_path, **more):
    tls = TlsFiles(tmp_path / "ca", tmp_path / "cert", tmp_path / "key")
    accounts = more.pop("accounts", {ACCOUNT.public: token(1000)})
    return ServerConfig("n1", tmp_path / "nats", tls, "op.jwt.x", ACCOUNT.public, accounts, **more)


def test_the_configuration_is_durable_and_closed(tmp_path):
    text = natsserver.config_text(config(tmp_path, peers=("a:1", "b:2", "c:3")))
    assert "sync_interval: always" in text
    assert text.count("cert_file") == 2
    assert "verify: true" in text.partition("cluster")[2]
    assert "http" not in text  # monitoring would tell every local user who is connected
    assert "cluster" not in natsserver.config_text(config(tmp_path))


def test_a_name_cannot_add_settings(tmp_path):
    with pytest.raises(ServerFailed):
        natsserver.config_text(config(tmp_path, host='x"\nno_auth_user: "y'))


def test_account_tokens_are_private_files(tmp_path):
    made = config(tmp_path)
    natsserver.write_config(made)
    assert (made.jwt_dir / f"{ACCOUNT.public}.jwt").read_text() == made.accounts[ACCOUNT.public]
    assert made.folder.stat().st_mode & 0o077 == 0
    assert made.config_file.stat().st_mode & 0o077 == 0
    assert NatsServer(made).pid is None


def test_a_restart_does_not_undo_revocations_that_were_pushed(tmp_path):
    made = config(tmp_path)
    natsserver.write_config(made)
    stored = made.jwt_dir / f"{ACCOUNT.public}.jwt"
    pushed = token(1001, revocations={"*": 1001})
    stored.write_text(pushed)
    natsserver.write_config(made)
    assert stored.read_text() == pushed
    natsserver.write_config(config(tmp_path, accounts={ACCOUNT.public: token(1002)}))
    assert stored.read_text() == token(1002)
    stored.write_text("damaged")
    natsserver.write_config(made)
    assert stored.read_text() == made.accounts[ACCOUNT.public]


def test_a_bucket_never_allows_stale_reads_or_lost_lives():
    made = bucket_config("vo")
    assert "allow_direct" not in made
    assert made["allow_msg_ttl"]
    assert json.dumps(made)


def test_lives_are_rounded_up_to_what_servers_know():
    assert ttl_headers(None) == {}
    assert ttl_headers(0.2) == {"Nats-TTL": "1s"}
    assert ttl_headers(2.1) == {"Nats-TTL": "3s"}


def test_markers_of_both_kinds_mean_gone():
    assert is_gone({"KV-Operation": "DEL"})
    assert is_gone({"Nats-Marker-Reason": "MaxAge"})
    assert not is_gone({"Nats-TTL": "5s"})


def test_positions_are_read_from_both_forms_of_reply():
    assert position("$JS.ACK.S.c.1.10.3.1700.0").seq == 10
    assert position("$JS.ACK.hub.HASH.S.c.1.10.3.1700.7.rnd").pending == 7
    assert position("_INBOX.x") is None


# ---- watching


def feed(state, entries, target=None):
    state.begin(max((r for _, r in entries), default=0) if target is None else target)
    told = [news for key, revision in entries for news in state.on(Entry(key, b"v", revision))]
    return told + state.end(max((r for _, r in entries), default=0))


def test_a_resync_tells_only_news_and_what_has_gone():
    state = WatchState()
    assert len(feed(state, [("a", 1), ("b", 2)])) == 3
    assert state.on(Entry("a", b"w", 3)) == [Entry("a", b"w", 3)]
    assert feed(state, [("a", 3), ("c", 4)]) == [Entry("c", b"v", 4), Deleted("b", 0), Synced(4)]


def test_an_old_message_is_no_news():
    state = WatchState()
    feed(state, [("a", 5)])
    assert state.on(Entry("a", b"old", 4)) == []
    assert state.on(Deleted("a", 4)) == []
    assert state.on(Deleted("never-there", 9)) == []


def test_a_bucket_that_went_back_in_time_is_told_as_it_is():
    state = WatchState()
    feed(state, [("a", 50)])
    assert feed(state, [("a", 3)]) == [Entry("a", b"v", 3), Synced(3)]


def test_a_follower_that_lags_tells_nothing_old():
    """It serves an old value, then an old deletion, then what is true."""
    state = WatchState()
    feed(state, [("a", 5), ("b", 6), ("c", 7)])
    state.begin(9)
    assert state.on(Entry("a", b"old", 2)) == []
    assert state.on(Deleted("b", 3)) == []
    assert state.on(Entry("c", b"v", 7)) == []
    assert state.on(Entry("a", b"new", 8)) == [Entry("a", b"new", 8)]
    assert state.on(Deleted("c", 9)) == [Deleted("c", 9)]
    assert state.end(9) == [Synced(9)]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30),
    st.sets(st.integers(0, 29)),
    st.sets(st.integers(0, 29)),
)
def test_a_watcher_always_ends_with_the_truth(writes, lost, resyncs):
    """Whatever is lost on the way, after a resync the watcher's picture is the bucket's."""
    state, truth, picture = WatchState(), {}, {}

    def see(events):
        for event in events:
            if isinstance(event, Entry):
                picture[event.key] = event.revision
            elif isinstance(event, Deleted):
                del picture[event.key]

    see(feed(state, []))
    for number, (key, there) in enumerate(writes):
        revision = number + 1
        if there:
            truth[key] = revision
        else:
            truth.pop(key, None)
        if number not in lost:
            see(state.on(Entry(key, b"v", revision) if there else Deleted(key, revision)))
        if number in resyncs:
            see(feed(state, sorted(truth.items()), target=revision))
    see(feed(state, sorted(truth.items()), target=len(writes)))
    assert picture == truth


# ---- leases


@given(st.integers(2, 600), st.floats(0, 1e6))
def test_a_holder_stops_before_the_servers_may_give_the_lease_away(ttl_s, renewed_s):
    times = LeaseClock(ttl_s, renewed_s)
    assert renewed_s < times.renew_s < times.stop_s < renewed_s + ttl_s
    assert times.held(times.renew_s)
    assert not times.held(times.stop_s)


# ---- links


class Pinged(Link):
    """A link whose server answers no ping; `pinged_s` are the times of pings."""

    def __init__(self):
        super().__init__("_INBOX.x", lambda _servers: None)
        self.pinged_s = []

    async def _send_ping(self, _future=None):
        self.pinged_s.append(asyncio.get_running_loop().time())


def test_a_server_that_is_heard_of_is_not_asked_and_one_that_is_silent_dies_as_soon_as_ever():
    async def claim():
        link = Pinged()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        task = asyncio.create_task(link.ping_forever(1.0, 2))
        for _ in range(20):
            await link._process_msg(0, b"x", b"", b"", b"")
            await asyncio.sleep(0.9)
        heard_s = loop.time() - 0.9
        await task
        return [round(at - began_s, 1) for at in link.pinged_s], link.dead.is_set(), loop.time() - heard_s

    pings, is_dead, silent_s = run_virtual(claim())
    assert (pings, is_dead) == ([18.1, 19.1], True)
    assert 3.0 <= silent_s < 3.2
