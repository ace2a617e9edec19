"""How both kinds of server tell operators what they do: logs, the metrics port, histograms."""
