"""Writes as Vault's own Python client does. The token comes by stdin; each line on stdout names what is written next."""

import random
import sys
import time

import hvac

address, ca, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = hvac.Client(url=address, token=sys.stdin.readline().strip(), verify=ca)
two, one = client.secrets.kv.v2, client.secrets.kv.v1
last = 0


def next_pair(more={}):
    global last
    last += 1
    print(last, flush=True)
    return {"user": f"u-{last}", "password": f"hvac-canary-{last}", **more}


def put(**more):
    written = two.create_or_update_secret("hvac/pair", next_pair(more), mount_point="secret")
    return written["data"]["version"]


def plain():
    one.create_or_update_secret("hvac", next_pair(), mount_point="kv1")
    # Never in step with who polls each second.
    time.sleep(random.uniform(0.2, 0.6))


for _ in range(rounds):
    put(kept="yes")
    plain()
    two.patch("hvac/pair", next_pair(), mount_point="secret")
    plain()
    two.delete_latest_version_of_secret("hvac/pair", mount_point="secret")
    plain()
    version = two.read_secret_metadata("hvac/pair", mount_point="secret")["data"]["current_version"]
    two.undelete_secret_versions("hvac/pair", [version], mount_point="secret")
    plain()
    two.destroy_secret_versions("hvac/pair", [version], mount_point="secret")
    plain()
put(kept="to the end")
plain()
