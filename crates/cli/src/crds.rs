//! `berth crds`: the CustomResourceDefinitions, for `kubectl apply -f -` and for tools that read schemas.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::json;

use crate::output;

/// Arguments of `berth crds`.
#[derive(Debug, Args)]
pub(crate) struct CrdsArgs {
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Yaml)]
    output: Output,
}

/// How the definitions are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// One `List` of all.
    Json,
    /// One document for each.
    Yaml,
}

/// Prints the definitions to standard output.
pub(crate) fn run(args: &CrdsArgs) -> Result<()> {
    let text = render(&berth_api::crds(), args.output)?;
    output::print(&text)
}

fn render(crds: &[CustomResourceDefinition], output: Output) -> Result<String> {
    match output {
        Output::Json => {
            let list = json!({ "apiVersion": "v1", "kind": "List", "metadata": {}, "items": crds });
            let text = serde_json::to_string_pretty(&list)
                .context("cannot write the definitions as JSON")?;
            Ok(text + "\n")
        }
        Output::Yaml => output::yaml(crds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_hold_the_same_definitions() {
        let crds = berth_api::crds();
        let list: serde_json::Value =
            serde_json::from_str(&render(&crds, Output::Json).unwrap()).unwrap();
        assert_eq!(list["kind"], "List");
        let yaml = render(&crds, Output::Yaml).unwrap();
        let documents: Vec<_> = yaml.split("---\n").filter(|d| !d.is_empty()).collect();
        let items = list["items"].as_array().unwrap();
        assert_eq!(documents.len(), items.len());
        for (document, item) in documents.iter().zip(items) {
            let read: serde_json::Value = serde_saphyr::from_str(document).unwrap();
            assert_eq!(&read, item);
        }
    }

    #[test]
    fn the_embedded_server_accepts_every_definition() {
        for crd in berth_api::crds() {
            let mut crd = serde_json::to_value(crd).unwrap();
            berth_apiserver::schema::crd::default(&mut crd);
            assert_eq!(berth_apiserver::schema::crd::validate(&crd, None), []);
        }
    }
}
