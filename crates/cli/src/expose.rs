//! `berth expose`: a Service in front of a virtual machine. Arguments are virtctl's.

use std::collections::BTreeMap;

use anyhow::Context as _;
use berth_api::kubevirt::v1::{VirtualMachine, VirtualMachineInstance};
use berth_api::labels;
use clap::Args;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};

use crate::lifecycle::{Kind, Namespace};

/// Arguments of `berth expose`.
#[derive(Debug, Args)]
pub(crate) struct ExposeArgs {
    /// Of what kind it is.
    #[arg(value_enum)]
    kind: Kind,
    /// The name of what is exposed.
    target: String,
    /// The name of the Service.
    #[arg(long)]
    name: String,
    /// The Service's port.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The guest's port: a number, or the same as --port.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    target_port: Option<u16>,
    /// The name of the port.
    #[arg(long)]
    port_name: Option<String>,
    /// TCP, UDP or SCTP.
    #[arg(long, default_value = "TCP")]
    protocol: String,
    /// ClusterIP, NodePort or LoadBalancer.
    #[arg(long = "type", default_value = "ClusterIP")]
    type_: String,
    /// The Service's address; `None` for a Service without one.
    #[arg(long)]
    cluster_ip: Option<String>,
    /// An address of the outside that leads to the cluster.
    #[arg(long)]
    external_ip: Option<String>,
    #[command(flatten)]
    namespace: Namespace,
}

/// Makes the Service.
pub(crate) async fn run(args: ExposeArgs) -> anyhow::Result<()> {
    let (client, namespace) = args.namespace.client().await?;
    // What is not there cannot be exposed.
    match args.kind {
        Kind::Vm => {
            let api: Api<VirtualMachine> = Api::namespaced(client.clone(), &namespace);
            api.get(&args.target).await.map(drop)
        }
        Kind::Vmi => {
            let api: Api<VirtualMachineInstance> = Api::namespaced(client.clone(), &namespace);
            api.get(&args.target).await.map(drop)
        }
    }
    .map_err(crate::client::said)?;
    let services: Api<Service> = Api::namespaced(client, &namespace);
    let service = service(&args, &namespace);
    let made = services.create(&PostParams::default(), &service).await;
    made.map_err(crate::client::said)
        .with_context(|| format!("service {}", args.name))?;
    let kind = match args.kind {
        Kind::Vm => "vm",
        Kind::Vmi => "vmi",
    };
    println!(
        "Service {} successfully created for {kind} {}",
        args.name, args.target
    );
    Ok(())
}

fn service(args: &ExposeArgs, namespace: &str) -> Service {
    Service {
        metadata: ObjectMeta {
            name: Some(args.name.clone()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            // Each launcher pod says whose it is, also the next one.
            selector: Some(BTreeMap::from([(
                labels::VM_NAME.to_owned(),
                args.target.clone(),
            )])),
            ports: Some(vec![ServicePort {
                name: args.port_name.clone(),
                port: i32::from(args.port),
                protocol: Some(args.protocol.clone()),
                target_port: args
                    .target_port
                    .map(|port| IntOrString::Int(i32::from(port))),
                ..ServicePort::default()
            }]),
            type_: Some(args.type_.clone()),
            cluster_ip: args.cluster_ip.clone(),
            external_ips: args.external_ip.clone().map(|address| vec![address]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}
