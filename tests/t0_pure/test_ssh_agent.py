"""The session's ssh agent signs log-ins of its own user and nothing else; the printed configuration and sshd's are what they should be."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtreemos.aem.agent.sshagent import snippet
from xtreemos.aem.agent.sshwire import FAILURE, Identity, answer, destination, is_login, text
from xtreemos.node.sshd import configuration

CERTIFICATE = text(b"ssh-ed25519-cert-v01@openssh.com") + b"rest of it"
ME = Identity(CERTIFICATE, "alice.demo", lambda data: b"signed " + data[:4])


def login(
    *, user: bytes = b"alice.demo", service: bytes = b"ssh-connection", method: bytes = b"publickey", session: bytes = b"s" * 32,
    signed: bytes = b"\x01", kind: bytes = b"\x32", algorithm: bytes = b"ssh-ed25519-cert-v01@openssh.com", blob: bytes = CERTIFICATE, tail: bytes = b"",
) -> bytes:  # fmt: skip
    return text(session) + kind + text(user) + text(service) + text(method) + signed + text(algorithm) + text(blob) + tail


def sign(data: bytes, blob: bytes = CERTIFICATE) -> bytes:
    return answer(b"\x0d" + text(blob) + text(data) + struct.pack(">I", 0), ME)


def test_the_only_identity_is_the_certificate():
    assert answer(b"\x0b", ME) == b"\x0c\x00\x00\x00\x01" + text(CERTIFICATE) + text(b"alice.demo")


def test_a_log_in_of_the_user_is_signed_by_the_key():
    data = login()
    assert sign(data) == b"\x0e" + text(text(b"ssh-ed25519") + text(b"signed " + data[:4]))
    assert sign(login(method=b"publickey-hostbound-v00@openssh.com", tail=text(b"host key"))) != FAILURE


@pytest.mark.parametrize(
    "data",
    [
        b"", b"xos-pop-v1|ssh|demo|sid|challenge", b"SSHSIG" + text(b"file") + text(b"") + text(b"sha512") + text(b"h" * 64),
        login(user=b"root"), login(user=b"bob.demo"), login(service=b"ssh-userauth"), login(method=b"hostbased"), login(signed=b"\x00"),
        login(kind=b"\x33"), login(algorithm=b"ssh-ed25519"), login(blob=b"another"), login(tail=b"x"), login(session=b""), login(session=b"s" * 200),
        login()[:-1], login(method=b"publickey-hostbound-v00@openssh.com"),
    ],
)  # fmt: skip
def test_anything_else_is_not_signed(data):
    assert not is_login(data, ME)
    assert sign(data) == FAILURE


def test_the_host_that_a_log_in_goes_to_is_told_of_that_request_only():
    def asked(data: bytes, blob: bytes = CERTIFICATE) -> bytes | None:
        return destination(b"\x0d" + text(blob) + text(data) + struct.pack(">I", 0), ME)

    bound = {"method": b"publickey-hostbound-v00@openssh.com", "tail": text(b"host key")}
    assert asked(login(**bound)) == b"host key"
    assert asked(login()) is None
    assert asked(login(user=b"bob.demo", **bound)) is None
    assert asked(login(**bound), blob=b"another") is None
    assert destination(b"\x0b", ME) is None
    assert destination(b"", ME) is None


def test_another_key_is_not_signed_with():
    assert sign(login(), blob=b"another") == FAILURE


@given(st.binary(max_size=300))
def test_no_message_breaks_the_agent_or_gets_a_signature_by_chance(message):
    assert answer(message, ME)[:1] in (b"\x05", b"\x0c")


def test_the_snippet_names_every_node_and_trusts_only_the_vos_hosts():
    nodes = {"n2": ("10.0.0.2", 7623), "n1": ("10.0.0.1", 7622)}
    lines = snippet("alice.demo", "demo", nodes, Path("/run/a b/ssh.sock"), Path("/run/known")).splitlines()
    assert lines[1:5] == ["Host n1 n1.demo", "    HostName 10.0.0.1", "    Port 7622", "    HostKeyAlias n1.demo"]
    assert "    Port 7623" in lines
    assert '    IdentityAgent "/run/a b/ssh.sock"' in lines
    assert {"    StrictHostKeyChecking yes", "    IdentityFile none", "    ForwardAgent no"} <= set(lines)


def test_sshd_offers_no_way_around_the_sandbox():
    text_of = configuration(Path("/k"), Path("/d/bin/xos-ssh"), "sshd")
    lines = dict(line.split(" ", 1) for line in text_of.splitlines())
    for name in ("PermitUserRC", "PermitUserEnvironment", "AllowAgentForwarding", "AllowStreamLocalForwarding", "PermitTunnel", "PasswordAuthentication"):
        assert lines[name] == "no", name
    assert lines["ForceCommand"] == "/d/bin/xos-ssh"
    assert lines["AuthorizedKeysFile"] == "none"
    assert not any(word.startswith(("LD_", "BASH", "*")) for word in lines["AcceptEnv"].split())
