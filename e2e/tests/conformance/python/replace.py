"""A client reads an object, changes it and replaces it: with no, a stale and a fresh resourceVersion."""

import json
import sys

from kubernetes import client, config

namespace = sys.argv[1]
config.load_kube_config()
custom = client.CustomObjectsApi()
GROUP = ("conformance.example.com", "v1", namespace, "widgets")
custom.create_namespaced_custom_object(
    *GROUP,
    {"apiVersion": "conformance.example.com/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": {"size": 1}},
)


def replace(body):
    try:
        custom.replace_namespaced_custom_object(*GROUP, "a", body)
        return 200
    except client.ApiException as error:
        return [error.status, error.reason, json.loads(error.body)]


stale = custom.get_namespaced_custom_object(*GROUP, "a")
custom.patch_namespaced_custom_object(*GROUP, "a", {"spec": {"size": 2}})
fresh = custom.get_namespaced_custom_object(*GROUP, "a")
without = json.loads(json.dumps(fresh))
del without["metadata"]["resourceVersion"]
for body in (stale, fresh, without):
    body["spec"]["size"] = 9
print(json.dumps({"without": replace(without), "stale": replace(stale), "fresh": replace(fresh)}))
