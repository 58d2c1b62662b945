//! Fields in the types of Kubernetes, which mean what they mean for pods.

/// The schemas of Kubernetes' types, without Kubernetes' words.
pub(super) mod schema {
    use k8s_openapi::api::core::v1 as core;
    use schemars::{JsonSchema, Schema, SchemaGenerator};
    use serde_json::Value;

    pub(in super::super) fn affinity(generator: &mut SchemaGenerator) -> Schema {
        plain::<core::Affinity>(generator)
    }

    pub(in super::super) fn tolerations(generator: &mut SchemaGenerator) -> Schema {
        plain::<Vec<core::Toleration>>(generator)
    }

    pub(in super::super) fn spread(generator: &mut SchemaGenerator) -> Schema {
        plain::<Vec<core::TopologySpreadConstraint>>(generator)
    }

    pub(in super::super) fn dns_config(generator: &mut SchemaGenerator) -> Schema {
        plain::<core::PodDNSConfig>(generator)
    }

    pub(in super::super) fn exec(generator: &mut SchemaGenerator) -> Schema {
        plain::<core::ExecAction>(generator)
    }

    pub(in super::super) fn http_get(generator: &mut SchemaGenerator) -> Schema {
        plain::<core::HTTPGetAction>(generator)
    }

    pub(in super::super) fn tcp_socket(generator: &mut SchemaGenerator) -> Schema {
        plain::<core::TCPSocketAction>(generator)
    }

    pub(in super::super) fn downward_api_files(generator: &mut SchemaGenerator) -> Schema {
        plain::<Vec<core::DownwardAPIVolumeFile>>(generator)
    }

    fn plain<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = generator.subschema_for::<T>().to_value();
        strip(&mut schema);
        schema.try_into().unwrap_or_default()
    }

    /// What is said of a field is a text; a field of that name would be an object.
    fn strip(schema: &mut Value) {
        match schema {
            Value::Object(members) => {
                members.retain(|name, value| name != "description" || !value.is_string());
                members.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
}
