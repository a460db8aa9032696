# SPDX-License-Identifier: Apache-2.0
"""TLS, users and their rights on a real etcd, and the traps of its gateway."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.fleet.certificates import Authority
from lab.fleet.etcd import NET, Cluster, cluster
from lab.namespaces import namespaces
from lab.shell import sh
from tapster.cli import fleet as verbs
from tapster.fleet import doctor
from tapster.fleet.etcd import Certificates, Etcd, EtcdRefusal, Login, parse_endpoint
from tapster.fleet.fleet import Overview
from tapster.fleet.keys import Keys
from tapster.fleet.store import FleetUnavailable
from tests.fleet.hosts import FleetHost

pytestmark = pytest.mark.kernel

ADDRESSES = f"IP:{NET}.1"
PASSWORD = "correct-horse"


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Authority]:
    with namespaces():
        sh("ip link set lo up")
        yield Authority(tmp_path)


def tls_options(authority: Authority, subject: str) -> list[str]:
    cert, key = authority.sign("server", subject, ADDRESSES)
    return [
        f"--cert-file={cert}",
        f"--key-file={key}",
        f"--trusted-ca-file={authority.cert}",
        "--auth-token-ttl=2",
    ]


def client_of(authority: Authority) -> list[str]:
    """What etcdctl needs to connect. With --trusted-ca-file etcd 3.4 wants a client
    certificate, too; without a CN, or the gateway refuses it."""
    cert, key = authority.folder / "client.pem", authority.folder / "client.key"
    if not cert.exists():
        authority.sign("client", "", "DNS:client")
    return [f"--cacert={authority.cert}", f"--cert={cert}", f"--key={key}"]


def enable_users(etcd: Cluster, authority: Authority, *hosts: str) -> None:
    """Make the users that `tapster fleet init` prints, and turn them on."""
    plain = client_of(authority)
    etcd.ctl("user add root:root", *plain)
    etcd.ctl("user grant-role root root", *plain)
    for host in hosts:
        rights = verbs.host_rights(Keys(), host)
        for line in verbs.role_lines(host, rights):
            line = line.removeprefix("etcdctl ")
            if line == f"user add {host}":  # it would ask for the password
                line += f":{PASSWORD}"
            etcd.ctl(line, *plain)
    etcd.ctl("auth enable", *plain)


def store_of(etcd: Cluster, authority: Authority, user: str | None = "a") -> Etcd:
    password = "root" if user == "root" else PASSWORD
    return Etcd(
        [parse_endpoint(url) for url in etcd.endpoints],
        login=Login(user, lambda: password) if user else None,
        certificates=Certificates(
            str(authority.cert),
            str(authority.folder / "client.pem"),
            str(authority.folder / "client.key"),
        ),
    )


@pytest.fixture
def etcd(authority: Authority, tmp_path: Path) -> Iterator[Cluster]:
    options = tls_options(authority, "")
    with cluster(tmp_path, 1, scheme="https", options=options) as running:
        enable_users(running, authority, "a", "b")
        yield running


def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(
    authority: Authority, tmp_path: Path
) -> None:
    _, cert, key = (option.partition("=")[2] for option in client_of(authority))
    locked = tmp_path / "locked.key"
    sh(f"openssl pkey -aes256 -passout pass:secret -in {key} -out {locked}")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = parse_endpoint(f"https://127.0.0.1:{listening.getsockname()[1]}")
        certificates = Certificates(str(authority.cert), cert, str(locked))
        store = Etcd([endpoint], certificates=certificates)
        with pytest.raises(FleetUnavailable, match="has a passphrase"):
            store.read(["/a"])


def test_a_host_has_the_rights_that_it_needs_and_no_more(
    etcd: Cluster, authority: Authority, tmp_path: Path
) -> None:
    root = store_of(etcd, authority, "root")
    Overview(root, Keys()).init("0a:54:00")
    store = store_of(etcd, authority)
    host = FleetHost("a", store, tmp_path, etcd.endpoints)
    host.member.join()
    lease = host.add()
    assert host.member.sync().problems == ()
    assert doctor.examine(host.member, time.time()) == []
    host.host.release(lease.id)
    host.member.sync()
    for key in (Keys().permit("b"), Keys().row("b", "1"), Keys().fleet, "/else"):
        with pytest.raises(EtcdRefusal, match="permission denied"):
            store.commit({}, {key: "x"})
    with pytest.raises(EtcdRefusal, match="permission denied"):
        store.read([Keys().row("b", "1")])
    # The token that the store has kept is over: it logs in once more.
    assert "auth-token-ttl=2" in " ".join(etcd.nodes[0].options)
    etcd.nodes[0].kill()
    etcd.start(etcd.nodes[0])
    assert host.member.sync().problems == ()
    for opened in (store, root):
        opened.close()
    host.host.close()


def test_a_token_that_the_store_has_forgotten_is_renewed(
    etcd: Cluster, authority: Authority
) -> None:
    store = store_of(etcd, authority)
    store.commit({}, {Keys().registration("default", "x"): "1"})
    token = store.token
    etcd.ctl("auth disable", "--user=root:root", *client_of(authority))
    etcd.ctl("auth enable", *client_of(authority))
    store.commit({}, {Keys().registration("default", "x"): "2"})
    assert store.token != token
    store.close()


def test_a_token_that_was_not_used_for_too_long_is_renewed(
    etcd: Cluster, authority: Authority
) -> None:
    store = store_of(etcd, authority)
    store.commit({}, {Keys().registration("default", "x"): "1"})
    token = store.token
    etcd.nodes[0].wait_log(
        f'"deleted a simple token","user-name":"a","token":"{token}"'
    )
    store.commit({}, {Keys().registration("default", "x"): "2"})
    assert store.token != token
    store.close()


def test_without_a_password_nothing_is_read(
    etcd: Cluster, authority: Authority
) -> None:
    store = store_of(etcd, authority)
    assert not store.is_open_to_all(Keys().fleet)
    stranger = store_of(etcd, authority, None)
    with pytest.raises(EtcdRefusal):
        stranger.read(["/a"])
    for opened in (store, stranger):
        opened.close()


def test_another_authority_is_not_trusted(
    etcd: Cluster, authority: Authority, tmp_path: Path
) -> None:
    store = store_of(etcd, Authority(tmp_path, "other"))
    with pytest.raises(FleetUnavailable, match=r"https://10\.99\.0\.1:2379: TLS"):
        store.read(["/a"])
    store.close()


def test_a_name_that_is_not_in_the_certificate_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    client_of(authority)
    cert, key = authority.sign("server", "", "DNS:elsewhere")
    options = [f"--cert-file={cert}", f"--key-file={key}"]
    with cluster(tmp_path, 1, scheme="https", options=options) as etcd:
        store = store_of(etcd, authority, None)
        with pytest.raises(FleetUnavailable, match=r"TLS: .*10\.99\.0\.1"):
            store.read(["/a"])
        store.close()


def test_a_server_certificate_named_root_opens_the_store_to_all(
    authority: Authority, tmp_path: Path
) -> None:
    """The gateway shows etcd the server's own certificate; doctor must notice."""
    options = [*tls_options(authority, "root"), "--client-cert-auth"]
    with cluster(tmp_path, 1, scheme="https", options=options) as etcd:
        enable_users(etcd, authority)
        store = store_of(etcd, authority, None)
        assert store.is_open_to_all("/")
        problems = [*doctor.examine_etcd(store, Keys().root, time.time())]
        assert any("without a password" in p.description for p in problems)
        store.close()


def test_a_certificate_that_ends_soon_is_a_problem(
    authority: Authority, tmp_path: Path
) -> None:
    client_of(authority)
    cert, key = authority.sign("server", "", ADDRESSES, days=3)
    options = [f"--cert-file={cert}", f"--key-file={key}"]
    with cluster(tmp_path, 1, scheme="https", options=options) as etcd:
        store = store_of(etcd, authority, None)
        problems = [*doctor.examine_etcd(store, Keys().root, time.time())]
        assert any("ends in" in p.description for p in problems)
        store.close()


def test_a_missing_file_is_named(etcd: Cluster, authority: Authority) -> None:
    authority.cert.unlink()
    store = store_of(etcd, authority)
    with pytest.raises(FleetUnavailable, match=str(authority.cert)):
        store.read(["/a"])
    store.close()
