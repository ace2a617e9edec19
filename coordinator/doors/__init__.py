"""How callers come in: gRPC, HTTP, and who may."""
