//! The disk by which cloud-init is told what to do: a small FAT file system with a label that it looks for.
//!
//! | data source | label | files |
//! |---|---|---|
//! | NoCloud | `cidata` | `meta-data`, `user-data`, `network-config` |
//! | ConfigDrive | `config-2` | `openstack/latest/meta_data.json`, `user_data`, `network_data.json` |
//!
//! The instance's id is made of namespace and name, so that a machine that is started again is the same to cloud-init and
//! not set up anew. Source: cloud-init's documentation of both data sources.

use std::io;
use std::path::Path;

use berth_api::kubevirt::v1::{VirtualMachineInstance, Volume, hostname};
use berth_api::launcher::{credential_volume, network_data_volume, texts_volume};
use kube::ResourceExt as _;
use serde_json::json;

use crate::fat;
use crate::texts::Texts;

/// Makes the disk of a volume at `path`.
pub(crate) fn write(
    path: &Path,
    vmi: &VirtualMachineInstance,
    volume: &Volume,
    texts: &Texts,
) -> io::Result<()> {
    let label = if volume.cloud_init_no_cloud.is_some() {
        "cidata"
    } else {
        "config-2"
    };
    fat::write(path, label, &files(vmi, volume, texts)?)
}

/// The files by their paths.
fn files(
    vmi: &VirtualMachineInstance,
    volume: &Volume,
    texts: &Texts,
) -> io::Result<Vec<(String, Vec<u8>)>> {
    let Some(source) = volume.cloud_init() else {
        return Ok(Vec::new());
    };
    let bad = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let (mut user, mut network) = (source.user().map_err(bad)?, source.network().map_err(bad)?);
    if source.secret_ref.is_some() {
        let secret = texts_volume(&volume.name);
        user = Some(texts.one_of(&secret, ["userdata", "userData"])?);
    }
    if source.network_data_secret_ref.is_some() {
        let secret = network_data_volume(&volume.name);
        network = Some(texts.one_of(&secret, ["networkdata", "networkData"])?);
    }
    let name = vmi.name_any();
    let id = format!("{name}.{}", vmi.namespace().unwrap_or_default());
    let host = hostname(&name, &vmi.spec);
    let json = |value: serde_json::Value| value.to_string().into_bytes();
    let no_cloud = volume.cloud_init_no_cloud.is_some();
    let keys = public_keys(vmi, no_cloud, texts)?;
    let (meta, user_name, network_name) = if no_cloud {
        let mut meta = json!({"instance-id": id, "local-hostname": host});
        if !keys.is_empty() {
            meta["public-keys"] = keys.into();
        }
        (("meta-data", json(meta)), "user-data", "network-config")
    } else {
        let mut meta =
            json!({"instance_id": id, "uuid": id, "hostname": host, "local_hostname": host});
        if !keys.is_empty() {
            meta["public_keys"] = keys.into();
        }
        (
            ("openstack/latest/meta_data.json", json(meta)),
            "openstack/latest/user_data",
            "openstack/latest/network_data.json",
        )
    };
    let mut files = vec![meta, (user_name, user.unwrap_or_default())];
    files.extend(network.map(|network| (network_name, network)));
    let owned = files
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes));
    Ok(owned.collect())
}

