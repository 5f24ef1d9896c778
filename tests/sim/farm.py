"""Clusters for tests of the simulator, written as an administrator would."""

from __future__ import annotations

from hactl import config
from hactl.relayd import conf
from hactl.sim.world import Cluster, cluster

NAMES = "ABCDEFGHIJ"


def pair(
    *,
    nodes: str = "AB",
    tables: str = "",
    checks: str = "smtp: {type: smtp}, nfs: {type: smtp}",
    service: str = "require: [smtp, nfs]",
    relayd: str = "",
) -> Cluster:
    """Return a service `mx`, with a backup table where *tables* is `AB|C`."""
    words = (tables or nodes).split("|")
    listed = ", ".join(f"{n}: 10.0.0.{NAMES.index(n) + 1}" for n in nodes)
    text = f"""
mode: relayctl
nodes: {{{listed}}}
checks: {{{checks}}}
services: {{mx: {{{service}}}}}
"""
    forward = [f"forward to <t{n}> check tcp" for n in range(len(words))]
    lines = [relayd, *(f"table <t{n}> {{ {', '.join(w)} }}" for n, w in enumerate(words))]
    lines += ["redirect mx {", "listen on 10.0.1.1 port 25", *forward, "}"]
    return cluster(
        config.parse(text, "hactl.yaml"), conf.parse("\n".join(lines) + "\n", "relayd.conf")
    )
