"""The nouns of the coordinator. Standard library only, besides the typed errors of the contract."""
