"""The command line."""

import os

# Nothing here goes on in Python after a fork, so gRPC need not prepare for one, nor say that it
# could not. Read when gRPC is first imported, which is after this.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
