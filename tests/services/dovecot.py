"""Dovecot with IMAP, POP3, ManageSieve and LMTP, in directories of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from checks.imap import Imap
from checks.lmtp import Lmtp
from checks.pop3 import Pop3
from checks.sieve import Sieve
from hactl.core.units import Secret
from tests.services.opensmtpd import NAME, certificates, logins
from tests.services.servers import HOST, Server, free_port, need

CONF = """\
base_dir = {directory}/run
state_dir = {directory}/state
instance_name = {directory}
log_path = /dev/stderr
protocols = imap pop3 sieve lmtp
listen = {host}
ssl = required
ssl_cert = <{directory}/good.pem
ssl_key = <{directory}/good.key
mail_location = maildir:{mail}/%u:INDEX={directory}/index/%u
first_valid_uid = 1
mail_max_userip_connections = 100
auth_verbose = yes
passdb {{
  driver = passwd-file
  args = {directory}/users
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={mail}/%u allow_all_users=no
}}
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = {imaps}
  }}
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = {pop3s}
  }}
}}
service managesieve-login {{
  inet_listener sieve {{
    port = {sieve}
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    address = {host}
    port = {lmtp}
  }}
}}
"""
NAMES = ("imap", "imaps", "pop3", "pop3s", "sieve", "lmtp")


class Dovecot(NamedTuple):
    """Dovecot: its checks by what they look at, the user's mailbox, and a wrong login."""

    server: Server
    checks: dict[str, Imap | Pop3 | Sieve | Lmtp]
    mailbox: Path
    wrong: Secret


def run(
    directory: Path, host: str = HOST, mail: Path | None = None, imap_port: int = 0
) -> Iterator[Dovecot]:
    """Run Dovecot with the user probe, password secret; mailboxes are in *mail*."""
    need("dovecot")
    ca = certificates(directory)
    login, wrong = logins(directory)
    mail = mail or directory / "mail"
    for path in (directory / "run", directory / "state", directory / "index", mail):
        path.mkdir(exist_ok=True)
    for path in (directory / "index", mail):
        path.chmod(0o777)
    (directory / "users").write_text("probe:{PLAIN}secret::::::\n")
    ports = {name: free_port() for name in NAMES} | ({"imap": imap_port} if imap_port else {})
    conf = directory / "dovecot.conf"
    conf.write_text(CONF.format(directory=directory, host=host, mail=mail, **ports))
    imap = Imap(port=ports["imap"], tls="starttls", name=NAME, ca=ca, login=login)
    pop3 = Pop3(port=ports["pop3"], tls="starttls", name=NAME, ca=ca, login=login)
    checks: dict[str, Imap | Pop3 | Sieve | Lmtp] = {
        "imap": imap,
        "imaps": structs.replace(imap, port=ports["imaps"], tls="implicit"),
        "pop3": pop3,
        "pop3s": structs.replace(pop3, port=ports["pop3s"], tls="implicit"),
        "sieve": Sieve(port=ports["sieve"], tls="starttls", name=NAME, ca=ca, login=login),
        "lmtp": Lmtp(port=ports["lmtp"], depth="rcpt", mail_to="probe"),
    }
    server = Server(["dovecot", "-F", "-c", str(conf)], directory, imap, host=host)
    try:
        yield Dovecot(server, checks, mail / "probe", wrong)
    finally:
        server.stop()
