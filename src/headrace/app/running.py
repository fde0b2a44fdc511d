"""Runs a compiled pipeline in a data directory: what `headrace run` and `headrace demo` do."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from headrace.app import deployment_file
from headrace.app.samples import sampler_of
from headrace.app.site import site_of
from headrace.app.supervisor import ROLES_IN_ORDER, Address, Supervisor
from headrace.collect.door import refuse_taken_port
from headrace.control import certificate
from headrace.control.tokens import any_live
from headrace.model.clock import Clock
from headrace.model.deployment import Deployment
from headrace.model.errors import Invalid
from headrace.model.layout import Layout
from headrace.model.plan import Plan
from headrace.process.backup import COMPLETE
from headrace.process.recover import check_fit


def run_pipeline(
    plan: Plan,
    layout: Layout,
    clock: Clock,
    address: Address,
    *,
    deployment: Deployment | None = None,
    only: Sequence[str] = ROLES_IN_ORDER,
    until_idle: bool = False,
    insecure_bind: bool = False,
    say: Callable[[str], None],
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Run the roles until SIGTERM or SIGINT, or until all is done with `until_idle`.

    `deployment` is where it runs; without, all in the data directory. Raises `Invalid` for an
    address that is taken or public, a certificate that cannot be used, or a plan that cannot go on
    with the tables, `Corrupt` for a log that is not theirs, and whatever ended a role for good.
    """
    deployment = deployment or Deployment()
    http = deployment.http
    address = at_loopback(address, insecure_bind=insecure_bind or http.is_tls)
    if (layout.root / COMPLETE).exists():
        raise Invalid(
            f"{layout.root} is a backup, or a restore of one that broke off",
            hint="Make a data directory of the backup: headrace restore BACKUP --data NEW",
            code="is_backup",
        )
    if unknown := [r for r in only if r not in ROLES_IN_ORDER]:
        raise Invalid(
            f"There is no role {unknown[0]}", hint=f"The roles are {', '.join(ROLES_IN_ORDER)}."
        )
    if "collect" in only or "serve" in only:
        if http.is_tls:
            certificate.check(Path(http.tls_cert), Path(http.tls_key), clock.now_us())
        refuse_taken_port(address.host, address.port)
        if http.redirect_port:
            refuse_taken_port(address.host, http.redirect_port)
    site = site_of(layout, clock, deployment)
    sampler = sampler_of(site, plan.options, clock, say)
    supervisor = Supervisor(plan, layout, clock, address, only=only, say=say, observers=[sampler])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop.set())

    def check() -> None:
        if "process" in only and not site.is_shared:
            # A ledger that a power cut tore must be mended before the log can be held against it.
            # Of a log that is shared another machine may own the tables now.
            site.repair()
        with closing(site.reader()) as log:
            check_fit(plan, log, site.tables())
            if plan.options.tokens and not any_live(log, clock):
                say(f"every path asks for a token, and there is none; {_make_one(layout)}")

        deployment_file.keep(layout, deployment)

    supervisor.run(until_idle=until_idle, check=check, ready=ready)


def _make_one(layout: Layout) -> str:
    return f"make one: headrace tokens create --scope admin --data {layout.root}"


def at_loopback(address: Address, *, insecure_bind: bool) -> Address:
    """Return an address with its name looked up; `Invalid` if other machines reach it.

    With `insecure_bind` they may, and so they may by TLS.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise Invalid(
            f"There is no address {address.host}: {e.strerror}",
            hint="Give --host an address of this machine, as 127.0.0.1.",
            code="unknown_host",
        ) from e
    # IPv4 first: it is what others take `localhost` for too.
    host = str(min(found, key=lambda f: f[0] != socket.AF_INET)[4][0])
    if not ipaddress.ip_address(host).is_loopback and not insecure_bind:
        raise Invalid(
            f"{address.host} can be reached from other machines, and this port has no certificate",
            hint="Give it one with --tls-cert and --tls-key, bind to 127.0.0.1 behind a proxy that "
            "has one, or say --insecure-bind.",
            code="public_bind",
        )
    return Address(host, address.port)


def end_with_input() -> None:
    """Have this process told to stop, by SIGTERM, once its standard input ends.

    Whoever started it holds the other end, and lets go of it however it ends itself.
    """
    descriptor = sys.stdin.fileno()

    def wait() -> None:
        while os.read(descriptor, 1 << 10):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="input", daemon=True).start()
