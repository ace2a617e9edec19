"""Grammars to the tokens that may come next, by llguidance; imports no torch.

The grammar of a request is compiled off the event loop, and then followed token by token.
"""

from coordinator.constraint.grammar_compiler import GrammarCompiler
from coordinator.constraint.token_constraint import TokenConstraint

__all__ = ["GrammarCompiler", "TokenConstraint"]
