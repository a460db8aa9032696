#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""An Ansible module: a device of Tapster's that a host should have, or should not.

It needs Python and the command `tapster` on the host, and nothing of Ansible's. Put it
into `library/` beside a playbook.
"""

# WANT_JSON: Ansible gives the parameters in a file, whose path is the first argument.

import json
import subprocess
import sys

DOCUMENTATION = """
module: tapster_device
short_description: Manage network devices of VMs with Tapster
options:
  owner: {type: str, required: true, description: Whose device it is; finds the device.}
  state: {type: str, choices: [present, absent], default: present}
  name: {type: str, description: "A plain name, or a template such as vm%d."}
  bridge: {type: str, description: The Linux bridge.}
  vlan: {type: int, description: The VLAN of untagged frames.}
  mac: {type: str, description: The MAC of the guest.}
"""
EXAMPLES = """
- tapster_device: {owner: db, bridge: br0, vlan: 10}
  register: device
- debug: {var: device.lease.name}
- tapster_device: {owner: db, state: absent}
"""

OPTIONS = ("owner", "state", "name", "bridge", "vlan", "mac")
CHANGEABLE = ("bridge", "vlan")
"""What a device can get while its VM runs; another name or MAC needs another device."""


class Failed(Exception):
    """What the module asks for cannot be done."""


def tapster(*arguments):
    """Run a verb and return its JSON, or None."""
    done = subprocess.run(
        ["tapster", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(done.stderr.strip().replace("tapster: ", "", 1))
    return json.loads(done.stdout) if "--json" in arguments else None


def ensure(parameters, check_mode):
    """Bring the device about; return what Ansible is told."""
    leases = tapster("ls", "--owner", parameters["owner"], "--json")["leases"]
    if len(leases) > 1:
        raise Failed(
            f"owner {parameters['owner']!r} has {len(leases)} devices: not one"
        )
    lease = leases[0] if leases else None
    if parameters.get("state", "present") == "absent":
        if lease and not check_mode:
            tapster("rm", lease["id"])
        return {"changed": lease is not None}
    wanted = {key: parameters[key] for key in OPTIONS[2:] if parameters.get(key)}
    if lease is None:
        if not check_mode:
            options = [f"--{key}={value}" for key, value in wanted.items()]
            options.append(f"--owner={parameters['owner']}")
            lease = tapster("add", *options, "--json")["lease"]
        return {"changed": True, "lease": lease}
    differing = [key for key, value in wanted.items() if lease[key] != value]
    if "name" in differing and "%d" in wanted["name"]:
        differing.remove("name")
    if fixed := [key for key in differing if key not in CHANGEABLE]:
        raise Failed(
            f"device {lease['name']!r} has another {' and '.join(fixed)}: "
            "make it absent first"
        )
    if differing and not check_mode:
        changes = [f"--{key}={wanted[key]}" for key in differing]
        lease = tapster("set", lease["id"], *changes, "--json")["lease"]
    return {"changed": bool(differing), "lease": lease}


def main():
    """Read the parameters, act, and print the result."""
    with open(sys.argv[1]) as file:
        given = json.load(file)
    parameters = {
        key: value for key, value in given.items() if not key.startswith("_ansible_")
    }
    try:
        if unknown := parameters.keys() - set(OPTIONS):
            raise Failed(f"there is no option {', '.join(sorted(unknown))}")
        if not parameters.get("owner"):
            raise Failed("owner is missing: it says whose device it is")
        result = ensure(parameters, given.get("_ansible_check_mode", False))
    except Failed as error:
        result = {"failed": True, "msg": str(error)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
