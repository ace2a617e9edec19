"""The gRPC door: `stagecoach.v1.GenerationService` in front of an engine."""
