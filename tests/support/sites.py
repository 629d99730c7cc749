"""A site configuration for tests."""

from __future__ import annotations

from nodeos.core.principal import Principal
from nodeos.core.site import Network, SiteConfig
from tests.support import evidence

SITE = SiteConfig(
    data_center="zh1",
    registrar_url="https://registrar.example.org:8443",
    registrar_ca="-----BEGIN CERTIFICATE-----\n",
    operator=Principal.parse("2vxsx-fae"),
    operator_key=evidence.spki(evidence.RECOVERY),
    node_reward_type="type1",
    network=Network(addresses=("2001:db8::2/64",), gateways=("2001:db8::1",), dns=("2001:db8::53",)),
)
