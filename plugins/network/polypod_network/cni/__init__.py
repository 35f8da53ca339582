"""Networks by CNI: configurations that others wrote, plugins that others wrote, bookkeeping of our own.

Spec:
    containernetworking/cni SPEC.md, versions 0.3.0 to 1.1.0.
"""
