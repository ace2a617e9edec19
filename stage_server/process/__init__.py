"""The life of a stage server: from its flags over loading and serving to its end."""
