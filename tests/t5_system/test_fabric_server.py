"""One real nats-server: what each role may do, bad credentials, revocation, renewal, batches, and growing to three."""

import asyncio
import contextlib
import json
import ssl
import time

import pytest

from natskit import grid_of, running
from xtreemos.errors import InternalError, PermissionRefused, RemoteError, TryLater
from xtreemos.fabric import grow, jwt, kv, natsserver, subjects
from xtreemos.fabric.batch import AtomicBatch
from xtreemos.fabric.connection import Credentials, Fabric, Settings
from xtreemos.fabric.errors import ApiError, BadToken, NoResponders, RevisionMismatch, ServerFailed, TooLarge, Unreachable
from xtreemos.fabric.nkeys import KeyKind, KeyPair
from xtreemos.fabric.stream import Synced, api, stream_info
from xtreemos.testing.natsgrid import NatsGrid, free_ports

REFUSED = pytest.mark.log_warnings(r"the fabric refused")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with grid_of(tmp_path_factory, _prepare) as world:
        yield world


async def _prepare(grid):
    grid.service = await grid.connect("service", "n1")
    grid.member = await grid.connect("member", "alice", sid="aa")
    grid.node = await grid.connect("node", "n7")
    await grid.service.ensure_bucket("pub")
    await grid.service.ensure_bucket("vo")
    await grid.service.ensure_stream({"name": subjects.SUBMIT_STREAM, "subjects": [subjects.SUBMIT_FILTER], "deny_delete": True})


@pytest.fixture
def run(world):
    return running(world, 20)


# ---- requests


def test_a_request_is_answered_and_errors_arrive_as_they_were(run):
    async def claim(grid):
        async def handler(message):
            match message.subject.rpartition(".")[2]:
                case "fine":
                    return message.data.upper()
                case "busy":
                    raise TryLater("no room", "come back")
            return None

        served = await grid.node.subscribe(subjects.node_filter("n7"), handler, concurrency=4)
        assert await grid.service.request(subjects.node("n7", "fine"), b"abc") == b"ABC"
        with pytest.raises(RemoteError, match="no room") as caught:
            await grid.service.request(subjects.node("n7", "busy"), b"")
        assert (caught.value.code, caught.value.retry, caught.value.hint) == ("try-later", True, "come back")
        with pytest.raises(Unreachable) as lost:
            await grid.service.request(subjects.node("n7", "silent"), b"", 0.2)
        assert not lost.value.definite
        await served.close()
        await grid.node._link.round_trip(5)  # the server knows by now
        with pytest.raises(NoResponders) as nobody:
            await grid.service.request(subjects.node("n7", "fine"), b"")
        assert nobody.value.definite

    run(claim)


@pytest.mark.log_warnings(r"handler of node\.n7\.x failed")
def test_a_bug_in_a_handler_is_told_as_ours_without_its_text(run):
    async def claim(grid):
        async def handler(message):
            raise KeyError("secret detail")

        served = await grid.node.subscribe(subjects.node_filter("n7"), handler)
        with pytest.raises(RemoteError) as caught:
            await grid.service.request(subjects.node("n7", "x"), b"")
        assert caught.value.code == InternalError.code
        assert "secret" not in caught.value.message
        await served.close()

    run(claim)


@REFUSED
def test_gather_takes_what_is_wanted_or_what_came_in_time(run):
    async def claim(grid):
        async def handler(message):
            return b"me"

        served = [await grid.node.subscribe(subjects.NODES_FILTER, handler) for _ in range(3)]
        await grid.node.publish(subjects.beat("n7"), b"")
        # the nodes' template allows one answer a request, so of three handlers on one connection one is heard
        started_s = time.monotonic()
        assert await grid.service.gather(subjects.nodes("query"), b"", 1, 5) == [b"me"]
        assert time.monotonic() - started_s < 1
        for one in served:
            await one.close()
        several = [await grid.service.subscribe("several.ask", handler) for _ in range(3)]
        assert await grid.service.gather("several.ask", b"", 3, 5) == [b"me"] * 3
        assert await grid.service.gather("several.ask", b"", None, 0.2) == [b"me"] * 3
        for one in several:
            await one.close()
        assert await grid.service.gather("several.ask", b"", None, 5) == []

    run(claim)


