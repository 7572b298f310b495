"""Our credentials under the real peers: ssh-keygen's eyes and KRL check, OpenSSL's chain check and TLS handshake."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from cryptography import x509

from vo_kit import founded
from xtreemos.fabric.nkeys import KeyKind, KeyPair
from xtreemos.vo import founding, ssh
from xtreemos.vo import x509 as certificates
from xtreemos.vo.credentials import Issuer, SessionKeys
from xtreemos.vo.model import Node, Session

SID = "0123456789abcdef" * 2
needs_ssh = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no ssh-keygen on this machine")
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl on this machine")


@pytest.fixture(scope="module")
def vo():
    return founding.found_vo("demo", int(time.time()))


@pytest.fixture(scope="module")
def keys(vo):
    return founding.IssuingKeys(vo.secrets)


def issue_user(keys, session_keys, serial=4711):
    now = int(time.time())
    session = Session(sid=SID, user="alice", created_at=now, ends_at=now + 9999, expires_at=now + 3600, roles=("member",))
    return Issuer(keys).issue_user(session, session_keys.public(), serial=serial, now=now)


def issue_node(keys, session_keys, core=True):
    now = int(time.time())
    node = Node(name="n1", sid=SID, addresses=(), core=core, owner="", consent=b"", joined_at=now, expires_at=now)
    return Issuer(keys).issue_node(node, session_keys.public(), serial=4712, now=now)


def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


@needs_ssh
def test_ssh_keygen_reads_our_certificates_as_we_mean_them(keys, tmp_path):
    path = tmp_path / "key-cert.pub"
    path.write_text(issue_user(keys, SessionKeys.fresh()).ssh)
    shown = run("ssh-keygen", "-L", "-f", str(path)).stdout
    assert "user certificate" in shown
    assert f'Key ID: "xos:demo:alice:{SID}"' in shown
    assert "Serial: 4711" in shown
    assert "Principals: \n                alice.demo\n" in shown
    assert "Critical Options: (none)" in shown
    path.write_text(issue_node(keys, SessionKeys.fresh()).ssh)
    shown = run("ssh-keygen", "-L", "-f", str(path)).stdout
    assert "host certificate" in shown
    assert "n1.demo" in shown


@needs_ssh
def test_ssh_keygen_finds_revoked_serials_in_our_krl_and_only_those(keys, tmp_path):
    authorities = keys.trust.document.ssh_user_ca
    listed, free = tmp_path / "listed-cert.pub", tmp_path / "free-cert.pub"
    listed.write_text(issue_user(keys, SessionKeys.fresh(), serial=7).ssh)
    free.write_text(issue_user(keys, SessionKeys.fresh(), serial=8).ssh)
    for serials, wanted in (((7, 2**62), 1), ((), 0), ((9,), 0)):
        krl = tmp_path / "krl"
        krl.write_bytes(ssh.krl(authorities, serials, version=1, now=int(time.time())))
        assert run("ssh-keygen", "-Q", "-f", str(krl), str(listed)).returncode == wanted, serials
        assert run("ssh-keygen", "-Q", "-f", str(krl), str(free)).returncode == 0


def openssl_verify(tmp_path, root_pem, chain, *options):
    (tmp_path / "root.pem").write_text(root_pem)
    leaf, issuer = (certificates.pem([x509.load_der_x509_certificate(item)]) for item in chain)
    (tmp_path / "leaf.pem").write_bytes(leaf)
    (tmp_path / "issuing.pem").write_bytes(issuer)
    files = ["-CAfile", str(tmp_path / "root.pem"), "-untrusted", str(tmp_path / "issuing.pem")]
    return run("openssl", "verify", "-x509_strict", *options, *files, str(tmp_path / "leaf.pem"))


@needs_openssl
def test_openssl_agrees_with_us_on_whom_a_certificate_serves(keys, tmp_path):
    user, node = issue_user(keys, SessionKeys.fresh()), issue_node(keys, SessionKeys.fresh())
    table = {
        (user.x509, "sslclient"): True,
        (user.x509, "sslserver"): False,
        (node.x509, "sslclient"): True,
        (node.x509, "sslserver"): True,
    }
    for (chain, purpose), wanted in table.items():
        done = openssl_verify(tmp_path, keys.trust.root_pem, chain, "-purpose", purpose)
        assert (done.returncode == 0) is wanted, done.stderr
    other = founding.IssuingKeys(founded("other").secrets).trust.root_pem
    assert openssl_verify(tmp_path, other, user.x509).returncode != 0


def context(purpose, root_pem, key_pem, chain, folder, name):
    made = ssl.SSLContext(purpose)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_verify_locations(cadata=root_pem)
    made.verify_mode = ssl.CERT_REQUIRED
    path = folder / f"{name}.pem"
    path.write_bytes(key_pem + chain)
    made.load_cert_chain(path)
    return made


def handshake(server, client, name):
    """One TLS handshake over a socket pair; returns the client's certificate as the server saw it, or raises."""
    ours, theirs = socket.socketpair()
    seen, failed = [], []

    def serve():
        try:
            with server.wrap_socket(ours, server_side=True) as wrapped:
                seen.append(wrapped.getpeercert(binary_form=True))
                wrapped.sendall(b"hello")
        except OSError as error:
            failed.append(error)
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(theirs, server_hostname=name) as wrapped:
            assert wrapped.recv(5) == b"hello"
    finally:
        theirs.close()
        thread.join()
    return seen[0]


