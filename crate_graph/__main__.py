from crate_graph.cli import program

program()
