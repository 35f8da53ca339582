"""A5: where the server listens, and TLS with and without certificates of clients."""

import shutil
import ssl
import subprocess

import pytest

from polypod.plugin.errors import FailedPrecondition, InvalidArgument
from polypod.streaming import dialing
from polypod.streaming.errors import Gone
from polypod.streaming.server import Settings, StreamingServer, settings

needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


def made(address, *, cert="", key="", client_ca="", idle_s=1.0):
    return settings(address, cert=cert, key=key, client_ca=client_ca, idle_s=idle_s)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("127.0.0.1:0", "127.0.0.1", 0), ("[::1]:4000", "::1", 4000), ("localhost:1", "localhost", 1)],
)
def test_a5_the_loopback_needs_nothing(address, host, port):
    assert made(address) == Settings(host, port, None, 1.0)


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1", ":80", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", "a:-1"]
)
def test_addresses_that_are_none(address):
    with pytest.raises(InvalidArgument, match=r"streaming\.address"):
        made(address)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.0.0.1:80", "node.example:80"])
def test_a5_elsewhere_only_with_certificates(address):
    with pytest.raises(InvalidArgument, match="others can reach it"):
        made(address)


@pytest.mark.parametrize(
    "given",
    [{"cert": "c"}, {"key": "k"}, {"client_ca": "a"}, {"idle_s": 0.0}],
    ids=lambda given: next(iter(given)),
)
def test_halves_are_refused(given):
    with pytest.raises(InvalidArgument):
        made("127.0.0.1:0", **given)


def test_a_certificate_that_cannot_be_read(tmp_path):
    with pytest.raises(FailedPrecondition, match="No such file"):
        made("127.0.0.1:0", cert=f"{tmp_path}/c", key=f"{tmp_path}/k")


async def test_an_address_that_cannot_be_had():
    server = StreamingServer(made("127.0.0.1:0"))
    await server.start()
    port = int(server.forward(None).split(":")[2].partition("/")[0])
    with pytest.raises(FailedPrecondition, match="cannot listen"):
        await StreamingServer(Settings("127.0.0.1", port)).start()
    await server.stop()


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """A certificate for the loopback that is its own CA."""
    place = tmp_path_factory.mktemp("pki")
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-keyout {place}/key -out {place}/cert -subj /CN=streams "
        f"-addext subjectAltName=IP:127.0.0.1".split(),
        check=True,
        capture_output=True,
    )
    return {"cert": f"{place}/cert", "key": f"{place}/key"}


def client_tls(pki, *, known):
    """A client's side; one that is known shows the same certificate."""
    context = ssl.create_default_context(cafile=pki["cert"])
    if known:
        context.load_cert_chain(pki["cert"], pki["key"])
    return context


@needs_openssl
@pytest.mark.parametrize("spdy", [True, False], ids=["spdy", "websocket"])
async def test_tls(pki, plays, spdy):
    server = StreamingServer(made("127.0.0.1:0", **pki, idle_s=60))
    await server.start()
    url = server.exec(plays.Command(plays.echo))
    assert url.startswith("https://127.0.0.1:")
    tls = client_tls(pki, known=False)
    async with dialing.command(url, plays.ALL, spdy=spdy, tls=tls) as client:
        await client.write(bytes(3_000_000))
        client.end_stdin()
        stdout, _stderr, code = await client.output()
    assert (len(stdout), code) == (3_000_000, 0)
    await server.stop()


@needs_openssl
async def test_a5_a_client_without_a_certificate_gets_nothing(pki, plays):
    server = StreamingServer(made("0.0.0.0:0", **pki, client_ca=pki["cert"], idle_s=60))
    await server.start()
    url = server.exec(plays.Command(plays.echo)).replace("0.0.0.0", "127.0.0.1")
    with pytest.raises(Gone):
        async with dialing.command(url, plays.ALL, tls=client_tls(pki, known=False)):
            pass
    async with dialing.command(url, plays.ALL, tls=client_tls(pki, known=True)) as client:
        client.end_stdin()
        assert (await client.result())[0] == 0
    await server.stop()
