"""The node: one process that takes part in a mesh, and the command line that talks to it."""

import os

# A node forks to start workers. gRPC's handlers around a fork end the process with a segmentation
# fault when its threads are busy at that moment; a worker is a fresh program and has no use for them.
# It is read when grpc is loaded, hence here, before anything of this package loads it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
