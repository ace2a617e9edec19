"""The namespace of the contract's packages."""
