"""plan: turns hactl.yaml and relayd.conf into what the core decides with."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from hactl.config import Check, Config, Service
from hactl.core.model import Facts, NodePlan, Plan, Rule, ServicePlan
from hactl.core.units import Share
from hactl.relayd.conf import RelaydConf

NO_CONF = Facts()  # relayd.conf cannot be read


def plan(config: Config) -> Plan:
    """Return all of the configuration that decisions depend on."""
    return Plan(
        nodes={
            name: NodePlan(
                name,
                node.addresses,
                frozenset({name, *node.relayd, *node.addresses, *map(_canonical, node.addresses)}),
                node.weight,
            )
            for name, node in config.nodes.items()
        },
        rules={name: _rule(check) for name, check in config.checks.items()},
        services={name: _service(name, service) for name, service in config.services.items()},
        watch=config.watch,
        at={name: check.at for name, check in config.checks.items() if check.at is not None},
        causes=config.shared_fate,
        clear_sources=config.relayd.clear_sources,
        kill_states=config.relayd.kill_states,
    )


def _canonical(address: str) -> str:
    try:
        return str(ip_address(address))
    except ValueError:
        return address


def _rule(check: Check) -> Rule:
    return Rule(
        check.interval,
        check.timeout,
        check.fast_interval,
        check.fall,
        check.rise,
        check.down_count,
        check.wipe_count,
        check.hedge,
        check.limits,
        what=f"{check.option} at {check.at}",
    )


def _service(name: str, service: Service) -> ServicePlan:
    least, share = 1, 0.3
    if isinstance(service.min_serving, Share):
        share = float(service.min_serving)
    elif service.min_serving is not None:
        least, share = service.min_serving, 0.0
    return ServicePlan(
        name,
        require=service.require,
        prefer=service.prefer,
        watch=service.watch,
        acts=service.mode != "observe",
        hook=service.mode == "hook",
        least=least,
        share=share,
        open=service.floor == "open",
        prefer_share=service.prefer_serving,
        pace_share=service.pace[0],
        pace_span=service.pace[1],
        exclusive=service.exclusive,
        failback=service.failback == "auto",
        window=service.window,
        grace=service.grace,
        release=service.on_exit == "release",
    )


def facts(conf: RelaydConf) -> Facts:
    """Return what relayd.conf says that `show` does not."""
    tables = [
        (service.name, position, table)
        for service in conf.services
        for position, table in enumerate(service.tables)
    ]
    return Facts(
        conf.interval,
        max((table.timeout for _, _, table in tables), default=conf.timeout),
        frozenset((name, position) for name, position, table in tables if table.check is not None),
    )


def mismatches(config: Config, conf: RelaydConf) -> Iterable[str]:
    """Say where hactl.yaml and relayd.conf do not speak of the same things."""
    known = {service.name: service for service in conf.services}
    words = {word: node.name for node in plan(config).nodes.values() for word in node.words}
    for name in config.services:
        if name not in known:
            yield f"service {name}: relayd.conf has no redirect or relay of that name"
            continue
        hook = config.services[name].mode == "hook"
        for table in known[name].tables:
            if hook and (table.check != "script" or Path(table.argument.path).name != name):
                yield (
                    f"service {name}: mode hook, but relayd.conf has no check script "
                    f'".../{name}" for table {table.name}: the verdicts reach nobody'
                )
            for host in table.hosts:
                if host.name not in words:
                    yield f"service {name}: host {host.name} of table {table.name} is no node"
    used = {words.get(h.name) for s in known.values() for t in s.tables for h in t.hosts}
    for node in config.nodes.keys() - used - config.watch.keys():
        yield f"node {node}: in no table of relayd.conf, and not watched"
