"""The contract: what stage servers, the coordinator and clients share, and nothing else.

Holds the `.proto` files with their generated stubs, and the few types that both ends of a
connection must agree on. Imports nothing of Stagecoach.
"""

__version__ = "0.1.0"

PROTOCOL_VERSION = 1
"""Version of `stagecoach.v1` on the wire. Both ends must agree exactly."""
