"""Version 1 of the contract: `.proto` files and the stubs generated from them."""
