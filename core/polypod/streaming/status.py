"""How a command's end is told on the error stream.

Spec:
    k8s.io/apimachinery ``metav1.Status``; client-go ``remotecommand`` reads reason ``NonZeroExitCode``
    and the cause ``ExitCode``.
"""

from __future__ import annotations

import json
from typing import Any


def exited(code: int | None, *, as_json: bool) -> bytes:
    """Return what tells an exit code; None is one that nobody knows.

    In words (before version 4) success is told by saying nothing.
    """
    if code is None:
        return failed("its exit code is not known", as_json=as_json)
    if code == 0:
        return _encoded({"status": "Success"}) if as_json else b""
    text = f"command terminated with non-zero exit code: {code}"
    if not as_json:
        return text.encode()
    return _encoded(
        {
            "status": "Failure",
            "message": text,
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
        }
    )


def failed(text: str, *, as_json: bool) -> bytes:
    """Return what tells that a command could not be run, or its end not be learnt."""
    if not as_json:
        return text.encode()
    return _encoded(
        {
            "status": "Failure",
            "message": f"Internal error occurred: {text}",
            "reason": "InternalError",
            "details": {"causes": [{"message": text}]},
            "code": 500,
        }
    )


def _encoded(status: dict[str, Any]) -> bytes:
    return json.dumps({"metadata": {}, **status}).encode()


def read(data: bytes) -> tuple[int, str]:
    """Return (exit code, message) of what a server told: the other direction, for clients.

    A failure without a code is 1; so is what is no status at all.
    """
    if not data:
        return 0, ""
    try:
        status = json.loads(data)
        if status["status"] == "Success":
            return 0, ""
        message = str(status.get("message", ""))
        for cause in status.get("details", {}).get("causes", ()):
            if cause.get("reason") == "ExitCode":
                return int(cause["message"]), message
    except (ValueError, KeyError, TypeError, AttributeError):
        return 1, data.decode(errors="replace")
    return 1, message
