"""What the white box shows, layer by layer: `layers` measures it, `run` draws the report of `crate-graph analyze`."""
