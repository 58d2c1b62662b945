//! Texts that came with the pod: Secrets, ConfigMaps, what the pod says of itself. One directory each, a file a key.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use berth_api::launcher::TEXTS_DIR;

/// Most bytes of one directory; Kubernetes' own limit of a Secret is 1 MiB.
const MAX: u64 = 4 << 20;

/// Where the texts are.
#[derive(Debug, Clone)]
pub(crate) struct Texts(PathBuf);

impl Default for Texts {
    fn default() -> Self {
        Self(PathBuf::from(TEXTS_DIR))
    }
}

impl Texts {
    #[cfg(test)]
    pub(crate) fn at(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// All files of a pod's volume, in the order of their names. What an optional source does not have are none.
    pub(crate) fn read(&self, volume: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
        let dir = self.0.join(volume);
        let (mut files, mut left) = (Vec::new(), MAX);
        for entry in std::fs::read_dir(&dir).map_err(|error| naming(&dir, &error))? {
            let entry = entry?;
            let (Ok(name), path) = (entry.file_name().into_string(), entry.path()) else {
                continue;
            };
            // A kubelet keeps the files in `..data`, which it exchanges whole, and links to them.
            if name.starts_with("..") || !path.is_file() {
                continue;
            }
            let mut bytes = Vec::new();
            std::fs::File::open(&path)
                .and_then(|file| file.take(left + 1).read_to_end(&mut bytes))
                .map_err(|error| naming(&path, &error))?;
            let Some(rest) = left.checked_sub(bytes.len() as u64) else {
                let text = format!("{}: more than {MAX} bytes", dir.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            };
            left = rest;
            files.push((name, bytes));
        }
        files.sort();
        Ok(files)
    }

    /// The one of the keys that is there.
    pub(crate) fn one_of(&self, volume: &str, keys: [&str; 2]) -> io::Result<Vec<u8>> {
        let files = self.read(volume)?;
        let found = files.into_iter().find(|(name, _)| keys.contains(&&**name));
        found.map(|(_, bytes)| bytes).ok_or_else(|| {
            let [first, second] = keys;
            let text = format!("the secret has neither the key {first} nor {second}");
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }

    /// Public keys, a key a line, in all files of a volume.
    pub(crate) fn keys(&self, volume: &str) -> io::Result<Vec<String>> {
        let mut keys = Vec::new();
        for (_, bytes) in self.read(volume)? {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let lines = text.lines().map(str::trim);
            keys.extend(
                lines
                    .filter(|line| !line.is_empty() && !line.starts_with('#'))
                    .map(str::to_owned),
            );
        }
        Ok(keys)
    }
}

fn naming(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_a_kubelet_lays_them_out() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("text-a");
        std::fs::create_dir_all(volume.join("..2026")).unwrap();
        std::os::unix::fs::symlink("..2026", volume.join("..data")).unwrap();
        for (name, text) in [
            ("b", "# mine\nssh-ed25519 AAAA me\n\n"),
            ("userData", "#cloud-config\n"),
        ] {
            std::fs::write(volume.join("..2026").join(name), text).unwrap();
            std::os::unix::fs::symlink(format!("..data/{name}"), volume.join(name)).unwrap();
        }
        let texts = Texts::at(dir.path());
        let names: Vec<_> = texts
            .read("text-a")
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["b", "userData"]);
        assert_eq!(
            texts.one_of("text-a", ["userdata", "userData"]).unwrap(),
            b"#cloud-config\n"
        );
        let none = texts.one_of("text-a", ["x", "y"]).unwrap_err().to_string();
        assert!(none.contains("neither the key x nor y"), "{none}");
        assert_eq!(
            texts.keys("text-a").unwrap(),
            ["ssh-ed25519 AAAA me",].map(str::to_owned)
        );
        let gone = texts.read("text-b").unwrap_err().to_string();
        assert!(gone.contains("text-b"), "{gone}");
        std::fs::write(volume.join("large"), vec![0; 5 << 20]).unwrap();
        assert!(
            texts
                .read("text-a")
                .unwrap_err()
                .to_string()
                .contains("more than")
        );
    }
}
