"""The command line."""

import os

# gRPC reads these when it is first imported, which is after this. Nothing here goes on in Python
# after a fork, so it need not prepare for one; and what it would print, our own lines say as well.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
