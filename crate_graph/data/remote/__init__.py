"""Shards that lie elsewhere: fetched whole into a cache on this host, verified, and then read as local ones.

file.py      a file at an address: what the rest of the package sees
address.py   the addresses: http(s)://, s3://, hf://, pipe:
answer.py    what comes of asking once; http.py, s3.py, hub.py and pipe.py ask
fetch.py     one file, against a network that fails; part.py keeps what came so far
cache.py     the copies: who fetches, who uses, what goes; locks.py between processes
ahead.py     which shards a reader holds, and fetches before it needs them
"""
