"""What every process of ours does: its streams, signals and collector, and gRPC's environment."""
