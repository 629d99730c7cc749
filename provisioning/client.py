"""The operator's side of the registrar's interface."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

from hsm.signer import Signer
from nodeos.core.errors import NodeosError
from nodeos.core.http import Client
from nodeos.core.recovery_request import RecoveryAnswer
from nodeos.core.wire import canonical_json
from provisioning import operator_auth
from provisioning.operator_auth import Asked


class OperatorClient:
    """Signs every request anew, for the registrar that ``client`` pins.

    Methods raise what ``nodeos.core.http.Client.request`` raises.
    """

    def __init__(self, client: Client, signer: Signer) -> None:
        self._client = client
        self._registrar = operator_auth.registrar_id(client.ca)
        self._signer = signer

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = b"" if body is None else canonical_json(body)
        asked = Asked(registrar=self._registrar, method=method, path=path, body=data)
        headers = operator_auth.sign(self._signer, asked, int(time.time()))
        answer = self._client.request(method, path, data or None, headers)
        try:
            value = json.loads(answer)
        except ValueError as error:
            raise NodeosError(f"{self._client.url}{path}: the answer is not JSON") from error
        if not isinstance(value, dict):
            raise NodeosError(f"{self._client.url}{path}: the answer is not an object")
        return value

    def _pages(self, path: str, key: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        after: str | None = ""
        while after is not None:
            wanted = {**query, **({"after": after} if after else {})}
            page = self._call("GET", path + (f"?{urlencode(wanted)}" if wanted else ""))
            yield from page[key]
            after = page["next"]

    def enrolments(self, state: str | None = None) -> list[dict[str, Any]]:
        query = {"state": state} if state else {}
        return list(self._pages("/v1/operator/enrolments", "enrolments", query))

    def enrolment(self, machine: str) -> dict[str, Any]:
        return self._call("GET", f"/v1/operator/enrolments/{quote(machine, safe='')}")

    def approve(self, machine: str, evidence: str) -> dict[str, Any]:
        """``evidence`` is the digest that the operator saw."""
        path = f"/v1/operator/enrolments/{quote(machine, safe='')}/approve"
        return self._call("POST", path, {"evidence": evidence})

    def reject(self, machine: str, reason: str) -> dict[str, Any]:
        path = f"/v1/operator/enrolments/{quote(machine, safe='')}/reject"
        return self._call("POST", path, {"reason": reason})

    def recoveries(self) -> list[dict[str, Any]]:
        """Requests of locked machines that wait for this operator."""
        return list(self._call("GET", "/v1/operator/recoveries")["recoveries"])

    def recovery(self, machine: str) -> dict[str, Any]:
        return self._call("GET", f"/v1/operator/recoveries/{quote(machine, safe='')}")

    def answer_recovery(self, machine: str, answer: RecoveryAnswer) -> dict[str, Any]:
        path = f"/v1/operator/recoveries/{quote(machine, safe='')}/answer"
        return self._call("POST", path, answer.to_json())

    @property
    def registrar(self) -> str:
        """The registrar's id (see ``operator_auth``)."""
        return self._registrar

    def nodes(self) -> list[dict[str, Any]]:
        return list(self._pages("/v1/operator/nodes", "nodes", {}))

    def node(self, name: str) -> dict[str, Any]:
        return self._call("GET", f"/v1/operator/nodes/{quote(name, safe='')}")
