"""What every gRPC server of ours does with calls, before a method of its own runs."""
