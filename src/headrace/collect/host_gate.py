"""The gate of a port that asks for no tokens because only this machine is to read it."""

from __future__ import annotations

from headrace.collect.exchange import Request
from headrace.collect.gate import OpenGate
from headrace.control.hosts import Hosts
from headrace.control.tokens import APPEND


class HostGate(OpenGate):
    """Lets everyone in who appends, and who reads by a name of ours; see `control/hosts.py`."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def admit(self, request: Request, scope: str) -> str:
        """See `Gate`; raises `Invalid` with code `misdirected`."""
        if not scope.startswith(APPEND):
            self._hosts.check(request.headers.get("host"))
        return super().admit(request, scope)
