"""The nouns of the coordinator. Needs the standard library and the contract's nouns alone."""
