"""The child side: keeper, supervisor, logger, containment steps, kernel calls.

Executed with ``python -I -S -E`` (`start`), never imported by the daemon: standard library alone, one
thread, nothing imported after the start. What goes on when some of them are killed, in any moment:

==================================  =====================================================================
killed                              what holds
==================================  =====================================================================
daemon                              everything; the next one is told all ends that are not forgotten
supervisor                          everything; the keeper starts another one, which fetches its descriptors
                                    and held processes from the keeper. A launch that was not answered is
                                    undone and fails with Unavailable
logger                              everything on pipes, at most one read of 64 KiB per stream twice; of a
                                    terminal at most one read is missing, and its log says so
keeper                              everything: supervisor and logger hand over to a new keeper and leave,
                                    it starts others. Codes of processes that ran before come from the
                                    kernel by their pidfds (since 6.15), or from /proc until they are
                                    reaped; otherwise they are unknown
two of the three                    the same: each guards duplicates of what the others hold (`store`)
all three                           processes run on under their pids and are found again by the keeper's
                                    notes (`ledger`), their ends are told or unknown; but nobody reads
                                    their output any more, held ones end, and namespaces in which no
                                    process runs are gone
==================================  =====================================================================

A second death while the first one is being repaired (some 100 ms) counts as one of more processes.
"""
