"""status: the daemon's snapshot as tables, in whole or for one name.

It reads the snapshot as plain JSON: `hactl status` is run in loops, so it imports little.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from hactl.cli.ask import UNASKABLE, Reply
from hactl.core.units import span
from hactl.show import paint, safe, table

HEAD = ("SERVICE", "TABLE", "NODE", "STATE", "FOR", "WANT", "CHECKS", "REASON")
NEAR = 0.8  # of the sockets that hactld may open
NAGIOS = {"ok": 0, "warn": 1, "fail": 2, "unknown": 3}


class Status:
    """A snapshot narrowed to *name*; *code* is hactl's exit code for it."""

    def __init__(self, data: Any, name: str | None) -> None:
        self.whole = data
        self.blind: str = data["relayd"]
        services = data["services"]
        if name is not None:
            services = [
                service | {"members": members}
                for service in services
                if (members := [m for m in service["members"] if _speaks(name, m)])
                or service["name"] == name
            ]
        self.name = name
        self.data = data | {"services": services}
        self.probes = [p for p in data["probes"] if name is None or p["node"] == name]
        if name is not None:
            self.data["probes"] = [p for p in data["probes"] if self._used(p)] or self.probes

    def _used(self, probe: Any) -> bool:
        key = f"{probe['node']}/{probe['check']}@{probe['address']}"
        return any(key in m["probes"] for s in self.data["services"] for m in s["members"])

    @property
    def code(self) -> int:
        """0 all is as wanted; 1 something is not, or has no such name; 3 relayd is not seen."""
        if self.blind:
            return UNASKABLE
        services = self.data["services"]
        if not services:
            ups = [p["state"] == "up" for p in self.probes]
            return 0 if (self.name is None or ups) and all(ups) else 1
        members = [m for service in services for m in service["members"]]
        complete = all(service["members"] for service in services)
        return 0 if complete and all(m["as_wanted"] for m in members) else 1

    def stranger(self, name: str) -> str:
        """Say that nothing has *name*, and what does."""
        nodes = {p["node"] for p in self.whole["probes"]}
        known = [s["name"] for s in self.whole["services"]] + sorted(nodes)
        return f"no node or service {name!r}; there are {', '.join(known) or 'none yet'}"

    def lines(self) -> Iterable[str]:
        """Yield the page: members, watched nodes, overrides, alerts."""
        services = self.data["services"]
        if not services and not self.probes and self.name is not None:
            yield safe(self.stranger(self.name))
            return
        rows: list[tuple[str, ...]] = []
        colours: list[str] = []
        for service in services:
            if not service["members"]:
                rows.append(
                    (service["name"], "-", "-", "unknown", "-", "-", "-", service["status"])
                )
                colours.append("red")
            for member in service["members"]:
                rows.append(_row(member))
                colours.append(_colour(member))
        yield from table(HEAD, rows, colours)
        yield from self._watched()
        if self.data["overrides"]:
            yield ""
            for o in self.data["overrides"]:
                until = _clock(o["until"]) if o["until"] else "resumed"
                why = f" ({o['reason']})" if o["reason"] else ""
                text = f"{o['kind']} {o['target']}: {o['who']}{why}, since {_clock(o['since'])}"
                yield safe(f"{text}, until {until}")
        if alerts := [*self.data["alerts"], *self._sockets()]:
            yield ""
            for alert in alerts:
                yield paint(safe(f"! {alert}"), "red")

    def _sockets(self) -> Iterable[str]:
        """Say how many sockets hactld has open when that comes near to what it may, or did."""
        counts = self.data["counts"]
        used, cap, capped = counts["open"], counts["cap"], counts["capped"]
        if capped:
            yield f"{used} of at most {cap} sockets are open; {capped} times there was none left"
        elif used >= NEAR * cap:
            yield f"{used} of at most {cap} sockets are open"

    def _watched(self) -> Iterable[str]:
        """Yield the probes that no member's removal depends on."""
        used = {k for s in self.whole["services"] for m in s["members"] for k in m["probes"]}
        rows = [
            (p["node"], p["check"], p["state"], span(p["for_seconds"]), p["newest_reason"])
            for p in self.data["probes"]
            if f"{p['node']}/{p['check']}@{p['address']}" not in used
        ]
        if rows:
            yield ""
            yield from table(("WATCHED", "CHECK", "STATE", "FOR", "NEWEST"), rows)


def _speaks(name: str, member: Any) -> bool:
    service, node, host = member["service"], member["node"], member["host"]
    return name in (service, node, host, f"{service}/{node}", f"{service}/{host}")


def _row(m: Any) -> tuple[str, ...]:
    state = m["relayd"]
    if state == "up" and not m["serving"]:
        state = "ready" if m["role"] == "backup" else "up, not in pf"
    if m["mark"]:  # forced; relayd's own word stays while it says something else
        state = m["mark"] + "!" if state == "disabled" else f"{state}, {m['mark']}!"
    want = m["would"] or m["want"]
    off = m["relayd"] == "disabled" or (m["barred"] and m["relayd"] != "up")
    if off == (m["want"] == "in") and m["want"] != "leave" and not m["would"]:
        want += ".."
    reason = m["reason"]
    waits = [
        link["text"] for link in m["chain"] if link["rule"] in ("guard", "dwell", "hook", "pf")
    ]
    reason = "; ".join(text for text in (reason, *waits) if text)
    return (
        m["service"],
        m["table"],
        m["node"] or m["host"],
        state,
        span(m["for_seconds"]),
        want,
        f"{m['passing']}/{m['required']}",
        reason,
    )


def _colour(m: Any) -> str:
    if m["mark"]:
        return "yellow"
    return "" if m["as_wanted"] else "red"


def _clock(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def looks(found: Any) -> Iterable[str]:
    """Yield each look with its steps and their times."""
    for look in found:
        node, check, address = look["probe"]
        result = look["result"]
        took = look["ended"] - look["started"]
        head = f"{node}/{check} at {address}: {result['verdict']} in {took * 1000:.1f} ms"
        yield paint(safe(f"{head}: {result['reason']}"), "" if result["verdict"] == "ok" else "red")
        for step, seconds in result["steps"]:
            yield safe(f"    {step:<12} {seconds * 1000:9.1f} ms")
        if result["verdict"] in ("fail", "unknown") and result["step"]:
            yield safe(f"    {result['step']:<12}   stopped here")
        times = {f"{step}_seconds" for step, _ in result["steps"]} | {"total_seconds"}
        for name, value in result["measures"].items():
            if name not in times:
                yield safe(f"    {name:<20} {value:g}")


def nagios_line(reply: Reply) -> tuple[str, int]:
    """Return the line and the exit code of a monitoring plugin: 0 ok, 1 warning, 2 critical."""
    if reply.code:
        return f"UNKNOWN: {reply.text}", 3
    grades = {NAGIOS[look["result"]["verdict"]] for look in reply.data}
    code = next(grade for grade in (2, 1, 3, 0) if grade in grades)  # the gravest first
    word = ("OK", "WARNING", "CRITICAL", "UNKNOWN")[code]
    texts = "; ".join(
        f"{look['probe'][1]} {look['result']['verdict']}: {look['result']['reason']}"
        for look in reply.data
    )
    figures = " ".join(
        f"{look['probe'][1]}={look['ended'] - look['started']:.4f}s" for look in reply.data
    )
    # what stands behind a bar is figures to monitoring
    return f"{word}: {texts.replace('|', '/')} | {figures}", code