@REFUSED
def test_an_answer_goes_into_inboxes_only(run):
    """The servers do not check the reply subject of a request: answering anywhere would let a member speak as the service."""

    async def claim(grid):
        async def handler(message):
            return b"forged"

        served = await grid.service.subscribe(subjects.QUESTIONS_FILTER, handler)
        heard = await grid.service.listen("jobs.submit.bob.>")
        await grid.member.publish(subjects.question("alice", "list"), b"", reply=subjects.submit("bob", "j1"))
        assert await grid.member.request(subjects.question("alice", "list"), b"") == b"forged"
        with pytest.raises(TimeoutError):
            await heard.next(0.2)
        await served.close()
        await heard.close()

    run(claim)


def test_too_large_a_message_is_refused_before_it_is_sent(run):
    async def claim(grid):
        with pytest.raises(TooLarge):
            await grid.service.publish("x", b"a" * (natsserver.PAYLOAD_BYTES_MAX + 1))

    run(claim)


# ---- roles


@REFUSED
@pytest.mark.parametrize(
    "subject",
    [
        "jobs.submit.bob.j1",
        "jobs.q.bob.list",
        "jobs.ended.n1.j1",
        "beat.n1",
        "cda.user.bob.renew",
        "cda.node.n1.x",
        "node.n1.kill",
        "nodes.stop",
        "$KV.vo.users.alice",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.MSG.GET.KV_vo",
        "$JS.API.CONSUMER.CREATE.KV_vo.x",
        "$SYS.REQ.CLAIMS.UPDATE",
    ],
)
def test_a_member_cannot_speak_for_others(run, subject):
    async def claim(grid):
        with pytest.raises(PermissionRefused):
            await grid.member.request(subject, b"{}", 2)

    run(claim)


@REFUSED
@pytest.mark.parametrize(
    "subject",
    [
        "beat.n1",
        "jobs.ended.n1.j1",
        "jobs.submit.alice.j1",
        "node.n1.x",
        "$KV.pub.x",
        "$JS.API.CONSUMER.CREATE.KV_pub.x",
        "$JS.API.STREAM.MSG.GET.KV_vo",
    ],
)
def test_a_node_cannot_speak_for_others(run, subject):
    async def claim(grid):
        with pytest.raises(PermissionRefused):
            await grid.node.request(subject, b"{}", 2)

    run(claim)


@REFUSED
@pytest.mark.parametrize("subject", [">", "_INBOX.>", "_INBOX.user.bb.x", "jobs.>", "node.n7.>", "kv.vo.>", "$KV.>"])
def test_a_member_hears_nothing_of_others(run, subject):
    async def claim(grid):
        heard = await grid.member.listen(subject)
        for said in ("_INBOX.user.bb.x", "jobs.ended.n1.j", "node.n7.x", "kv.vo.x", "$KV.vo.x"):
            await grid.service.publish(said, b"secret")
        with pytest.raises(TimeoutError):
            await heard.next(0.15)
        await heard.close()

    run(claim)


def test_a_member_submits_and_the_service_reads_it_in_order(run):
    async def claim(grid):
        before = (await stream_info(grid.service, subjects.SUBMIT_STREAM))["state"]["last_seq"]
        seqs = [
            await grid.member.append(subjects.submit("alice", f"j{number}"), b"job", msg_id=f"j{number}") for number in range(5)
        ]
        assert seqs == list(range(before + 1, before + 6))
        assert await grid.member.append(subjects.submit("alice", "j0"), b"job", msg_id="j0") == seqs[0]  # repeated, stored once
        async with contextlib.aclosing(grid.service.consume(subjects.SUBMIT_STREAM, before + 1)) as events:
            seen = []
            async for event in events:
                if isinstance(event, Synced):
                    break
                seen.append(event)
        assert [event.seq for event in seen] == seqs
        assert subjects.part(seen[0].subject, 2) == "alice"

    run(claim)


