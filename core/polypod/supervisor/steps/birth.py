"""The step into somebody else's pid namespace: the last one, so that nobody in there sees anything unfinished.

Who may trace (CAP_SYS_PTRACE) can take over every process that it sees, whatever that has done to itself. No
process moves to another pid namespace, it must be born in it: so a process that stays outside does all of a
plan, and the one that executes is cloned when it has no right left that the container does not have. Whoever
takes that one over has what it had before (E1, E7).

After the seccomp filter only what the filter allows may be asked of the kernel. What a birth takes is let
through by a key: a random number, see `polypod.supervisor.kernel.birth`.

Spec:
    man pid_namespaces(7), ptrace(2), seccomp(2).
"""

from __future__ import annotations

import base64
import os

from polypod.plan import operations
from polypod.plan.operations import Plan
from polypod.supervisor.kernel import seccomp
from polypod.supervisor.kernel.birth import NUMBERS, Birth
from polypod.supervisor.steps.context import Context


def be_born(plan: Plan, context: Context, *, hold: bool) -> None:
    """Load the filter, give up what that took, go on as a child inside, and wait for the go there.

    Args:
        plan: whose last operation follows.
        context: of the launch; ``granted`` is what the process may have in the end.
        hold: tell the supervisor that everything else is done.
    """
    status, gate = context.keep
    key = int.from_bytes(os.urandom(8), "little")
    birth = Birth(context.birth, status, gate, key)
    if hold:
        os.write(status, b"r")
    for step in plan.operations[-2:]:
        if isinstance(step, operations.LoadSeccomp):
            program = seccomp.with_key(base64.b64decode(step.program), key, NUMBERS)
            seccomp.load_filter(program, step.flags)
    birth.give_up(*context.granted)
    pid = birth.clone()
    if pid:
        birth.tell(pid)
        os._exit(0)
    birth.start_session(terminal=context.has_terminal)
    if not birth.may_go():
        os._exit(126)
