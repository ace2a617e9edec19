"""Grammars to the tokens that may come next, by llguidance; imports no torch.

A grammar is compiled once, off the event loop; each request then follows it token by token.
"""

from coordinator.constraint.grammar_compiler import GrammarCompiler
from coordinator.constraint.token_constraint import TokenConstraint

__all__ = ["GrammarCompiler", "TokenConstraint"]