def test_an_expectation_fails_definitely(run):
    async def claim(grid):
        last = await grid.service.append(subjects.submit("x", "j1"), b"1")
        assert await grid.service.append(subjects.submit("x", "j1"), b"2", expected_last=last) == last + 1
        with pytest.raises(RevisionMismatch):
            await grid.service.append(subjects.submit("x", "j1"), b"3", expected_last=last)

    run(claim)


def test_a_write_whose_answer_was_lost_is_recognised_as_ours(run):
    """The server checks expectations before duplicates, so a repeated CAS is refused although it was stored."""

    async def claim(grid):
        bucket = await grid.service.bucket("vo")
        lost = []
        real = grid.service.request_message

        async def lossy(subject, data, timeout_s=5, *, headers=None):
            message = await real(subject, data, timeout_s, headers=headers)
            if subject == "$KV.vo.lossy" and not lost:
                lost.append(message)
                raise Unreachable("lost")
            return message

        grid.service.request_message = lossy
        try:
            revision = await bucket.create("lossy", b"1")
            lost.clear()
            assert await bucket.update("lossy", b"2", revision) == revision + 1
        finally:
            grid.service.request_message = real
        assert (await bucket.get("lossy")).value == b"2"

    run(claim)


def test_a_node_follows_the_public_bucket(run):
    async def claim(grid):
        writer, reader = await grid.service.bucket("pub"), await grid.node.bucket("pub", follow=True)
        await writer.put("user.alice", b"1")
        async with contextlib.aclosing(reader.watch("user.>")) as events:
            assert isinstance(await anext(events), kv.Entry)
            assert isinstance(await anext(events), Synced)
            await writer.put("node.n7", b"x")
            await writer.delete("user.alice")
            assert isinstance(await anext(events), kv.Deleted)
        assert await reader.keys() == ["node.n7"]

    run(claim)


def test_a_bucket_with_stale_reads_is_not_opened(run):
    async def claim(grid):
        made = kv.bucket_config("stale") | {"allow_direct": True}
        await api(grid.service, "STREAM.CREATE.KV_stale", made)
        with pytest.raises(kv.streams.UnsafeBucket):
            await grid.service.bucket("stale")
        await grid.service.ensure_bucket("stale")  # by ourselves it is brought to our settings
        with pytest.raises(ApiError):
            await grid.service.bucket("not-there")

    run(claim)


# ---- atomic batches


def test_a_batch_is_whole_or_not_at_all(run):
    async def claim(grid):
        bucket = await grid.service.bucket("vo")
        one, two = await bucket.put("acc.1", b"10"), await bucket.put("acc.2", b"10")
        batch = AtomicBatch(grid.service)
        batch.add("$KV.vo.acc.1", b"5", expected=one)
        batch.add("$KV.vo.acc.2", b"15", expected=two)
        batch.add("$KV.vo.acc.3", b"0", expected=0)
        last = await batch.commit()
        assert [(entry.value, entry.revision) for entry in await bucket.entries("acc.*")] == [
            (b"5", last - 2),
            (b"15", last - 1),
            (b"0", last),
        ]
        for stale in (one, two):
            batch = AtomicBatch(grid.service)
            batch.add("$KV.vo.acc.1", b"0", expected=last - 2 if stale == two else stale)
            batch.add("$KV.vo.acc.2", b"0", expected=last - 1 if stale == one else stale)
            with pytest.raises(RevisionMismatch):
                await batch.commit()
        assert (await bucket.get("acc.1")).value == b"5"

    run(claim)


def test_a_batch_is_refused_if_what_it_only_read_has_changed(run):
    async def claim(grid):
        bucket = await grid.service.bucket("vo")
        read = await bucket.put("read", b"1")
        await bucket.put("read", b"2")
        batch = AtomicBatch(grid.service)
        batch.check("$KV.vo.read", read, marker="$KV.vo.marker")
        batch.add("$KV.vo.written", b"x", expected=0)
        with pytest.raises(RevisionMismatch):
            await batch.commit()
        assert await bucket.get("written") is None
        with pytest.raises(TooLarge):
            await AtomicBatch(grid.service).commit()

    run(claim)


# ---- credentials: the real server refuses what our verifier refuses