def test_a_session_and_a_node_meet_over_tls_by_the_vos_name(keys, tmp_path):
    user_keys, node_keys = SessionKeys.fresh(), SessionKeys.fresh()
    user = issue_user(keys, user_keys)
    pems = [
        certificates.pem([x509.load_der_x509_certificate(item) for item in got.x509]) for got in (user, issue_node(keys, node_keys))
    ]
    server = context(ssl.PROTOCOL_TLS_SERVER, keys.trust.root_pem, node_keys.x509_pem(), pems[1], tmp_path, "node")
    client = context(ssl.PROTOCOL_TLS_CLIENT, keys.trust.root_pem, user_keys.x509_pem(), pems[0], tmp_path, "user")
    for name in ("demo.vo.xtreemos.internal", "cda.demo.vo.xtreemos.internal", "n1"):
        leaf = handshake(server, client, name)
        assert certificates.verify_x509([leaf], keys.trust, int(time.time()))[0].name == "alice"
    with pytest.raises(ssl.SSLError):
        handshake(server, client, "other.vo.xtreemos.internal")


def test_a_plain_node_cannot_stand_where_a_password_is_sent(keys, tmp_path):
    user_keys, node_keys = SessionKeys.fresh(), SessionKeys.fresh()
    got = [issue_user(keys, user_keys), issue_node(keys, node_keys, core=False)]
    pems = [certificates.pem([x509.load_der_x509_certificate(item) for item in one.x509]) for one in got]
    server = context(ssl.PROTOCOL_TLS_SERVER, keys.trust.root_pem, node_keys.x509_pem(), pems[1], tmp_path, "node")
    client = context(ssl.PROTOCOL_TLS_CLIENT, keys.trust.root_pem, user_keys.x509_pem(), pems[0], tmp_path, "user")
    with pytest.raises(ssl.SSLError):
        handshake(server, client, certificates.cda_dns("demo"))


def test_a_fabric_server_certificate_serves_by_name_and_address(tmp_path):
    grid = founding.found_grid("lab", int(time.time()))
    key, key_pem = founding.new_server_key()
    chain = founding.issue_server(grid, key.public_key(), node="n1", addresses=("127.0.0.1", "fd00::1"), now=int(time.time()))
    server = context(ssl.PROTOCOL_TLS_SERVER, grid.fabric_ca_pem, key_pem, chain, tmp_path, "server")
    for name in (founding.fabric_dns("lab"), "n1", "127.0.0.1", "fd00::1"):
        handshake(server, server_as_client(grid, key_pem, chain, tmp_path), name)
    with pytest.raises(ssl.SSLError):
        handshake(server, server_as_client(grid, key_pem, chain, tmp_path), "127.0.0.2")
    assert KeyPair.from_seed(grid.operator_seed, KeyKind.OPERATOR).public == grid.operator_public


def server_as_client(grid, key_pem, chain, folder):
    return context(ssl.PROTOCOL_TLS_CLIENT, grid.fabric_ca_pem, key_pem, chain, folder, "client")
