# shellcheck shell=bash
# {{ networks[name].what }}. Source it on every host, or let a launcher do so: NETWORK={{ name }}.
# What is set already stays.
{% if "$INTERFACE" in networks[name].variables | map(attribute="value") | list %}
INTERFACE=${INTERFACE:-$(awk '$2 == "00000000" { print $1; exit }' /proc/net/route)} # of the default route
if [[ -z $INTERFACE ]]; then
  echo 'launch/env/{{ name }}.sh: error: no default route; set INTERFACE to the network interface of the run' >&2
  return {{ exit_mistake }}
fi
{% endif %}
{% for variable in networks[name].variables %}

# {{ variable.why[0] | upper }}{{ variable.why[1:] }}.
export {{ variable.name }}="${ {{- variable.name }}:-{{ variable.value }}}"
{% endfor %}