def bad_credentials(grid):
    """name -> credentials that nobody may take."""
    now = int(time.time())
    key, other = KeyPair.generate(KeyKind.USER), KeyPair.generate(KeyKind.USER)
    stranger = KeyPair.generate(KeyKind.ACCOUNT)
    member = grid.roles["member"]

    def claims(**nats):
        exp = nats.pop("exp", now + 60)
        nats = {"type": "user", "version": 2, "issuer_account": grid.account.public, "tags": ["sid:aa"]} | nats
        return {"sub": key.public, "name": "alice", "iat": now, "exp": exp, "nats": nats}

    good = jwt.sign_claims(claims(), member)
    head, body, signature = good.split(".")

    def header(value, signer=member):
        head = jwt._b64(json.dumps(value).encode())
        return f"{head}.{body}.{jwt._b64(signer.sign(f'{head}.{body}'.encode()))}"

    return {
        "good": Credentials(good, key),
        "another's token": Credentials(good, other),
        "alg none": Credentials(header({"typ": "JWT", "alg": "none"}), key),
        "alg HS256": Credentials(header({"typ": "JWT", "alg": "HS256"}), key),
        "changed": Credentials(f"{head}.{body}.{signature[:-4]}AAAA", key),
        "version 99": Credentials(jwt.sign_claims(claims(version=99), member), key),
        "stranger who names us": Credentials(jwt.sign_claims(claims(), stranger), key),
        "by the operator": Credentials(jwt.sign_claims(claims(), grid.operator), key),
        "role without account": Credentials(jwt.sign_claims(claims(issuer_account=""), member), key),
        "widened role": Credentials(jwt.sign_claims(claims(pub={"allow": [">"]}), member), key),
        "bearer": Credentials(jwt.sign_claims(claims(bearer_token=True), member), key),
        "expired": Credentials(jwt.sign_claims(claims(exp=now - 1), member), key),
        "user as account": Credentials(grid.account_jwt(), key),
    }


CASES = [
    "good",
    "another's token",
    "alg none",
    "alg HS256",
    "changed",
    "version 99",
    "stranger who names us",
    "by the operator",
    "role without account",
    "widened role",
    "bearer",
    "expired",
    "user as account",
]


@pytest.mark.parametrize("name", CASES)
def test_the_server_and_we_judge_alike(run, name):
    async def claim(grid):
        credentials = bad_credentials(grid)[name]
        operator = jwt.verify_operator(grid.operator_jwt, operator=grid.operator.public, now=time.time())
        account = jwt.verify_account(grid.account_jwt(), operator=operator, now=time.time())

        async def try_server():
            settings = grid.settings("member", "alice", sid="aa")
            # for "role without account" the server looks for an account that nobody has, for 2 s
            async with await Fabric.connect(settings, lambda: credentials, wait_s=3 if name == "role without account" else 0.4):
                pass

        if name == "good":
            jwt.verify_user(credentials.token, account=account, now=time.time())
            await try_server()
            return
        with pytest.raises(Unreachable, match=r"(?i)authorization|no answer in time"):
            await try_server()
        if name == "another's token":
            return  # for a verifier of tokens alone it is a good one; the nonce tells
        with pytest.raises(BadToken):
            jwt.verify_user(credentials.token, account=account, now=time.time())

    run(claim)


def test_revocation_drops_the_live_client_and_a_later_token_is_taken(run):
    async def claim(grid):
        system = await grid.system_account()
        credentials = grid.credentials("member", "eve", sid="ee")
        fabric = await Fabric.connect(grid.settings("member", "eve", sid="ee"), lambda: credentials)
        try:
            since_s = time.monotonic()
            revoked_at = int(time.time())
            await system.push_account(grid.account_jwt({credentials.key.public: revoked_at}))
            async for state in fabric.states():
                if not state.connected:
                    break
            assert time.monotonic() - since_s < 2
            with pytest.raises(Unreachable) as caught:
                await fabric.request("x", b"", 0.3)
            assert caught.value.definite
            while int(time.time()) <= revoked_at:  # the same second is still revoked
                await asyncio.sleep(0.05)
            now = int(time.time())
            token = jwt.mint_user(
                grid.roles["member"],
                account=grid.account.public,
                user=credentials.key.public,
                name="eve",
                now=now,
                expires_at=now + 60,
                tags=("sid:ee",),
            )
            credentials = Credentials(token, credentials.key)
            await fabric.wait_connected(5)  # by itself, as soon as the source gives the new token
        finally:
            await fabric.close()
            await system.push_account(grid.account_jwt())

    run(claim)


