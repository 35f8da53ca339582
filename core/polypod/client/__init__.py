"""A CRI v1 client: public, thin, typed. The command line, the tests and the benchmarks use it.

::

    async with CriClient("unix:///run/polypod/polypod.sock") as cri:
        print((await cri.version()).runtime_name)

It speaks to every CRI server, not only to polypod. ``pb`` has the messages of the protocol.
"""

from polypod.client.client import CriClient
from polypod.client.errors import CriError
from polypod.client.messages import as_dict, pb

__all__ = ["CriClient", "CriError", "as_dict", "pb"]
