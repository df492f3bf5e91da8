"""The verb `doctor`: what stands in the way of a run, on every host, with the remedy.

check.py     what one finding is       host.py       one host: versions, devices, disk, memory, limits
network.py   interfaces and names      together.py   all hosts: clocks, versions, all-reduce
recipe.py    shards and batch sizes    run.py        who checks what; report.py shows it
"""