def test_an_expiring_token_is_replaced_without_anybody_noticing(run):
    async def claim(grid):
        lives = iter([2, 60, 60, 60])
        settings = grid.settings("node", "n8")
        fabric = await Fabric.connect(settings, lambda: grid.credentials("node", "n8", life_s=next(lives)))
        try:

            async def handler(message):
                return b"here"

            await fabric.subscribe(subjects.node_filter("n8"), handler)
            async for state in fabric.states():
                if state.connected and state.links == 2:
                    break
            assert await grid.service.request(subjects.node("n8", "x"), b"") == b"here"
        finally:
            await fabric.close()

    run(claim)


def test_renewal_keeps_requests_that_are_under_way(run):
    async def claim(grid):
        gate = asyncio.Event()

        async def slow(message):
            await gate.wait()
            return b"late"

        served = await grid.service.subscribe("slow.ask", slow)
        other = await grid.connect("service", "n2")
        asked = asyncio.create_task(other.request("slow.ask", b"", 10))
        while not served._fabric or not other._link._replies:
            await asyncio.sleep(0.01)
        other.renew()
        async for state in other.states():
            if state.links == 2:
                break
        gate.set()
        assert await asked == b"late"
        await served.close()

    run(claim)


def test_an_account_can_be_added_and_deleted_while_running(run):
    async def claim(grid):
        system = await grid.system_account()
        account, now = KeyPair.generate(KeyKind.ACCOUNT), int(time.time())
        token = jwt.mint_account(grid.operator, account=account.public, name="vo2", now=now, limits=jwt.AccountLimits())
        await system.push_account(token)
        assert account.public in await system.accounts()
        assert await system.lookup(account.public) == token
        key = KeyPair.generate(KeyKind.USER)
        user = jwt.mint_user(account, account=account.public, user=key.public, name="u", now=now, expires_at=now + 60)
        fabric = await Fabric.connect(grid.settings("service", "n1"), lambda: Credentials(user, key))
        try:
            await system.delete_accounts(jwt.mint_delete(grid.operator, [account.public], now=now))
            async for state in fabric.states():
                if not state.connected:
                    break
        finally:
            await fabric.close()
        assert account.public not in await system.accounts()
        stranger = KeyPair.generate(KeyKind.OPERATOR)
        with pytest.raises(BadToken, match="not signed by this grid"):
            await system.push_account(jwt.mint_account(stranger, account=account.public, name="vo2", now=now))

    run(claim)


def test_the_server_we_start_is_safe(run):
    async def claim(grid):
        system = await grid.system_account()
        await system.check_safe(1)

    run(claim)


def test_a_hostile_server_gets_nothing_signed(run):
    """It sends the bytes of a TLS CertificateVerify as its nonce (notes/vo-security.md, section 0)."""

    async def claim(grid):
        received = []
        nonce = " " * 64 + "TLS 1.3, client CertificateVerify\0" + "h" * 32

        async def serve(reader, writer):
            info = {
                "server_id": "x",
                "version": "2.15.1",
                "nonce": nonce,
                "auth_required": True,
                "tls_required": True,
                "max_payload": 1 << 20,
            }
            with contextlib.suppress(OSError):
                writer.write(f"INFO {json.dumps(info)}\r\n".encode())
                received.append(await reader.read(4096))
            writer.close()

        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(grid.tls.cert, grid.tls.key)
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        settings = Settings((f"127.0.0.1:{port}",), grid.context, "_INBOX.x", "x")
        with pytest.raises(Unreachable, match="not a nonce"):
            await Fabric.connect(settings, lambda: grid.credentials("member", "alice"), wait_s=1)
        server.close()
        assert received
        assert not any(received)

    run(claim)


