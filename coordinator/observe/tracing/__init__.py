"""OpenTelemetry traces of requests; needs the extra `otel` as soon as it is used."""
