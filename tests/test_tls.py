"""TLS for every service, called and calling (PS3.15 B.12, BCP 195), with DCMTK and with ourselves as the peer."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl

import pytest
from authorities import Authority, openssl
from peers import on_free_ports
from pydicom import dcmread
from pydicom.dataset import Dataset

from config.settings import SettingsError, TlsSettings, load_settings
from scp import client
from scp.client import Requestor
from scp.contexts import STUDY_ROOT_FIND, STUDY_ROOT_GET, STUDY_ROOT_MOVE
from scp.errors import PeerUnreachable
from scp.requestor import Peer, Timeouts
from scp.tls import TlsError, client_context, server_context

ME = Requestor("ME", Timeouts(connect=60, acse=60, dimse=60, network=60))
STUDY = "1.2.826.0.1.3680043.9.7133.1"


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    assert shutil.which("openssl"), "the openssl command is not installed"
    ours = Authority(tmp_path_factory.mktemp("pki") / "ours", "Ours")
    for name in ("node", "modality"):
        ours.issue(name)
    ours.issue("elsewhere", hosts="DNS:elsewhere.example")
    ours.issue("expired", days=-1)
    return ours


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    other = Authority(tmp_path_factory.mktemp("pki") / "other", "Another")
    other.issue("modality")
    other.issue("node")
    return other


def _told(authority, **more):
    certificate, key = authority.folder / "node.pem", authority.folder / "node.key"
    return {
        "enabled": True, "port": 0, "certificate": str(certificate), "key": str(key), "ca": str(authority.ca), **more
    }  # fmt: skip


@pytest.fixture
def secure_node(start_node, authority):
    """A node with TLS; keywords set ``[tls]``."""

    def start(*, entities=None, scp=None, **tls):
        return start_node(entities=entities, tls=_told(authority, **tls), **(scp or {}))

    return start


def _peer(node, authority, *, certificate=None, host="localhost", ca=None):
    given = {}
    if certificate is not None:
        given = {"certificate": f"{certificate.folder}/modality.pem", "key": f"{certificate.folder}/modality.key"}
    context = client_context(ca=str(ca or authority.ca), **given)
    return Peer(host, node.server.tls_port, "THARSIS", context)


def _study():
    identifier = Dataset()
    identifier.QueryRetrieveLevel, identifier.StudyInstanceUID = "STUDY", STUDY
    return identifier


def _dcmtk_options(authority, name="modality"):
    return ["+tls", authority.folder / f"{name}.key", authority.folder / f"{name}.pem", "+cf", authority.ca]


# Called


def test_every_service_answers_over_tls(secure_node, authority, make_file, tmp_path):
    """C-ECHO, C-STORE, C-FIND and C-GET, with an object of many TLS records."""
    node = secure_node()
    peer = _peer(node, authority)
    large = make_file(1)
    dataset = dcmread(large)
    dataset.Rows, dataset.Columns = 2048, 2048
    dataset.PixelData = bytes(range(256)) * (2048 * 2048 * 2 // 256)
    dataset.save_as(large)
    assert client.echo(peer, ME) < 60
    [sent] = client.send(peer, [large], ME)
    assert sent.status.is_success, sent
    [match] = client.find(peer, _study(), STUDY_ROOT_FIND, ME)
    assert match.StudyInstanceUID == STUDY
    *_, last = client.get(peer, _study(), tmp_path / "got", STUDY_ROOT_GET, ME)
    assert last.counts.completed == 1
    [got] = (tmp_path / "got").glob("*.dcm")
    assert dcmread(got).PixelData == dataset.PixelData


@pytest.mark.parametrize("profile", ["--profile-bcp195-nd", "--profile-bcp195", "--profile-bcp195-ex"])
def test_dcmtk_stores_and_finds_over_tls(secure_node, authority, dcmtk, make_file, profile):
    node = secure_node(client_certificates="required")
    to = ["-aec", "THARSIS", profile, *_dcmtk_options(authority), "localhost", node.server.tls_port]
    assert dcmtk("echoscu", *to).returncode == 0
    sent = dcmtk("storescu", "-v", *to, make_file(1), make_file(2))
    assert sent.stdout.count("Received Store Response (Success)") == 2
    found = dcmtk("findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID", *to)
    assert "P1" in found.stdout


def test_the_plain_port_stays_open_or_not(secure_node, authority, start_node):
    node = secure_node()
    assert client.echo(Peer("127.0.0.1", node.port, "THARSIS"), ME) < 60
    node = secure_node(plain=False)
    assert node.port == 0
    assert client.echo(_peer(node, authority), ME) < 60
    node = start_node()
    assert node.server.tls_port == 0


@pytest.mark.parametrize(
    ("wanted", "presented", "accepted"),
    [
        ("none", None, True),
        ("none", "stranger", True),  # it is not asked for
        ("optional", None, True),
        ("optional", "authority", True),
        ("optional", "stranger", False),
        ("required", None, False),
        ("required", "authority", True),
        ("required", "stranger", False),
    ],
)
def test_client_certificates(secure_node, authority, stranger, wanted, presented, accepted):
    node = secure_node(client_certificates=wanted)
    certificate = {"authority": authority, "stranger": stranger, None: None}[presented]
    peer = _peer(node, authority, certificate=certificate)
    if accepted:
        assert client.echo(peer, ME) < 60
    else:
        with pytest.raises(client.PeerError, match="certificate required" if presented is None else "unknown ca"):
            client.echo(peer, ME)
    assert client.echo(_peer(node, authority, certificate=authority), ME) < 60


def test_the_subject_of_a_client_certificate_is_logged(secure_node, authority, caplog):
    node = secure_node(client_certificates="required")
    with caplog.at_level("INFO", "scp"):
        client.echo(_peer(node, authority, certificate=authority), ME)
    assert "ME@127.0.0.1 opened an association with THARSIS, certificate CN=modality, O=Test" in caplog.text


@pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
)
def test_versions(secure_node, authority, version):
    """RFC 8996: TLS 1.0 and 1.1 are dead."""
    node = secure_node()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.ca)
    old = version < ssl.TLSVersion.TLSv1_2
    with pytest.warns(DeprecationWarning, match="TLSv1") if old else contextlib.nullcontext():
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(("localhost", node.server.tls_port), timeout=60) as connection:
        if old:
            with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|protocol version"):
                context.wrap_socket(connection, server_hostname="localhost")
            return
        with context.wrap_socket(connection, server_hostname="localhost") as secure:
            assert secure.version() == version.name.replace("_", ".")
            assert secure.compression() is None


@pytest.mark.parametrize(
    ("suite", "accepted"),
    [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", True),
        ("ECDHE-ECDSA-AES256-GCM-SHA384", True),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", True),
        ("ECDHE-ECDSA-AES128-SHA256", False),  # CBC
        ("ECDHE-ECDSA-AES256-SHA", False),
        ("ECDHE-ECDSA-NULL-SHA", False),
    ],
)
def test_suites_of_tls_1_2(secure_node, authority, suite, accepted):
    """RFC 9325 4.2: ephemeral elliptic curves with authenticated encryption."""
    node = secure_node()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{suite}:@SECLEVEL=0")
    with socket.create_connection(("localhost", node.server.tls_port), timeout=60) as connection:
        if accepted:
            with context.wrap_socket(connection, server_hostname="localhost") as secure:
                assert secure.cipher()[0] == suite
        else:
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(connection, server_hostname="localhost")


@pytest.mark.parametrize("door", ["port", "tls_port"])
@pytest.mark.parametrize(
    "garbage", [b"", b"\x16", b"GET / HTTP/1.1\r\n\r\n", bytes.fromhex("16030100c8010000c40303") + bytes(194)]
)
def test_who_speaks_something_else_costs_nobody_anything(secure_node, authority, wait_until, door, garbage):
    """A plain peer at the TLS port, TLS at the plain one, or one that says nothing: others are served meanwhile."""
    node = secure_node()
    held = node.server._acceptor
    connections = [socket.create_connection(("127.0.0.1", getattr(node.server, door)), timeout=60) for _ in range(20)]
    for connection in connections:
        connection.sendall(garbage)
    client.echo(_peer(node, authority), ME)
    client.echo(Peer("127.0.0.1", node.port, "THARSIS"), ME)
    if len(garbage) < 2:  # they may still become peers
        assert len(held._listener._lobby) == len(connections)
    for connection in connections:
        connection.close()
    wait_until(lambda: len(held._listener._lobby) == 0 and not held.associations)


def test_a_plain_peer_at_the_tls_port_and_the_other_way_round_are_told_apart_in_the_log(
    secure_node, authority, caplog, wait_until
):
    node = secure_node()
    with pytest.raises(client.PeerError):
        client.echo(Peer("127.0.0.1", node.server.tls_port, "THARSIS"), ME)
    with pytest.raises(client.PeerError):
        client.echo(Peer("localhost", node.port, "THARSIS", client_context(ca=str(authority.ca))), ME)
    wait_until(lambda: len(node.server._acceptor._listener._lobby) == 0)
    lines = [record.getMessage() for record in caplog.records if record.name == "tharsis.audit"]
    assert any("TLS handshake" in line for line in lines), lines
    assert any("it speaks TLS, and this port does not" in line for line in lines), lines


# Calling


@pytest.fixture
def destination(authority, tmp_path):
    """A storescp of DCMTK with TLS: (port, folder)."""
    running = []

    def start(issuer=authority, name="node", *more):
        folder = tmp_path / f"received{len(running)}"
        folder.mkdir()
        secure = ["+tls", issuer.folder / f"{name}.key", issuer.folder / f"{name}.pem", "+cf", authority.ca]
        command = ["storescp", *secure, *more, "-aet", "DEST", "-od", folder]
        process, (port,) = on_free_ports(lambda ports: [*map(str, command), str(ports[0])], 1)
        running.append(process)
        return port, folder

    yield start
    for process in running:
        process.terminate()
        process.wait()


def _moved(node, authority):
    peer = _peer(node, authority)
    *_, last = client.move(peer, _study(), "DEST", STUDY_ROOT_MOVE, ME)
    return last


@pytest.mark.parametrize("peers_certificate", ["-rc", "-vc", "-ic"])
def test_a_move_destination_is_reached_with_tls(secure_node, authority, destination, make_file, peers_certificate):
    """It checks our certificate (``-rc``: it requires one), we check its."""
    port, folder = destination(authority, "node", peers_certificate)
    entity = {"title": "DEST", "host": "localhost", "port": port, "tls": True}
    node = secure_node(entities=[entity])
    [sent] = client.send(_peer(node, authority), [make_file(1)], ME)
    assert sent.is_stored
    last = _moved(node, authority)
    assert last.status.is_success, last
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("issuer", "name", "check_host", "moved", "why"),
    [
        ("authority", "elsewhere", True, False, "Hostname mismatch"),
        ("authority", "elsewhere", False, True, ""),
        ("stranger", "node", True, False, "unable to get local issuer"),
        ("stranger", "node", False, False, "unable to get local issuer"),
    ],
)
def test_a_destination_that_is_not_who_it_should_be_gets_nothing(
    secure_node, authority, stranger, destination, make_file, issuer, name, check_host, moved, why, caplog
):
    port, folder = destination({"authority": authority, "stranger": stranger}[issuer], name, "-ic")
    entity = {"title": "DEST", "host": "localhost", "port": port, "tls": True}
    node = secure_node(entities=[entity], check_host=check_host)
    [sent] = client.send(_peer(node, authority), [make_file(1)], ME)
    assert sent.is_stored
    last = _moved(node, authority)
    assert last.status.is_success == moved, last
    assert len(list(folder.iterdir())) == int(moved)
    if not moved:
        assert last.status.code == 0xA702
        assert why in caplog.text


def test_a_plain_destination_of_a_tls_entity_gets_nothing(secure_node, authority, make_file, start_node):
    plain = start_node(aet="DEST")
    entity = {"title": "DEST", "host": "127.0.0.1", "port": plain.port, "tls": True}
    node = secure_node(entities=[entity])
    [sent] = client.send(_peer(node, authority), [make_file(1)], ME)
    assert sent.is_stored
    assert _moved(node, authority).status.code == 0xA702


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ca": "stranger"}, "its TLS certificate is not accepted"),
        ({"host": "127.0.0.2"}, "IP address mismatch"),
    ],
)
def test_a_node_that_is_not_who_it_should_be_is_not_called(secure_node, authority, stranger, change, words):
    node = secure_node(scp={"host": "0.0.0.0"})
    told = {**change, **({"ca": stranger.ca} if change.get("ca") else {})}
    with pytest.raises(PeerUnreachable, match=words):
        client.echo(_peer(node, authority, **told), ME)


# Settings and command line


def _settings(authority, **change):
    told = {"client_certificates": "none", "check_host": True, "plain": True, **_told(authority, **change)}
    return TlsSettings(**told)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"certificate": "absent.pem"}, ["certificate 'absent.pem'", "No such file"]),
        ({"key": "absent.key"}, ["key 'absent.key'", "No such file"]),
        ({"ca": "absent.pem", "client_certificates": "required"}, ["ca 'absent.pem'", "No such file"]),
        ({"key": "modality.key"}, ["modality.key does not belong to", "node.pem"]),
        ({"certificate": "names"}, ["names", "no PEM file"]),
        ({"ca": "names", "client_certificates": "optional"}, ["names", "no PEM file"]),
        ({"certificate": "expired.pem", "key": "expired.key"}, ["expired.pem", "has expired"]),
    ],
)
def test_what_cannot_be_used_is_one_sentence_at_the_start(authority, change, words, monkeypatch):
    monkeypatch.chdir(authority.folder)
    with pytest.raises(TlsError) as caught:
        server_context(_settings(authority, **change))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_with_a_password_is_refused_and_not_asked_for(authority):
    locked = authority.folder / "locked.key"
    openssl(authority.folder, "ec", "-in", "node.key", "-aes128", "-passout", "pass:secret", "-out", locked)
    with pytest.raises(TlsError, match="has a password"):
        server_context(_settings(authority, key=str(locked)))


@pytest.mark.parametrize(
    ("tls", "words"),
    [
        ({"enabled": True}, "certificate and key"),
        ({"certificate": "a.pem"}, "go together"),
        ({"plain": False}, "no port is open"),
        ({"client_certificates": "maybe"}, "tls.client_certificates"),
    ],
)
def test_settings_that_contradict_each_other(tls, words):
    with pytest.raises(SettingsError, match=words):
        load_settings(environment={}, overrides={"tls": tls})


@pytest.mark.slow
def test_a_served_node_with_tls(serve, authority, tharsis, make_file, dcmtk):
    """`tharsis serve` tells both ports, and `send`, `find` and `similar` reach it with --tls."""
    node = serve()
    node.end()
    told = _told(authority, client_certificates="optional")
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in told.items()]  # JSON's words for these are TOML's
    node.config.write_text(node.config.read_text() + "[tls]\n" + "".join(lines))
    node.start()
    state = node.state()
    assert state["port"] == node.port
    assert state["tls_port"] not in (0, node.port)
    peer = ["--peer", f"THARSIS@localhost:{state['tls_port']}"]
    ca = ["--tls-ca", authority.ca]
    own = ["--tls-cert", authority.folder / "modality.pem", "--tls-key", authority.folder / "modality.key"]
    sent = tharsis("send", make_file(1), *peer, *ca, *own)
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert "certificate CN=modality" in node.log()
    found = tharsis("find", "PatientID=P1", *peer, *ca, "--json")
    assert STUDY in found.stdout
    refused = tharsis("find", *peer, "--tls")
    assert refused.returncode != 0
    assert "its TLS certificate is not accepted" in refused.stdout + refused.stderr
    dcmtk("echoscu", "-aec", "THARSIS", "+tla", "+cf", authority.ca, "localhost", state["tls_port"])
    assert "Traceback" not in node.log()


@pytest.mark.slow
def test_serve_says_in_one_sentence_why_it_cannot_use_tls(tharsis, authority, tmp_path):
    config = tmp_path / "tharsis.toml"
    config.write_text(
        f'[scp]\nport = 0\n[archive]\ndata = "{tmp_path / "data"}"\n'
        f'[tls]\nenabled = true\nport = 0\ncertificate = "{authority.folder / "expired.pem"}"\n'
        f'key = "{authority.folder / "expired.key"}"\n'
    )
    ended = tharsis("serve", "--config", config)
    assert ended.returncode != 0
    assert "expired.pem cannot be used: certificate has expired" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
