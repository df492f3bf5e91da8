from crate_graph.config.load import dump_recipe, load_recipe
from crate_graph.config.schema import Recipe

__all__ = ["Recipe", "dump_recipe", "load_recipe"]
