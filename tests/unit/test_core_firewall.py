"""The ruleset as text, as nftables reads it, and as a kernel applies it in a network namespace."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeos.core.addresses import IpAddress, parse_address, parse_network
from nodeos.core.errors import ToolError, UsageError
from nodeos.core.firewall import MAX_CLIENTS, MAX_NODES, Settings, parse_nodes, render
from nodeos.core.run import find_tool, run

NODES = tuple(parse_address(text) for text in ("2001:db8::2", "192.0.2.1", "2001:db8::1", "10.0.0.1"))
addresses = st.integers(0x2000 << 112, (0x4000 << 112) - 1).map(ipaddress.IPv6Address) | st.integers(
    10 << 24, (127 << 24) - 1
).map(ipaddress.IPv4Address)


def in_namespace(script: str, stdin: str) -> str:
    """Run a shell script in a network of its own, so that this machine's is left alone. $1: nft, $2: Python."""
    unshare = find_tool("unshare", package="util-linux")
    flags = ["--net"] if os.geteuid() == 0 else ["--net", "--map-root-user"]
    nft = find_tool("nft", package="nftables")
    command = [unshare, *flags, "sh", "-ec", script, "sh", nft, sys.executable]
    return run(command, what="nftables", stdin=stdin.encode()).decode()


def test_the_order_and_repetitions_do_not_matter() -> None:
    assert render(NODES) == render(tuple(reversed(NODES)) * 2)
    text = render(NODES)
    assert (
        text.index("10.0.0.1")
        < text.index("192.0.2.1")
        < text.index("2001:db8::1,")
        < text.index("2001:db8::2")
    )


@given(st.lists(addresses, max_size=20))
def test_exactly_the_nodes_are_listed(nodes: list[IpAddress]) -> None:
    listed = [
        line.strip().removesuffix(",") for line in render(nodes).splitlines() if line.startswith("\t\t\t")
    ]
    empty = [line.strip().removesuffix(",") for line in render(()).splitlines() if line.startswith("\t\t\t")]
    expected = sorted(set(nodes), key=lambda node: (node.version, int(node)))
    assert listed == empty + [str(node) for node in expected]


def test_what_is_open_and_the_limits() -> None:
    text = render(NODES)
    for service in ("tcp . 22", "tcp . 2497", "tcp . 4100", "tcp . 8080", "udp . 4100"):
        assert f"\t\t\t{service}" in text
    assert text.count(" . 4100") == 2
    for family, suffix in (("ip", "4"), ("ip6", "6")):
        assert f"ct state new {family} saddr @nodes{suffix} meta l4proto . th dport @services" in text
        assert (
            f"update @nodes{suffix}_new {{ {family} saddr limit rate 1000/minute burst 500 packets }}" in text
        )
        assert f"add @nodes{suffix}_connections {{ {family} saddr ct count 1000 }} accept" in text
    assert "hook input priority filter; policy drop;" in text
    assert "hook forward priority filter; policy drop;" in text
    assert "hook output priority filter; policy accept;" in text


def test_own_settings() -> None:
    text = render(
        NODES, Settings(tcp_ports=(443, 22, 22), udp_ports=(), connections=7, new_per_minute=8, burst=9)
    )
    assert "elements = {\n\t\t\ttcp . 22,\n\t\t\ttcp . 443\n\t\t}" in text
    assert "limit rate 8/minute burst 9 packets" in text
    assert "ct count 7 }" in text


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_no_port(port: int) -> None:
    with pytest.raises(UsageError, match="no port"):
        Settings(tcp_ports=(port,))
    with pytest.raises(UsageError, match="no port"):
        Settings(udp_ports=(port,))
    with pytest.raises(UsageError, match="no port"):
        Settings(client_port=port)


def test_settings_without_a_port_are_refused() -> None:
    with pytest.raises(UsageError, match="no port is given"):
        Settings(tcp_ports=(), udp_ports=())


@pytest.mark.parametrize("number", [0, -1, 1 << 31])
def test_no_limit(number: int) -> None:
    with pytest.raises(UsageError, match=r"connections: .* no limit"):
        Settings(connections=number)
    with pytest.raises(UsageError, match=r"new_per_minute: .* no limit"):
        Settings(new_per_minute=number)
    with pytest.raises(UsageError, match=r"burst: .* no limit"):
        Settings(burst=number)


@pytest.mark.parametrize("text", ["ff02::1", "::1", "255.255.255.255", "2001:db8::1%x } accept"])
def test_render_refuses_what_is_not_unicast(text: str) -> None:
    with pytest.raises(UsageError, match="no unicast address"):
        render((*NODES, ipaddress.ip_address(text)))


