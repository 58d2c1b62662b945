//! `berth create vm`: a manifest to begin with. Arguments are virtctl's; what is printed is for `kubectl create -f -`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::{Args, Subcommand};
use rand::Rng as _;
use serde_json::{Value, json};

use crate::output;

/// Arguments of `berth create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A virtual machine.
    Vm(VmArgs),
}

/// Arguments of `berth create vm`.
#[derive(Debug, Args)]
struct VmArgs {
    /// The name. Default: `vm-` and five letters.
    #[arg(long)]
    name: Option<String>,
    /// Always, Halted, Manual, RerunOnFailure or Once.
    #[arg(long, default_value = "Always")]
    run_strategy: String,
    /// The guest's memory.
    #[arg(long, default_value = "512Mi")]
    memory: String,
    /// The guest's virtual processors.
    #[arg(long, default_value_t = 1)]
    cpu: u32,
    /// Seconds that the guest gets to shut down.
    #[arg(long, default_value_t = 180)]
    termination_grace_period: u32,
    /// A container disk: `src:IMAGE[,name:NAME][,bootorder:N]`; may be given more than once.
    #[arg(long)]
    volume_containerdisk: Vec<String>,
    /// A claim: `src:[NAMESPACE/]CLAIM[,name:NAME][,bootorder:N]`; may be given more than once.
    #[arg(long)]
    volume_pvc: Vec<String>,
    /// How the guest is told: nocloud, configdrive or none.
    #[arg(long, default_value = "nocloud")]
    cloud_init: String,
    /// The user data as base64, in place of what the other options ask for.
    #[arg(long)]
    cloud_init_user_data: Option<String>,
    /// The network data as base64.
    #[arg(long)]
    cloud_init_network_data: Option<String>,
    /// The user in the guest.
    #[arg(long)]
    user: Option<String>,
    /// A file with the user's password.
    #[arg(long)]
    password_file: Option<PathBuf>,
    /// A public key that lets the user in; may be given more than once.
    #[arg(long)]
    ssh_key: Vec<String>,
}

/// Prints a manifest.
pub(crate) fn run(args: &CreateArgs) -> anyhow::Result<()> {
    let What::Vm(args) = &args.what;
    output::print(&output::yaml(&[vm(args)?])?)
}

/// A volume of a command line.
#[derive(Debug, PartialEq, Eq)]
struct Volume {
    source: String,
    name: Option<String>,
    boot_order: Option<u32>,
}

/// `src:…,name:…,bootorder:…`.
fn volume(flag: &str, text: &str) -> anyhow::Result<Volume> {
    let (mut source, mut name, mut boot_order) = (None, None, None);
    for part in text.split(',') {
        match part.split_once(':') {
            Some(("src", value)) => source = Some(value.to_owned()),
            Some(("name", value)) => name = Some(value.to_owned()),
            Some(("bootorder", value)) => {
                let order = value.parse().ok().filter(|order| *order > 0);
                boot_order = Some(order.with_context(|| {
                    format!("{flag}: bootorder {value:?} is no number from 1 on")
                })?);
            }
            _ => bail!("{flag}: {part:?} is none of src:…, name:… and bootorder:…"),
        }
    }
    let source = source.filter(|source| !source.is_empty());
    Ok(Volume {
        source: source.with_context(|| format!("{flag}: {text:?} has no src:…"))?,
        name,
        boot_order,
    })
}

fn vm(args: &VmArgs) -> anyhow::Result<Value> {
    let name = args.name.clone().unwrap_or_else(|| {
        let letters = b"bcdfghjklmnpqrstvwxz2456789";
        let mut random = rand::rng();
        let mut letter = || char::from(letters[random.random_range(0..letters.len())]);
        format!(
            "vm-{}",
            std::iter::repeat_with(&mut letter)
                .take(5)
                .collect::<String>()
        )
    });
    let (mut disks, mut volumes) = (Vec::new(), Vec::new());
    let mut add = |text: &str, flag: &str, kind: &str, source: &dyn Fn(&str) -> Value| {
        let given = volume(flag, text)?;
        let count = volumes.len();
        let name = given
            .name
            .unwrap_or_else(|| format!("{name}-{kind}-{count}"));
        let mut disk = json!({"name": name, "disk": {"bus": "virtio"}});
        if let Some(order) = given.boot_order {
            disk["bootOrder"] = order.into();
        }
        disks.push(disk);
        let mut volume = source(&given.source);
        volume["name"] = name.into();
        volumes.push(volume);
        anyhow::Ok(())
    };
    for text in &args.volume_containerdisk {
        let source = |image: &str| json!({"containerDisk": {"image": image}});
        add(text, "--volume-containerdisk", "containerdisk", &source)?;
    }
    for text in &args.volume_pvc {
        let source = |claim: &str| {
            let claim = claim.rsplit_once('/').map_or(claim, |(_, claim)| claim);
            json!({"persistentVolumeClaim": {"claimName": claim}})
        };
        add(text, "--volume-pvc", "pvc", &source)?;
    }
    if let Some(cloud_init) = cloud_init(args)? {
        disks.push(json!({"name": "cloudinitdisk", "disk": {"bus": "virtio"}}));
        volumes.push(cloud_init);
    }
    Ok(json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "metadata": {"name": name},
        "spec": {
            "runStrategy": args.run_strategy,
            "template": {"spec": {
                "domain": {
                    "cpu": {"cores": args.cpu},
                    "memory": {"guest": args.memory},
                    "devices": {
                        "disks": disks,
                        "interfaces": [{"name": "default", "bridge": {}}],
                        "rng": {},
                    },
                },
                "networks": [{"name": "default", "pod": {}}],
                "terminationGracePeriodSeconds": args.termination_grace_period,
                "volumes": volumes,
            }},
        },
    }))
}

