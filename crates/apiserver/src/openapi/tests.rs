use prost::Message as _;
use serde_json::{Value, json};

use super::*;

fn defs() -> Vec<Arc<ResourceDef>> {
    let mut crd = json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}, "schema": {"openAPIV3Schema":
            {"type": "object", "description": "A widget.", "properties": {
                "spec": {"type": "object", "description": "What is wanted.", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {"size": {"type": "integer"}}},
                "status": {"type": "object", "properties": {"port": {"x-kubernetes-int-or-string": true,
                        "anyOf": [{"type": "integer"}, {"type": "string"}]}, "note": {"type": "string", "nullable": true}}}}}}}]}});
    crate::schema::crd::default(&mut crd);
    assert_eq!(crate::schema::crd::validate(&crd, None), []);
    let mut defs = crate::resources::builtin();
    defs.push(ResourceDef::from_crd(&crd).expect("a good definition"));
    defs.into_iter().map(Arc::new).collect()
}

fn get(path: &str) -> Value {
    serde_json::from_slice(
        &document(&defs(), path, "application/json")
            .expect("there")
            .body,
    )
    .expect("JSON")
}

/// Every reference of the document, to check that it leads somewhere.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get("$ref") {
                found.push(reference.clone());
            }
            map.values().for_each(|v| references(v, found));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

fn assert_references_resolve(document: &Value) {
    let mut found = Vec::new();
    references(document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference
            .strip_prefix('#')
            .unwrap_or_else(|| panic!("{reference} is not local"));
        // A field of a CRD type is really called `$ref`; it is no reference but a schema, so only texts come here.
        assert!(
            document.pointer(pointer).is_some(),
            "{reference} leads nowhere"
        );
    }
}

#[test]
fn the_index_names_every_group_version() {
    let index = get("/openapi/v3");
    for key in [
        "api/v1",
        "apis/example.com/v1",
        "apis/apiextensions.k8s.io/v1",
    ] {
        let url = index["paths"][key]["serverRelativeURL"]
            .as_str()
            .unwrap_or_else(|| panic!("{key} is missing"));
        assert!(
            url.starts_with(&format!("/openapi/v3/{key}?hash=")),
            "{url}"
        );
        assert_references_resolve(&get(&format!("/openapi/v3/{key}")));
    }
    assert!(document(&defs(), "/openapi/v3/apis/none.example/v1", "").is_none());
}

#[test]
fn patch_says_that_it_takes_field_validation() {
    let widgets = get("/openapi/v3/apis/example.com/v1");
    let patch =
        &widgets["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"]["patch"];
    let names: Vec<&Value> = patch["parameters"]
        .as_array()
        .expect("list")
        .iter()
        .map(|p| &p["name"])
        .collect();
    for name in ["fieldValidation", "dryRun", "fieldManager", "force"] {
        assert!(names.contains(&&json!(name)), "{name}");
    }
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "example.com", "version": "v1", "kind": "Widget"})
    );
    let schema = &widgets["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(
        schema["properties"]["spec"]["description"],
        "What is wanted."
    );
    assert_eq!(
        schema["x-kubernetes-group-version-kind"][0]["kind"],
        "Widget"
    );
}

#[test]
fn built_in_documents_carry_merge_keys() {
    let core = get("/openapi/v3/api/v1");
    let containers =
        &core["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert!(core["components"]["schemas"]["io.k8s.api.core.v1.Pod"]["description"].is_string());
}

#[test]
fn version_two_is_the_same_in_both_encodings() {
    let swagger = get("/openapi/v2");
    assert_references_resolve(&swagger);
    let widget = &swagger["definitions"]["com.example.v1.Widget"]["properties"];
    let spec = &widget["spec"];
    assert!(
        spec.get("properties").is_none()
            && spec.get("type").is_none()
            && spec["description"] == "What is wanted.",
        "a field that the server keeps must not be refused by old clients: {spec}"
    );
    let status = &widget["status"]["properties"];
    assert!(
        status["port"].get("type").is_none()
            && status["port"]["x-kubernetes-int-or-string"] == true,
        "a field that takes both must not be refused by old clients"
    );
    assert!(
        status["note"].get("type").is_none(),
        "a nullable field must not be refused by old clients"
    );

    let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let encoded = document(&defs(), "/openapi/v2", accept).expect("there");
    assert_eq!(encoded.content_type, v2::PROTOBUF);
    let decoded = gnostic::Document::decode(encoded.body).expect("decodes again");
    assert_eq!(decoded, gnostic::document(&swagger));
    let definitions = decoded
        .definitions
        .expect("definitions")
        .additional_properties;
    let widget = definitions
        .iter()
        .find(|d| d.name == "com.example.v1.Widget")
        .expect("there")
        .value
        .clone()
        .expect("set");
    let gvk = widget
        .vendor_extension
        .iter()
        .find(|e| e.name == "x-kubernetes-group-version-kind")
        .expect("there");
    let yaml = &gvk.value.as_ref().expect("set").yaml;
    assert_eq!(
        serde_json::from_str::<Value>(yaml).expect("JSON is YAML")[0]["kind"],
        "Widget"
    );
}
