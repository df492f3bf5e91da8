import sys

from crate_graph.cli import main

sys.exit(main())