/// The volume by which cloud-init is told what the options ask for; none when they ask for nothing.
fn cloud_init(args: &VmArgs) -> anyhow::Result<Option<Value>> {
    let source = match args.cloud_init.as_str() {
        "none" => return Ok(None),
        "nocloud" => "cloudInitNoCloud",
        "configdrive" => "cloudInitConfigDrive",
        other => bail!("--cloud-init: {other:?} is none of nocloud, configdrive and none"),
    };
    let user_data = match &args.cloud_init_user_data {
        Some(base64) => Some(base64.clone()),
        None => user_data(args)?.map(|text| BASE64.encode(text)),
    };
    if user_data.is_none() && args.cloud_init_network_data.is_none() {
        return Ok(None);
    }
    let mut told = json!({});
    if let Some(base64) = user_data {
        told["userDataBase64"] = base64.into();
    }
    if let Some(base64) = &args.cloud_init_network_data {
        told["networkDataBase64"] = base64.clone().into();
    }
    Ok(Some(json!({"name": "cloudinitdisk", source: told})))
}

/// The `#cloud-config` of user, password and keys.
fn user_data(args: &VmArgs) -> anyhow::Result<Option<String>> {
    let password = match &args.password_file {
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("--password-file {}", file.display()))?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        None => None,
    };
    if args.user.is_none() && password.is_none() && args.ssh_key.is_empty() {
        return Ok(None);
    }
    let mut config = json!({});
    if let Some(user) = &args.user {
        config["user"] = user.clone().into();
    }
    if let Some(password) = password {
        config["password"] = password.into();
        config["chpasswd"] = json!({"expire": false});
        config["ssh_pwauth"] = true.into();
    }
    if !args.ssh_key.is_empty() {
        config["ssh_authorized_keys"] = json!(args.ssh_key);
    }
    // JSON is YAML, and nothing in it can be taken for something else.
    Ok(Some(format!("#cloud-config\n{config}\n")))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: VmArgs,
    }

    fn made(arguments: &[&str]) -> anyhow::Result<Value> {
        let line = std::iter::once(&"vm").chain(arguments);
        vm(&Cli::try_parse_from(line)?.args)
    }

    #[test]
    fn what_is_printed_is_admitted() {
        let vm = made(&[
            "--name=web",
            "--run-strategy=Halted",
            "--volume-containerdisk=src:registry.example:5000/debian:12,bootorder:1",
            "--volume-pvc=src:lab/data,name:data",
            "--user=debian",
            "--ssh-key=ssh-ed25519 AAAA a@b",
        ])
        .unwrap();
        let told = &vm["spec"]["template"]["spec"]["volumes"];
        assert_eq!(
            told[0]["containerDisk"]["image"],
            "registry.example:5000/debian:12"
        );
        assert_eq!(told[1]["persistentVolumeClaim"]["claimName"], "data");
        let base64 = told[2]["cloudInitNoCloud"]["userDataBase64"]
            .as_str()
            .unwrap();
        let text = String::from_utf8(BASE64.decode(base64).unwrap()).unwrap();
        assert!(
            text.starts_with("#cloud-config\n") && text.contains("ssh-ed25519 AAAA a@b"),
            "{text}"
        );
        let admitted = berth_admission::admit(&berth_admission::Request {
            operation: berth_admission::Operation::Create,
            kind: "VirtualMachine",
            subresource: None,
            namespace: "default",
            name: "web",
            object: Some(&vm),
            old_object: None,
        });
        assert!(admitted.is_ok(), "{:?}", admitted.err());
        let generated = made(&[]).unwrap();
        assert_eq!(generated["metadata"]["name"].as_str().unwrap().len(), 8);
    }

    #[test]
    fn mistakes_are_told() {
        for (argument, told) in [
            ("--volume-containerdisk=debian", "src:"),
            ("--volume-pvc=name:x", "has no src"),
            ("--volume-pvc=src:x,bootorder:0", "bootorder"),
            ("--cloud-init=yes", "nocloud"),
            ("--password-file=/nowhere/at/all", "/nowhere/at/all"),
        ] {
            let error = format!("{:#}", made(&[argument]).unwrap_err());
            assert!(error.contains(told), "{argument}: {error}");
        }
    }
}
