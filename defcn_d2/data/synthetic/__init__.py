"""Built-in data sets, drawn on first use."""
