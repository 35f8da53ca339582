"""For authors of plugins: contract suites, fakes of what core lends, and the simulator backend.

Nothing here imports a test framework.
"""