/// The keys of ssh that are to go by this data source, numbered.
fn public_keys(
    vmi: &VirtualMachineInstance,
    no_cloud: bool,
    texts: &Texts,
) -> io::Result<serde_json::Map<String, serde_json::Value>> {
    let mut all = serde_json::Map::new();
    for (index, credential) in vmi.spec.access_credentials.iter().enumerate() {
        let keys = credential.ssh_public_key.as_ref();
        let Some(method) = keys.and_then(|keys| keys.propagation_method.as_ref()) else {
            continue;
        };
        let meant = if no_cloud {
            &method.no_cloud
        } else {
            &method.config_drive
        };
        if meant.is_none() {
            continue;
        }
        for key in texts.keys(&credential_volume(index))? {
            all.insert(all.len().to_string(), key.into());
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::Command;

    use fatfs::{FileSystem, FsOptions};

    use super::*;

    fn vmi(volume: &serde_json::Value) -> VirtualMachineInstance {
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "web.one", "namespace": "lab"},
            "spec": {"domain": {"devices": {}}, "volumes": [volume]},
        }))
        .unwrap()
    }

    fn read(path: &Path, name: &str) -> String {
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let system = FileSystem::new(file, FsOptions::new()).unwrap();
        let mut text = String::new();
        let mut file = system.root_dir().open_file(name).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn cloud_init_finds_what_it_looks_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        let no_cloud = vmi(&json!({"name": "ci", "cloudInitNoCloud": {
            "userData": "#cloud-config\n", "networkDataBase64": "dmVyc2lv\nbjogMgo=",
        }}));
        write(
            &path,
            &no_cloud,
            &no_cloud.spec.volumes[0],
            &Texts::default(),
        )
        .unwrap();
        assert_eq!(read(&path, "user-data"), "#cloud-config\n");
        assert_eq!(read(&path, "network-config"), "version: 2\n");
        let meta: serde_json::Value = serde_json::from_str(&read(&path, "meta-data")).unwrap();
        assert_eq!(
            meta,
            json!({"instance-id": "web.one.lab", "local-hostname": "web"})
        );
        let first = std::fs::read(&path).unwrap();
        // The kernel's users of such file systems think so, too.
        for (program, arguments) in [("fsck.vfat", &["-n"][..]), ("blkid", &["-p"])] {
            let told = Command::new(program).args(arguments).arg(&path).output();
            let Ok(told) = told else { continue };
            let said = String::from_utf8_lossy(&told.stdout).into_owned();
            assert!(told.status.success(), "{program}: {said}");
            if program == "blkid" {
                assert!(
                    said.contains("LABEL=\"cidata\"") && said.contains("vfat"),
                    "{said}"
                );
            }
        }
        write(
            &path,
            &no_cloud,
            &no_cloud.spec.volumes[0],
            &Texts::default(),
        )
        .unwrap();
        assert!(
            std::fs::read(&path).unwrap() == first,
            "two disks of the same words differ"
        );

        let drive =
            vmi(&json!({"name": "ci", "cloudInitConfigDrive": {"userData": "x".repeat(60_000)}}));
        write(&path, &drive, &drive.spec.volumes[0], &Texts::default()).unwrap();
        assert_eq!(read(&path, "openstack/latest/user_data").len(), 60_000);
        assert!(read(&path, "openstack/latest/meta_data.json").contains("web.one.lab"));
    }

    #[test]
    fn secrets_and_keys_come_with_the_pod() {
        let dir = tempfile::tempdir().unwrap();
        for (volume, key, text) in [
            ("text-ci", "userdata", "#cloud-config\n"),
            ("netd-ci", "networkData", "version: 2\n"),
            (
                "access-1",
                "mine",
                "ssh-ed25519 AAAA a\nssh-ed25519 BBBB b\n",
            ),
        ] {
            std::fs::create_dir(dir.path().join(volume)).unwrap();
            std::fs::write(dir.path().join(volume).join(key), text).unwrap();
        }
        let path = dir.path().join("disk.img");
        let mut vmi = vmi(&json!({"name": "ci", "cloudInitNoCloud": {
            "secretRef": {"name": "a"}, "networkDataSecretRef": {"name": "b"},
        }}));
        vmi.spec.access_credentials = serde_json::from_value(json!([
            {"userPassword": {"source": {"secret": {"secretName": "p"}}}},
            {"sshPublicKey": {"source": {"secret": {"secretName": "k"}}, "propagationMethod": {"noCloud": {}}}},
        ]))
        .unwrap();
        let texts = Texts::at(dir.path());
        write(&path, &vmi, &vmi.spec.volumes[0], &texts).unwrap();
        assert_eq!(read(&path, "user-data"), "#cloud-config\n");
        assert_eq!(read(&path, "network-config"), "version: 2\n");
        let meta: serde_json::Value = serde_json::from_str(&read(&path, "meta-data")).unwrap();
        let keys = json!({"0": "ssh-ed25519 AAAA a", "1": "ssh-ed25519 BBBB b"});
        assert_eq!(meta["public-keys"], keys);

        std::fs::remove_file(dir.path().join("text-ci/userdata")).unwrap();
        let refused = write(&path, &vmi, &vmi.spec.volumes[0], &texts).unwrap_err();
        assert!(refused.to_string().contains("userdata"), "{refused}");
    }

    #[test]
    fn what_is_no_base64_is_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let vmi = vmi(&json!({"name": "ci", "cloudInitNoCloud": {"userDataBase64": "?"}}));
        let refused = write(
            &dir.path().join("disk"),
            &vmi,
            &vmi.spec.volumes[0],
            &Texts::default(),
        );
        assert!(refused.unwrap_err().to_string().contains("base64"));
    }
}
