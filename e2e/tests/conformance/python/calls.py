"""Typed calls, the dynamic client, custom objects and a watch, with the official client."""

import json
import sys

from kubernetes import client, config, dynamic, watch

namespace = sys.argv[1]
config.load_kube_config()
core = client.CoreV1Api()
custom = client.CustomObjectsApi()
GROUP = ("conformance.example.com", "v1", namespace, "widgets")
seen = {}

core.create_namespaced_config_map(namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="m"), data={"a": "1"}))
core.patch_namespaced_config_map("m", namespace, {"data": {"b": "2"}})
seen["data"] = core.read_namespaced_config_map("m", namespace).data
since = custom.list_namespaced_custom_object(*GROUP)["metadata"]["resourceVersion"]
widget = {"apiVersion": "conformance.example.com/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": {"size": 1}}
custom.create_namespaced_custom_object(*GROUP, widget)
custom.patch_namespaced_custom_object(*GROUP, "a", {"spec": {"size": 2}})
seen["size"] = custom.get_namespaced_custom_object(*GROUP, "a")["spec"]["size"]
seen["deleted"] = custom.delete_namespaced_custom_object(*GROUP, "a")["status"]
events = watch.Watch().stream(
    custom.list_namespaced_custom_object, *GROUP, resource_version=since, timeout_seconds=1
)
seen["watched"] = [f"{e['type']} {e['object']['metadata']['name']}" for e in events]

resources = dynamic.DynamicClient(client.ApiClient())
widgets = resources.resources.get(api_version="conformance.example.com/v1", kind="Widget")
widget["metadata"]["name"] = "d"
widgets.create(body=widget, namespace=namespace)
seen["dynamic"] = [item.metadata.name for item in widgets.get(namespace=namespace).items]
seen["applied"] = widgets.server_side_apply(
    body={**widget, "spec": {"size": 3}}, namespace=namespace, field_manager="python", force_conflicts=True
).spec.size
try:
    core.read_namespaced_config_map("none", namespace)
except client.ApiException as error:
    seen["missing"] = [error.status, json.loads(error.body)["message"]]
print(json.dumps(seen))
