"""Grammars to the tokens that may come next, by llguidance; imports no torch.

A grammar is native code's work on what a client sent, so it is compiled and followed in processes
of its own (`coordinator.sandbox`): `grammar_job` runs there, and the coordinator itself never
imports llguidance.

    fork server: the model's vocabulary
        +-- template: one compiled grammar, kept for the next request that sends the same text
                +-- output: follows the tokens of one output, and says after each what may follow
"""
