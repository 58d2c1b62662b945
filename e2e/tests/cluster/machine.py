"""A virtual machine by the official Python client: made, read, changed, seen running, deleted.

usage: machine.py NAMESPACE IMAGE   (the cluster comes by KUBECONFIG)
"""

import sys
import time

from kubernetes import client, config
from kubernetes.client.rest import ApiException

NAMESPACE, IMAGE = sys.argv[1:]
PLACE = ("kubevirt.io", "v1", NAMESPACE, "virtualmachineinstances")


def main() -> None:
    config.load_kube_config()
    machines = client.CustomObjectsApi()
    machine = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": "python"},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "domain": {
                "memory": {"guest": "160Mi"},
                "devices": {
                    "disks": [{"name": "root", "disk": {"bus": "virtio"}}],
                    "interfaces": [{"name": "default", "bridge": {}}],
                },
            },
            "networks": [{"name": "default", "pod": {}}],
            "volumes": [{"name": "root", "containerDisk": {"image": IMAGE}}],
        },
    }
    made = machines.create_namespaced_custom_object(*PLACE, machine)
    assert made["spec"]["domain"].get("machine"), "nothing was filled in: " + str(made["spec"]["domain"])

    # Read, change, replace: a stale one is refused.
    stale = machines.get_namespaced_custom_object(*PLACE, "python")
    machines.patch_namespaced_custom_object(*PLACE, "python", {"metadata": {"annotations": {"by": "patch"}}})
    stale["metadata"].setdefault("annotations", {})["by"] = "replace"
    try:
        machines.replace_namespaced_custom_object(*PLACE, "python", stale)
        raise AssertionError("a stale object was accepted")
    except ApiException as refused:
        assert refused.status == 409, refused

    wrong = dict(machine, metadata={"name": "wrong"})
    wrong["spec"] = dict(machine["spec"], volumes=[{"name": "other", "containerDisk": {"image": IMAGE}}])
    try:
        machines.create_namespaced_custom_object(*PLACE, wrong)
        raise AssertionError("a disk without a volume was accepted")
    except ApiException as refused:
        assert "spec.domain.devices.disks[0].name" in refused.body, refused.body

    end = time.monotonic() + 60
    while True:
        now = machines.get_namespaced_custom_object(*PLACE, "python")
        if now.get("status", {}).get("phase") == "Running":
            break
        assert time.monotonic() < end, now.get("status")
        time.sleep(0.5)
    print(now["status"]["interfaces"][0]["ipAddress"])
    machines.delete_namespaced_custom_object(*PLACE, "python")


main()
