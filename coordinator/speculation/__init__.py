"""Guesses of tokens, to be checked in the pass that computes the next one."""
