"""What every process of ours does: its flags, streams and signals, and gRPC's environment."""
