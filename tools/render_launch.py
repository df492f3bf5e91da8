"""Writes the launchers of launch/ from their templates in crate_graph/cluster/launch/.

.venv/bin/python tools/render_launch.py             # after a template was changed
.venv/bin/python tools/render_launch.py FOLDER      # elsewhere: for an installed wheel, which has no launch/
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from crate_graph.cluster.launch.render import write_all
from crate_graph.errors import UserError

LAUNCH = Path(__file__).parents[1] / "launch"


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    try:
        changed = write_all(Path(words[0]) if words else LAUNCH)
    except UserError as error:
        print(f"render_launch: error: {error}", file=sys.stderr)
        return 2
    print("\n".join(map(str, changed)) or "nothing has changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
