"""What a file is after crashes, power loss, faults of the disk and damage: by counting, from seeds.

A random workload (`workload`) runs in a child process whose calls of the system are intercepted (`got`, `calls`). The
calls are recorded (`record`) to build the files that a power loss may leave (`states`), or made to fail, or cut
short by a kill. Each resulting file is examined in a child (`children`, `examine`): it must hold the last acknowledged
commit or the one in flight, whole. One module for each profile; ``python -m tests.survival --help`` runs them.
"""
