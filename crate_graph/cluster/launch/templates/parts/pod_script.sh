set -euo pipefail
nodes={{ pods }} procs={{ gpus }} words=("$@")
{{ where }}
python=python
{% include "parts/torchrun_words.sh" %}
{% include "parts/agent.sh" %}
