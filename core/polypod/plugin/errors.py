"""What can go wrong, by meaning. A backend raises these (or ``OSError``); nobody else names gRPC codes.

::

    PolypodError
    ├── InvalidArgument      the request itself is wrong                     INVALID_ARGUMENT
    ├── NotFound             no such sandbox, container, image, handler      NOT_FOUND
    ├── AlreadyExists        the name is taken by something else             ALREADY_EXISTS
    ├── FailedPrecondition   right request, wrong state                      FAILED_PRECONDITION
    ├── Unsupported          this backend or host cannot do what was asked   FAILED_PRECONDITION
    ├── ResourceExhausted    out of addresses, descriptors, disk, memory     RESOURCE_EXHAUSTED
    ├── Unavailable          not yet ready, or a process of ours is away     UNAVAILABLE
    ├── Unimplemented        this server does not do that at all             UNIMPLEMENTED
    ├── DeadlineExceeded     a time limit of the request ran out             DEADLINE_EXCEEDED
    └── BackendError         the backend or the host failed                  UNKNOWN

``api/interceptors.py`` is the one place that turns them into codes. The text of an error names the
id, the step, and what to do; ``raise … from`` keeps the cause for the log and the explain record.
"""

from __future__ import annotations


class PolypodError(Exception):
    """Base of all errors with a meaning for a CRI client; never raised itself."""


class InvalidArgument(PolypodError):
    """The request is malformed or contradicts itself; sending it again will not help."""


class NotFound(PolypodError):
    """The object does not exist. The kubelet skips these on status calls."""


class AlreadyExists(PolypodError):
    """Another object holds the name."""


class FailedPrecondition(PolypodError):
    """The object is in a state that does not allow the call."""


class Unsupported(PolypodError):
    """The chosen backend, or this host, cannot do what was asked; refused before anything is made."""


class ResourceExhausted(PolypodError):
    """No addresses, descriptors, disk space or memory are left."""


class Unavailable(PolypodError):
    """The server is starting, recovering or has lost one of its processes; try again."""


class Unimplemented(PolypodError):
    """The server does not implement the call."""


class DeadlineExceeded(PolypodError):
    """A time limit that the request itself named ran out (ExecSync)."""


class BackendError(PolypodError):
    """The backend failed. Always raised ``from`` its cause where there is one."""
