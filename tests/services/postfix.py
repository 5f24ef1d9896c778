"""Postfix in directories of its own, unpacked and not installed (see install)."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from checks.smtp import Smtp
from hactl.core.units import Secret
from tests.services.opensmtpd import certificates, logins
from tests.services.servers import HOST, Server, free_port, need

UNPACKED = Path("/usr/local/lib/hactl-tests/postfix")
LIBRARIES = UNPACKED / "usr/lib/postfix"

MAIN = """\
compatibility_level = 3.6
maillog_file = {directory}/log
maillog_file_prefixes = {directory}
queue_directory = {directory}/spool
data_directory = {directory}/lib
daemon_directory = {libraries}/sbin
command_directory = {unpacked}/usr/sbin
shlib_directory = {libraries}
meta_directory = {directory}
import_environment = MAIL_CONFIG={directory} LD_LIBRARY_PATH={libraries} POSTLOG_SERVICE
mail_owner = postfix
max_use = 1000000
setgid_group = postdrop
inet_interfaces = loopback-only
inet_protocols = ipv4
myhostname = mx0.example.org
mydestination = example.org
mynetworks = 127.0.0.0/8
smtpd_client_event_limit_exceptions =
smtpd_client_connection_count_limit = 10
smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination
smtpd_tls_chain_files = {directory}/good.key, {directory}/good.pem
smtpd_tls_security_level = may
alias_maps =
local_recipient_maps = inline:{{probe=probe}}
local_transport = {local}
transport_maps = inline:{{dead.test=smtp:[127.0.0.99]:2599}}
relay_domains = dead.test
virtual_mailbox_base = {directory}/mail
virtual_mailbox_domains =
"""
# As it is shipped, without chroot, and on other ports.
MASTER = """\
{host}:{smtp} inet n - n - 20 smtpd
{host}:{smtps} inet n - n - 20 smtpd -o smtpd_tls_wrappermode=yes
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
SPOOL = "active bounce corrupt defer deferred flush hold incoming private saved trace maildrop public pid"


class Postfix(NamedTuple):
    """Postfix: how to look at it, its authority, and a program that tells of its queue."""

    server: Server
    check: Smtp
    smtps: int
    ca: Path
    login: Secret
    postqueue: Path


def run(directory: Path, local: str = "discard:") -> Iterator[Postfix]:
    """Run Postfix; it takes mail for probe@example.org, and never gets rid of that for dead.test."""
    need("setsid")
    if not (LIBRARIES / "sbin" / "master").exists():
        pytest.skip("no postfix here: run tests/services/install")
    ca = certificates(directory)
    login, _ = logins(directory)
    owner = pwd.getpwnam("postfix").pw_uid
    drop = grp.getgrnam("postdrop").gr_gid
    (directory / "lib").mkdir()
    shutil.chown(directory / "lib", "postfix")
    spool = directory / "spool"
    for name in SPOOL.split():
        path = spool / name
        path.mkdir(parents=True)
        group = drop if name in ("maildrop", "public") else -1
        os.chown(path, 0 if name == "pid" else owner, group)
        path.chmod({"maildrop": 0o730, "public": 0o710, "pid": 0o755}.get(name, 0o700))
    check = Smtp(port=free_port(), depth="rcpt", mail_to="probe@example.org")
    smtps = free_port()
    (directory / "main.cf").write_text(
        MAIN.format(directory=directory, libraries=LIBRARIES, unpacked=UNPACKED, local=local)
    )
    (directory / "master.cf").write_text(MASTER.format(host=HOST, smtp=check.port, smtps=smtps))
    command = ["setsid", str(LIBRARIES / "sbin" / "master"), "-d", "-c", str(directory)]
    server = Server(command, directory, check, {"LD_LIBRARY_PATH": str(LIBRARIES)})
    postqueue = directory / "postqueue"
    postqueue.write_text(
        f"#!/bin/sh\nLD_LIBRARY_PATH={LIBRARIES} exec {UNPACKED}/usr/sbin/postqueue"
        f' -c {directory} "$@"\n'
    )
    postqueue.chmod(0o755)
    try:
        yield Postfix(server, check, smtps, ca, login, postqueue)
    finally:
        server.stop()
