//! The disk by which cloud-init is told what to do: a small FAT file system with a label that it looks for.
//!
//! | data source | label | files |
//! |---|---|---|
//! | NoCloud | `cidata` | `meta-data`, `user-data`, `network-config` |
//! | ConfigDrive | `config-2` | `openstack/latest/meta_data.json`, `user_data`, `network_data.json` |
//!
//! The instance's id is made of namespace and name, so that a machine that is started again is the same to cloud-init and
//! not set up anew. Source: cloud-init's documentation of both data sources.

use std::fs::OpenOptions;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use berth_api::kubevirt::v1::{VirtualMachineInstance, Volume, hostname};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use kube::ResourceExt as _;
use serde_json::json;

/// Room besides the texts: tables and directories.
const SPACE: u64 = 1 << 20;

/// Makes the disk of a volume at `path`, for the launcher's eyes only. Replaces an older one.
pub(crate) fn write(path: &Path, vmi: &VirtualMachineInstance, volume: &Volume) -> io::Result<()> {
    let files = files(vmi, volume)?;
    let label = if volume.cloud_init_no_cloud.is_some() {
        *b"cidata     "
    } else {
        *b"config-2   "
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let texts: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    file.set_len((SPACE + texts).next_multiple_of(4096))?;
    fatfs::format_volume(
        &mut file,
        FormatVolumeOptions::new()
            .volume_label(label)
            .volume_id(0xbe27),
    )?;
    file.seek(SeekFrom::Start(0))?;
    let system = FileSystem::new(&mut file, FsOptions::new())?;
    let root = system.root_dir();
    for (name, bytes) in files {
        let mut dir = root.clone();
        let (parents, name) = name.rsplit_once('/').unwrap_or(("", name));
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            dir = dir.create_dir(parent)?;
        }
        let mut entry = dir.create_file(name)?;
        entry.truncate()?;
        entry.write_all(&bytes)?;
        entry.flush()?;
    }
    drop(root);
    system.unmount()
}

/// The files by their paths.
fn files(
    vmi: &VirtualMachineInstance,
    volume: &Volume,
) -> io::Result<Vec<(&'static str, Vec<u8>)>> {
    let Some(source) = volume.cloud_init() else {
        return Ok(Vec::new());
    };
    let bad = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let (user, network) = (source.user().map_err(bad)?, source.network().map_err(bad)?);
    let name = vmi.name_any();
    let id = format!("{name}.{}", vmi.namespace().unwrap_or_default());
    let host = hostname(&name, &vmi.spec);
    let json = |value: serde_json::Value| value.to_string().into_bytes();
    let (meta, user_name, network_name) = if volume.cloud_init_no_cloud.is_some() {
        let meta = json!({"instance-id": id, "local-hostname": host});
        (("meta-data", json(meta)), "user-data", "network-config")
    } else {
        let meta = json!({"instance_id": id, "uuid": id, "hostname": host, "local_hostname": host});
        (
            ("openstack/latest/meta_data.json", json(meta)),
            "openstack/latest/user_data",
            "openstack/latest/network_data.json",
        )
    };
    let mut files = vec![meta, (user_name, user.unwrap_or_default())];
    files.extend(network.map(|network| (network_name, network)));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::Command;

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
        write(&path, &no_cloud, &no_cloud.spec.volumes[0]).unwrap();
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
        write(&path, &no_cloud, &no_cloud.spec.volumes[0]).unwrap();
        assert!(
            std::fs::read(&path).unwrap() == first,
            "two disks of the same words differ"
        );

        let drive =
            vmi(&json!({"name": "ci", "cloudInitConfigDrive": {"userData": "x".repeat(60_000)}}));
        write(&path, &drive, &drive.spec.volumes[0]).unwrap();
        assert_eq!(read(&path, "openstack/latest/user_data").len(), 60_000);
        assert!(read(&path, "openstack/latest/meta_data.json").contains("web.one.lab"));
    }

    #[test]
    fn what_is_no_base64_is_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let vmi = vmi(&json!({"name": "ci", "cloudInitNoCloud": {"userDataBase64": "?"}}));
        let refused = write(&dir.path().join("disk"), &vmi, &vmi.spec.volumes[0]);
        assert!(refused.unwrap_err().to_string().contains("base64"));
    }
}
