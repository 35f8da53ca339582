"""What plugins are told of a pod: ``CNI_ARGS``, and the arguments of the capabilities they ask for.

Spec:
    containernetworking/cni CONVENTIONS.md (capabilities, CNI_ARGS); the names of ``CNI_ARGS`` and the
    annotations are Kubernetes' own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_network

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.network import AttachRequest

BANDWIDTH = ("kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth")
_BURST = (1 << 31) - 1
"""Bits: the pod's annotations give a rate only, and a burst of 0 would let nothing through."""
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([kKMGTPE]i?|m|)")
_SCALES = {
    "": 1.0,
    "m": 1e-3,
    "k": 1e3,
    "K": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "E": 1e18,
}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_SMALLEST_RATE, _LARGEST_RATE = 1_000, 10**15
"""Bits per second that Kubernetes accepts."""


def cni_args(request: AttachRequest) -> str:
    """Return ``CNI_ARGS``.

    Raises:
        InvalidArgument: a name of the pod would be read as a further argument.
    """
    pod = request.metadata
    pairs = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": pod.namespace,
        "K8S_POD_NAME": pod.name,
        "K8S_POD_INFRA_CONTAINER_ID": request.sandbox_id,
        "K8S_POD_UID": pod.uid,
    }
    for key, value in pairs.items():
        if set(value) & {";", "=", "\0", "\n"}:
            raise InvalidArgument(
                f"sandbox {request.sandbox_id}: {key} {value!r} may not contain ';', '=', NUL, newline"
            )
    return ";".join(f"{key}={value}" for key, value in pairs.items())


def capability_arguments(
    request: AttachRequest, pod_cidrs: Sequence[str] = ()
) -> dict[str, object]:
    """Return the arguments of every capability that this pod has something for.

    Raises:
        InvalidArgument: a bandwidth is no quantity, or out of range.
    """
    found: dict[str, object] = {"aliases": [request.metadata.name]}
    ports = [
        {
            "hostPort": each.host_port,
            "containerPort": each.container_port,
            "protocol": each.protocol.name.lower(),
            "hostIP": each.host_ip,
        }
        for each in request.port_mappings
        if each.host_port
    ]
    if ports:
        found["portMappings"] = ports
    bandwidth = _bandwidth(request.annotations)
    if bandwidth:
        found["bandwidth"] = bandwidth
    if pod_cidrs:
        found["ipRanges"] = [[{"subnet": each}] for each in pod_cidrs]
    if request.annotations:
        found["io.kubernetes.cri.pod-annotations"] = dict(request.annotations)
    return found


def check_cidrs(pod_cidrs: Sequence[str]) -> tuple[str, ...]:
    """Return a node's pod CIDRs in their plain form.

    Raises:
        InvalidArgument: one is none.
    """
    try:
        return tuple(str(ip_network(each)) for each in pod_cidrs if each)
    except ValueError as error:
        raise InvalidArgument(f"pod CIDRs {list(pod_cidrs)}: {error}") from error


def _bandwidth(annotations: Mapping[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, prefix in zip(BANDWIDTH, ("ingress", "egress"), strict=True):
        if name in annotations:
            found[f"{prefix}Rate"] = _rate(name, annotations[name])
            found[f"{prefix}Burst"] = _BURST
    return found


def _rate(name: str, text: str) -> int:
    """Read a Kubernetes quantity of bits per second."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f"annotation {name}: {text!r} is no quantity such as 10M")
    number, suffix = float(match[1]), match[2]
    if suffix in _BINARY:
        rate = number * (1 << _BINARY[suffix])
    elif suffix in _SCALES:
        rate = number * _SCALES[suffix]
    else:
        raise InvalidArgument(f"annotation {name}: {text!r}: unknown unit {suffix!r}")
    if not _SMALLEST_RATE <= rate <= _LARGEST_RATE:
        raise InvalidArgument(f"annotation {name}: {text!r} is not between 1k and 1P")
    return int(rate)
