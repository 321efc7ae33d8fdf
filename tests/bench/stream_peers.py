"""Envoy for connections that are no HTTP: a filter that passes bytes on, and the one that reads Thrift."""

from __future__ import annotations

from string import Template
from typing import TYPE_CHECKING

from tests.bench.peers import Launch, Place, configured, envoy_command

if TYPE_CHECKING:
    from tests.bench.thrift_calls import Transport

_CONFIG = Template("""\
static_resources:
  listeners:
  - name: bench
    address: { socket_address: { address: 127.0.0.1, port_value: $port } }
    filter_chains:
    - filters:
      - name: bench
        typed_config:
$filter
  clusters:
  - name: upstream
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: upstream
      endpoints:
      - lb_endpoints:
        - endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: $upstream_port } } }
""")

_TCP = """\
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: bench
          cluster: upstream
"""

_THRIFT = Template("""\
          "@type": type.googleapis.com/envoy.extensions.filters.network.thrift_proxy.v3.ThriftProxy
          stat_prefix: bench
          transport: $transport
          protocol: BINARY
          route_config:
            name: bench
            routes: [{ match: { method_name: "" }, route: { cluster: upstream } }]
          thrift_filters:
          - name: envoy.filters.thrift.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.network.thrift_proxy.router.v3.Router
""")


class EnvoyTcp:
    name = "envoy tcp"

    def launch(self, place: Place) -> Launch:
        config = configured(place, _CONFIG, "envoy.yaml", filter=_TCP)
        return Launch(envoy_command(config), adds_ids=False)


class EnvoyThrift:
    """A route for every method; statistics as they are by default, no access log."""

    name = "envoy thrift"

    def __init__(self, transport: Transport) -> None:
        self._transport = "FRAMED" if transport == "framed" else "UNFRAMED"

    def launch(self, place: Place) -> Launch:
        reads = _THRIFT.substitute(transport=self._transport)
        config = configured(place, _CONFIG, "envoy.yaml", filter=reads)
        return Launch(envoy_command(config), adds_ids=False)