def test_more_nodes_than_can_be_counted_are_refused() -> None:
    base = 10 << 24
    with pytest.raises(UsageError, match=f"{MAX_NODES + 1} addresses"):
        render(ipaddress.IPv4Address(base + number) for number in range(MAX_NODES + 1))


def test_a_list_of_nodes() -> None:
    expected = (parse_address("2001:db8::1"), parse_address("192.0.2.1"))
    assert parse_nodes("# registry\r\n\n 2001:db8::1 # zh1\r\n192.0.2.1", "nodes") == expected
    assert parse_nodes(' ["2001:db8::1",\n "192.0.2.1"]\n', "nodes") == expected
    assert parse_nodes("", "nodes") == parse_nodes("# none\n", "nodes") == parse_nodes("[]", "nodes") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2001:db8::1\n# more\nexample.org\n", "nodes: line 3: 'example.org' is no IP address"),
        ("2001:db8::1 2001:db8::2", "nodes: line 1: "),
        ("192.0.2.1\nff02::1", "nodes: line 2: 'ff02::1' is no unicast address"),
        ('["2001:db8::1",\n"192.0.2.1"', "nodes: line 2: not JSON"),
        ("[" * 100_000, "nodes: "),
        ('["2001:db8::1", 7]', r"nodes\[1\]: not a text"),
        ('["2001:db8::1", "::1"]', r"nodes\[1\]: '::1' is no unicast address"),
    ],
)
def test_no_list_of_nodes(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_nodes(text, "nodes")


@given(st.text() | st.text().map("[".__add__))
def test_the_parser_raises_nothing_but_usage_errors(text: str) -> None:
    with contextlib.suppress(UsageError):
        render(parse_nodes(text, "nodes"))


@pytest.mark.parametrize("clients", [(), ("2001:db8::/48", "2001:db8::/32", "10.0.0.0/8", "10.1.0.0/16")])
@pytest.mark.parametrize("nodes", [(), NODES, NODES[:1], NODES[1:2]], ids=["none", "both", "IPv6", "IPv4"])
def test_nftables_reads_it(nodes: tuple[IpAddress, ...], clients: tuple[str, ...]) -> None:
    in_namespace('"$1" --check --file -', render(nodes, clients=[parse_network(text) for text in clients]))


def test_clients_in_any_order_give_the_same_text() -> None:
    clients = [parse_network(text) for text in ("10.1.0.0/16", "2001:db8::/32", "10.0.0.0/8")]
    assert render(NODES, clients=clients) == render(NODES, clients=clients[::-1] * 2)
    assert "10.0.0.0/8" in render((), clients=clients)
    assert "10.1.0.0/16" not in render((), clients=clients), "it is in the other"


def test_wrong_and_too_many_clients_are_refused() -> None:
    with pytest.raises(UsageError, match="more than unicast"):
        render((), clients=[ipaddress.ip_network("0.0.0.0/0")])
    many = (ipaddress.ip_network(f"10.{n >> 8}.{n & 255}.0/24") for n in range(MAX_CLIENTS + 1))
    with pytest.raises(UsageError, match=f"{MAX_CLIENTS + 1} prefixes"):
        render((), clients=many)


def test_nftables_check_fails_for_what_it_can_not_read() -> None:
    with pytest.raises(ToolError, match="Error"):
        in_namespace('"$1" --check --file -', render(NODES).replace("@services", "@nothing"))


def test_loading_it_twice_gives_the_same_and_leaves_other_tables() -> None:
    text = render(NODES)
    out = in_namespace('"$1" add table inet other; "$1" --file -; "$1" list ruleset', text + text)
    assert "table inet other" in out
    assert out.count("table inet nodeos {") == 1
    assert out.count("ct count 1000 } accept") == 4


# Local addresses stand in for nodes: 127.0.0.2 is one, 127.0.0.3 is not. The rule for the loopback interface is
# taken out, so that packets between them meet the rules for packets from outside.
_TRAFFIC = r"""
import fcntl, json, socket, struct
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 0x49))  # SIOCSIFFLAGS: up, loopback, running
kept = []
def listen(port):
    server = socket.socket()
    server.bind(("127.0.0.9", port))
    server.listen(64)
    kept.append(server)
def connect(source, port):
    client = socket.socket()
    client.bind((source, 0))
    client.settimeout(0.4)
    try:
        client.connect(("127.0.0.9", port))
    except TimeoutError:
        client.close()
        return False
    kept.append(client)
    return True
for port in (22, 23, 8080):
    listen(port)
print(json.dumps({
    "node": [connect("127.0.0.2", 22), connect("127.0.0.2", 8080)],
    "other port": connect("127.0.0.2", 23),
    "stranger": connect("127.0.0.3", 22),
    "more": [connect("127.0.0.2", 22) for _ in range(4)],
    "second node": connect("127.0.0.4", 22),
}))
"""


_CLIENTS = ("192.0.2.3", "192.0.2.16/28")


_TRAFFIC6 = r"""
import fcntl, json, socket, struct
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 0x49))
server = socket.create_server(("::1", 4100), family=socket.AF_INET6)
try:
    socket.create_connection(("::1", 4100), timeout=0.4)
    print(json.dumps(True))
except TimeoutError:
    print(json.dumps(False))
"""


def traffic(
    settings: Settings,
    nodes: tuple[str, ...] = ("192.0.2.2", "192.0.2.4"),
    *,
    room: int = MAX_NODES,
    clients: tuple[str, ...] = (),
    script: str = _TRAFFIC,
) -> dict[str, object]:
    """What gets through; the settings say how much may."""
    prefixes = [parse_network(client) for client in clients]
    text = render([parse_address(node) for node in nodes], settings, clients=prefixes)
    text = text.replace("192.0.2.", "127.0.0.")
    assert text.count('\t\tiif "lo" accept\n') == 1
    text = text.replace('\t\tiif "lo" accept\n', "").replace(f"size {MAX_NODES}\n", f"size {room}\n")
    out = in_namespace(f""""$1" --file -; exec "$2" -c '{script}'""", text)
    result = json.loads(out)
    assert isinstance(result, dict)
    return result


def test_a_kernel_lets_nodes_in_and_limits_connections_for_each_source() -> None:
    assert traffic(Settings(connections=4)) == {
        "node": [True, True],
        "other port": False,
        "stranger": False,
        "more": [True, True, False, False],
        "second node": True,
    }


def test_a_kernel_limits_new_connections_for_each_source() -> None:
    found = traffic(Settings(new_per_minute=1, burst=3))
    assert found["node"] == [True, True]
    assert found["more"] == [True, False, False, False]
    assert found["second node"] is True


@pytest.mark.parametrize(("node", "reached"), [("2001:db8::1", True), ("2001:db8::2", False)])
def test_a_kernel_does_so_for_ipv6(node: str, reached: bool) -> None:
    text = render([parse_address(node)]).replace("2001:db8::1", "::1").replace('\t\tiif "lo" accept\n', "")
    out = in_namespace(f""""$1" --file -; exec "$2" -c '{_TRAFFIC6}'""", text)
    assert json.loads(out) == reached


def test_a_kernel_that_can_not_count_a_source_keeps_it_out() -> None:
    found = traffic(Settings(), room=1)
    assert (found["node"], found["more"], found["second node"]) == ([True, True], [True] * 4, False)


_CLIENT_TRAFFIC = (
    _TRAFFIC.partition("print(")[0]
    + """
print(json.dumps({
    "client": [connect("127.0.0.3", 22), connect("127.0.0.3", 8080)],
    "of a prefix": [connect("127.0.0.31", 22), connect("127.0.0.31", 8080)],
    "beside it": connect("127.0.0.32", 8080),
    "more": [connect("127.0.0.3", 8080) for _ in range(3)],
    "node": [connect("127.0.0.2", 22), connect("127.0.0.2", 8080)],
}))
"""
)


def test_a_kernel_lets_clients_reach_the_replica_alone_and_limits_each() -> None:
    found = traffic(Settings(connections=3), clients=_CLIENTS, script=_CLIENT_TRAFFIC)
    assert found == {
        "client": [False, True],
        "of a prefix": [False, True],
        "beside it": False,
        "more": [True, True, False],
        "node": [True, True],
    }


def test_a_kernel_limits_new_connections_of_each_client() -> None:
    found = traffic(Settings(new_per_minute=1, burst=2), clients=_CLIENTS, script=_CLIENT_TRAFFIC)
    assert (found["client"], found["more"]) == ([False, True], [True, False, False])
    assert found["of a prefix"] == [False, True]


def test_clients_take_no_room_from_nodes() -> None:
    found = traffic(Settings(), clients=_CLIENTS, room=1, script=_CLIENT_TRAFFIC)
    assert (found["client"], found["of a prefix"]) == ([False, True], [False, False])
    assert found["node"] == [True, True]


def test_a_kernel_lets_nobody_in_without_nodes() -> None:
    assert traffic(Settings(), nodes=()) == {
        "node": [False, False],
        "other port": False,
        "stranger": False,
        "more": [False] * 4,
        "second node": False,
    }