def test_a_server_with_another_ca_is_not_talked_to(run):
    async def claim(grid):
        settings = grid.settings("member", "alice")
        stranger = Settings(settings.servers, ssl.create_default_context(), settings.inbox, "x")
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            await Fabric.connect(stranger, lambda: grid.credentials("member", "alice"), wait_s=0.5)

    run(claim)


# ---- life of the server


def test_a_port_in_use_is_one_clear_line(tmp_path):
    async def claim():
        grid = NatsGrid(tmp_path)
        holder = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        grid.replace_config(0, client_port=holder.sockets[0].getsockname()[1], folder=tmp_path / "x")
        config = grid.servers[0].config
        config.folder.mkdir()
        (config.folder / "alone").write_text("a file where the store should be")
        with pytest.raises((ServerFailed, FileExistsError)):
            await grid.servers[0].start(5)
        await grid.stop()
        holder.close()

    asyncio.run(claim())


def test_everything_goes_on_after_the_only_server_was_killed(tmp_path):
    async def claim():
        async with NatsGrid(tmp_path) as grid:
            fabric = await grid.connect()
            bucket = await fabric.ensure_bucket("vo")
            await bucket.put("gone", b"1")
            revision = await bucket.put("stays", b"1")
            async with contextlib.aclosing(bucket.watch()) as events:
                while not isinstance(await anext(events), Synced):
                    pass
                grid.kill(0)
                await grid.servers[0].wait()
                with pytest.raises(Unreachable) as caught:
                    await fabric.publish("x", b"", timeout_s=0.2)
                assert caught.value.definite
                assert fabric.cut_s() > 0
                writing = asyncio.create_task(bucket.update("stays", b"2", revision))  # waits, goes on by itself
                await grid.servers[0].start()
                assert await writing == revision + 1
                seen = [await anext(events)]
                while not isinstance(seen[-1], Synced):
                    seen.append(await anext(events))
                assert kv.Entry("stays", b"2", revision + 1) in seen or await anext(events) == kv.Entry("stays", b"2", revision + 1)
            assert fabric.cut_s() == 0

    asyncio.run(claim())


def test_the_fabric_grows_from_one_server_to_three_and_keeps_every_revision(tmp_path):
    async def claim():
        grid = NatsGrid(tmp_path, servers=3)
        peers = grid.servers[0].config.peers
        try:
            grid.replace_config(0, peers=())
            await grid.servers[0].start()
            fabric = await grid.connect(server=0)
            bucket = await fabric.ensure_bucket("vo")
            revisions = {f"k{number}": await bucket.put(f"k{number}", bytes(5000)) for number in range(100)}
            await bucket.delete("k0")
            await fabric.ensure_stream({"name": "JOBSUB", "subjects": ["jobs.submit.>"]})
            await fabric.append("jobs.submit.a.j1", b"job")
            names = await grow.backup(fabric, tmp_path / "backup")
            assert names == ["JOBSUB", "KV_vo"]
            grid.replace_config(0, peers=peers)
            await grid.servers[0].restart()
            await asyncio.gather(*(server.start() for server in grid.servers[1:]))
            await grow.restore_grown([(fabric, tmp_path / "backup")])
            info = await stream_info(fabric, "KV_vo")
            assert info["config"]["num_replicas"] == 3
            del revisions["k0"]
            assert {entry.key: entry.revision for entry in await bucket.entries()} == revisions
            assert await bucket.create("new", b"x") == 102
            leader = grid.index_of((await stream_info(fabric, "KV_vo"))["cluster"]["leader"])
            grid.kill(leader)  # the one that restored it: the others must hold all by now, whatever `current` said before
            await kv.Bucket(fabric, "vo", timeout_s=40).put("new", b"y")
            del revisions["k1"]
            await bucket.delete("k1")
            assert {entry.key: entry.revision for entry in await bucket.entries() if entry.key != "new"} == revisions
            assert len(fabric.servers) == 3
        finally:
            await grid.stop()

    asyncio.run(claim())


def test_free_ports_differ():
    assert len(set(free_ports(6))) == 6
