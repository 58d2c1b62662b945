"""8 writers count an annotation up 100 times each: read, change, replace, and again on a conflict."""

import json
import sys
from threading import Thread

from kubernetes import client, config

namespace = sys.argv[1]
config.load_kube_config()
WIDGETS = ("conformance.example.com", "v1", namespace, "widgets")
KEY = "conformance.example.com/count"
custom = client.CustomObjectsApi()
custom.create_namespaced_custom_object(
    *WIDGETS,
    {
        "apiVersion": "conformance.example.com/v1",
        "kind": "Widget",
        "metadata": {"name": "a", "annotations": {KEY: "0"}},
        "spec": {"size": 1},
    },
)
failures = []


def count():
    api = client.CustomObjectsApi(client.ApiClient())
    try:
        for _ in range(100):
            while True:
                body = api.get_namespaced_custom_object(*WIDGETS, "a")
                body["metadata"]["annotations"][KEY] = str(int(body["metadata"]["annotations"][KEY]) + 1)
                try:
                    api.replace_namespaced_custom_object(*WIDGETS, "a", body)
                    break
                except client.ApiException as error:
                    if error.status != 409:
                        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the count will be short, and this says why
        failures.append(str(error))


threads = [Thread(target=count) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
final = custom.get_namespaced_custom_object(*WIDGETS, "a")["metadata"]["annotations"][KEY]
print(json.dumps({"count": int(final), "failures": failures}))
