//! The CustomResourceDefinitions, made from the Rust types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionVersion,
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::cdi::v1beta1::DataVolume;
use crate::kubevirt::VERSIONS;
use crate::kubevirt::v1::{VirtualMachine, VirtualMachineInstance};
use crate::settings::v1::Berth;

/// Every CustomResourceDefinition of berth.
///
/// Those of `kubevirt.io` are served in all [`VERSIONS`] with one schema and stored as `v1`. The root and the objects inside
/// `spec` keep fields that the schema does not describe (`x-kubernetes-preserve-unknown-fields`), so that admission sees
/// them and refuses them by name instead of the API server dropping them unseen.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        publish(VirtualMachineInstance::crd(), &instance_columns()),
        publish(VirtualMachine::crd(), &machine_columns()),
        disks(DataVolume::crd(), &data_volume_columns()),
        settings(),
    ]
}

/// A kind of CDI's: one version, and admission sees what it does not know.
fn disks(
    mut crd: CustomResourceDefinition,
    columns: &[CustomResourceColumnDefinition],
) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        version.additional_printer_columns = Some(columns.to_vec());
        let root = version.schema.as_mut();
        if let Some(root) = root.and_then(|s| s.open_api_v3_schema.as_mut()) {
            open(root);
        }
    }
    crd
}

/// The columns of `kubectl get dv`.
fn data_volume_columns() -> [CustomResourceColumnDefinition; 4] {
    [
        column("Phase", "string", ".status.phase", 0),
        column("Progress", "string", ".status.progress", 0),
        column("Restarts", "integer", ".status.restartCount", 0),
        column("Age", "date", ".metadata.creationTimestamp", 0),
    ]
}

/// The settings: one version, and the API server itself refuses what it does not know.
fn settings() -> CustomResourceDefinition {
    let mut crd = Berth::crd();
    for version in &mut crd.spec.versions {
        version.additional_printer_columns = Some(vec![
            column("Age", "date", ".metadata.creationTimestamp", 0),
            column("Phase", "string", ".status.phase", 0),
        ]);
        let root = version.schema.as_mut();
        if let Some(root) = root.and_then(|s| s.open_api_v3_schema.as_mut()) {
            tidy(root);
        }
    }
    crd
}

/// The columns of `kubectl get vmi`; those with priority 1 only with `-o wide`.
fn instance_columns() -> [CustomResourceColumnDefinition; 7] {
    [
        column("Age", "date", ".metadata.creationTimestamp", 0),
        column("Phase", "string", ".status.phase", 0),
        column("IP", "string", ".status.interfaces[0].ipAddress", 0),
        column("NodeName", "string", ".status.nodeName", 0),
        column(
            "Ready",
            "string",
            ".status.conditions[?(@.type=='Ready')].status",
            0,
        ),
        column(
            "Live-Migratable",
            "string",
            ".status.conditions[?(@.type=='LiveMigratable')].status",
            1,
        ),
        column(
            "Paused",
            "string",
            ".status.conditions[?(@.type=='Paused')].status",
            1,
        ),
    ]
}

/// The columns of `kubectl get vm`.
fn machine_columns() -> [CustomResourceColumnDefinition; 3] {
    [
        column("Age", "date", ".metadata.creationTimestamp", 0),
        column("Status", "string", ".status.printableStatus", 0),
        column(
            "Ready",
            "string",
            ".status.conditions[?(@.type=='Ready')].status",
            0,
        ),
    ]
}

fn column(
    name: &str,
    type_: &str,
    json_path: &str,
    priority: i32,
) -> CustomResourceColumnDefinition {
    CustomResourceColumnDefinition {
        name: name.to_owned(),
        type_: type_.to_owned(),
        json_path: json_path.to_owned(),
        priority: (priority != 0).then_some(priority),
        ..Default::default()
    }
}

/// Turns the definition that the derive made into the one that is served.
fn publish(
    mut crd: CustomResourceDefinition,
    columns: &[CustomResourceColumnDefinition],
) -> CustomResourceDefinition {
    let Some(mut base) = crd.spec.versions.pop() else {
        return crd;
    };
    base.additional_printer_columns = Some(columns.to_vec());
    if let Some(root) = base
        .schema
        .as_mut()
        .and_then(|s| s.open_api_v3_schema.as_mut())
    {
        open(root);
    }
    let kind = &crd.spec.names.kind;
    crd.spec.versions = VERSIONS
        .iter()
        .map(|name| {
            let storage = *name == base.name;
            CustomResourceDefinitionVersion {
                name: (*name).to_owned(),
                served: true,
                storage,
                deprecated: (!storage).then_some(true),
                deprecation_warning: (!storage).then(|| {
                    format!("kubevirt.io/{name} {kind} is deprecated: use kubevirt.io/v1 {kind}")
                }),
                ..base.clone()
            }
        })
        .collect();
    crd
}

/// Tidies a schema and lets it keep fields of the object and its spec that it does not describe.
fn open(root: &mut JSONSchemaProps) {
    tidy(root);
    root.x_kubernetes_preserve_unknown_fields = Some(true);
    if let Some(spec) = root.properties.as_mut().and_then(|p| p.get_mut("spec")) {
        preserve_unknown(spec);
    }
}

/// Takes out what the schema generator adds and a structural schema should not say: defaults (admission sets
/// them) and number formats that Kubernetes does not know.
fn tidy(schema: &mut JSONSchemaProps) {
    schema.default = None;
    match schema.format.as_deref() {
        Some("uint8" | "uint16") => schema.format = Some("int32".to_owned()),
        Some("uint32") => {
            schema.format = Some("int64".to_owned());
            schema.maximum.get_or_insert(f64::from(u32::MAX));
        }
        Some("uint" | "uint64") => schema.format = Some("int64".to_owned()),
        _ => {}
    }
    // Doc comments wrap at the line width of the source; a description is one flowing text.
    if let Some(text) = schema.description.as_mut().filter(|t| t.contains('\n')) {
        *text = text
            .split('\n')
            .map(str::trim)
            .collect::<Vec<_>>()
            .join(" ");
    }
    for_each_child(schema, tidy);
}

/// Marks every object with properties, here and below, to keep fields that it does not describe.
fn preserve_unknown(schema: &mut JSONSchemaProps) {
    let open_object =
        schema.type_.as_deref() == Some("object") && schema.additional_properties.is_none();
    if open_object {
        schema.x_kubernetes_preserve_unknown_fields = Some(true);
    }
    for_each_child(schema, preserve_unknown);
}

fn for_each_child(schema: &mut JSONSchemaProps, visit: fn(&mut JSONSchemaProps)) {
    if let Some(properties) = &mut schema.properties {
        properties.values_mut().for_each(visit);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        visit(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        visit(values);
    }
}
