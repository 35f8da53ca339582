"""FOR AUTHORS OF BACKENDS: what most backends on a Linux host need, written once.

``polypod.plugin`` is what a backend must do; this room helps to do it. Nothing here is obligatory, nothing
knows more of core than a plugin may, and each module stands on its own:

=================  =====================================================================================
`descriptors`      what a launch takes along, numbered as plans name it, closed together
`mounts`           a root file system, volumes and a pod's shared memory as mounts that are attached nowhere
`cgroups`          cgroups of v1, v2 and hybrid hosts: make, limit, join, signal, remove
`devicefilter`     the devices that a cgroup of v2 may open
`usage`            a cgroup's counters
`containers`       the containers of one handler, their ends, and the events that tell of them
`sandboxes`        the sandboxes of one handler, with a note for each that outlives the daemon
`sessions`         an extra process in a container: its launch, its end, its terminal
`inits`            the init of a pod's shared processes, watched
`mountapi`         the system calls below `mounts`
=================  =====================================================================================

The shortest backend that is made of them is ``plugins/fly``; its README is a walk through it.
"""
