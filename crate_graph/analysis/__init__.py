"""What the white box shows, in numbers, layer by layer; see `crate_graph.analysis.layers` for what there is."""
