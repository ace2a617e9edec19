"""Version 1 of the contract: the stubs that `make protos` generates from `protos/`."""
